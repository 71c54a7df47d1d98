import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.data.cache import DataCache
from mini_transformer.data.corpus import Corpus, mark_split
from mini_transformer.data.reading import ReaderConfig, read_text
from mini_transformer.data.sources import Sources, read_documents, text_files
from mini_transformer.errors import UserError
from mini_transformer.text.documents import Piece, split_documents

Call = Callable[..., tuple[int, str, str]]


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


def split(documents: list[str], cut: int | None, every: int = 10) -> tuple[list[str], list[str]]:
    marked = list(mark_split([Piece(document, True, "here") for document in documents], cut, every))
    return [p.text for p, held_out in marked if not held_out], [p.text for p, held_out in marked if held_out]


def test_a_tenth_of_the_documents_is_for_validation() -> None:
    documents = [f"document {i}" for i in range(40)]
    train, validation = split(documents, None)
    assert validation == documents[9::10]
    assert sorted(train + validation) == sorted(documents)


@pytest.mark.parametrize(("fraction", "every"), [(0.5, 2), (0.25, 4), (0.1, 10), (0.03, 33)])
def test_another_fraction_may_be_asked_for(fraction: float, every: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n\n".join(f"document {i}" for i in range(70)))
    corpus = Corpus(Sources([tmp_path / "a.txt"], ReaderConfig()), fraction, DataCache(tmp_path / "cache"), 1 << 20)
    held_out = [piece.text for piece, marked in corpus.read() if corpus.is_validation(marked)]
    assert held_out == [f"document {i}" for i in range(70)][every - 1 :: every]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_of_few_documents_the_last_tenth_of_the_text_is(count: int) -> None:
    documents = [f"{i}" * 100 for i in range(count)]
    train, validation = split(documents, 90 * count)
    assert "".join(train) + "".join(validation) == "".join(documents)
    assert len("".join(validation)) == 10 * count


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
        (b"caf\xe9", "utf-8", r"text\.txt: not utf-8: byte 0xe9 at offset 3; .* \(`encoding` cp1252 is"),
        (b"\x89PNG\0\0", "utf-8", r"text\.txt: a binary file \(zero byte at offset 4\)"),
        (b"a", "utf-99", "`encoding`: 'utf-99' is not a known encoding"),
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
    assert read_documents((file,), ReaderConfig("utf-16")) == ["été"]


def test_suffixes_in_capital_letters_and_linked_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, linked = tmp_path / "texts", tmp_path / "elsewhere"
    for folder in (texts, linked):
        folder.mkdir()
    (texts / "UP.TXT").write_text("un")
    (linked / "b.Txt").write_text("deux")
    (texts / "link").symlink_to(linked, target_is_directory=True)
    (linked / "round").symlink_to(texts, target_is_directory=True)
    assert [file.name for file in text_files(texts)] == ["UP.TXT", "b.Txt"]
    (texts / "a.jsonl").touch()
    (texts / "b.csv").touch()
    assert [file.name for file in text_files(texts)] == ["UP.TXT", "b.Txt"] == [f.name for f in text_files(texts)]
    told = f"{texts}: 2 files of records left out (as a.jsonl); name them to read them, too\n"
    assert capsys.readouterr().out == told


def test_a_pattern_takes_no_file_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("un")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("deux")
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in text_files(tmp_path / "**" / "*.txt")] == ["a.txt", "b.txt"]
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "d.txt").write_text("trois")
    assert [file.name for file in text_files(tmp_path / "*.txt")] == ["a.txt", "d.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("un")
    (tmp_path / "closed").mkdir(0o000)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        text_files(tmp_path)


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: not a regular file; .* save it as a file first$"):
        text_files(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"abc", "utf-16", "text.txt: not utf-16 (UTF-16 stream does not start with BOM); if the file is in another"),
        (b"616263", "hex", "--encoding: 'hex' is not a known encoding"),
        (b"YWJj", "base64", "--encoding: 'base64' is not a known encoding"),
        (b"+2AA-", "utf-7", "--encoding: 'utf-7' is not a known encoding"),
        (b"\\ud800", "unicode_escape", "--encoding: 'unicode_escape' is not a known encoding"),
        (b"", "", "--encoding: an empty name"),
        (b"a\0b", "latin1", "text.txt: a binary file (zero byte at offset 1), not text"),
        (b"a\0b", "L1", "text.txt: a binary file (zero byte at offset 1), not text"),
        ("été".encode("utf-16"), "utf-8", "text.txt: not utf-8: it begins as utf-16 does; --encoding utf-16 reads it"),
        ("été".encode("utf-32"), "utf-8", "text.txt: not utf-8: it begins as utf-32 does; --encoding utf-32 reads it"),
        (
            "été".encode("utf-32"),
            "utf-16",
            "text.txt: not utf-16: it begins as utf-32 does; --encoding utf-32 reads it",
        ),
        (
            "mon cœur".encode("cp1252"),
            "latin-1",
            "text.txt: not latin-1: byte 0x9c at offset 5 is no character there; --encoding cp1252, that of",
        ),
        ("œ—ß".encode("utf-16"), "UTF8", "text.txt: not UTF8: it begins as utf-16 does; --encoding utf-16 reads it"),
    ],
)
@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_wrong_encodings_are_one_line(
    call: Call, tmp_path: Path, content: bytes, encoding: str, message: str, in_memory: int
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    flags = ["--data", file, "--encoding", encoding, "--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    code, _, err = call("prepare", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert err.removeprefix("prepare: ").removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_names_of_files_need_not_be_utf_8(call: Call, tmp_path: Path, fables: Path, in_memory: int) -> None:
    file = tmp_path / os.fsdecode(b"th\xe9\xe2tre.txt")
    try:
        file.write_bytes(fables.read_bytes())
    except OSError:
        pytest.skip("the file system wants UTF-8")
    os.utime(file, (1, 1))
    flags = ["--data", file, "--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    code, out, err = call("prepare", *flags)
    assert (code, err) == (0, "")
    assert out.endswith("Ready: train with the same flags starts at once\n")
    if not in_memory:
        assert "from the cache, nothing has changed" in call("prepare", *flags)[1]
    small = ["--max-iters", 1, "--n-layer", 1, "--n-embd", 8, "--n-head", 2, "--block-size", 8, "--device", "cpu"]
    code, _, err = call("train", *flags, *small, "--out-dir", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "th\\udce9\\udce2tre.txt\t" in (tmp_path / "out" / "validation.txt").read_text(encoding="utf-8")
    records = file.with_suffix(".jsonl")
    records.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in split_documents(fables.read_text("utf-8")))
    )
    assert call("prepare", "--data", records)[1].endswith("Ready: train with the same flags starts at once\n")
