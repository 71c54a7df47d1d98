from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.data.documents import split_documents
from mini_transformer.data.sources import read_documents, read_text, split_validation, text_files
from mini_transformer.errors import UserError


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\n\n\nb", ["a", "b"]),
        ("a\n\nb", ["a\n\nb"]),
        ("\n\n\na\n \n\t\n\n\nb\n\n", ["a", "b"]),
        ("  a\nb  \n\n\n\n\n  c", ["  a\nb  ", "  c"]),
        ("", []),
        (" \n\n\n \n", []),
    ],
)
def test_documents_are_parted_at_two_or_more_blank_lines(text: str, documents: list[str]) -> None:
    assert split_documents(text) == documents


@given(st.lists(st.text(alphabet="ab \n", min_size=1).map(lambda t: "x" + t + "x").filter(lambda t: "\n" not in t)))
def test_joined_documents_come_apart_again(documents: list[str]) -> None:
    assert split_documents("\n\n\n".join(documents)) == documents


def test_a_tenth_of_the_documents_is_for_validation() -> None:
    documents = [f"document {i}" for i in range(40)]
    split = split_validation(documents)
    assert len(split.validation) == 4
    assert sorted(split.train + split.validation) == sorted(documents)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_of_few_documents_the_last_tenth_of_the_text_is(count: int) -> None:
    documents = [f"{i}" * 100 for i in range(count)]
    split = split_validation(documents)
    assert "".join(split.train) + "".join(split.validation) == "".join(documents)
    assert len("".join(split.validation)) == 10 * count


def test_folders_are_read_in_order_and_line_ends_become_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"b1\r\n\r\n\r\nb2\r")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_bytes("\ufeffà".encode())
    (tmp_path / "notes.md").write_text("not this")
    assert [p.name for p in text_files(tmp_path)] == ["z.txt", "b.txt"]
    assert read_documents((tmp_path,)) == ["à", "b1", "b2"]


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for content, encoding, message in (
        (b"caf\xe9", "utf-8", r"text\.txt: not utf-8: byte 0xe9 at offset 3; .* --encoding latin-1"),
        (b"\x89PNG\0\0", "utf-8", r"text\.txt: a binary file \(zero byte at offset 4\)"),
        (b"a", "utf-99", "--encoding: 'utf-99' is not a known encoding"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_text(file, encoding)
    file.write_bytes(b" \n \n")
    with pytest.raises(UserError, match=r"text\.txt: empty"):
        read_documents((file,))
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        read_documents((tmp_path,))
    file.write_bytes("été".encode("utf-16"))
    assert read_documents((file,), "utf-16") == ["été"]
