"""`mini-transformer verse`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mini_transformer.commands.verse import LEGEND
from tests.conftest import FABLES

Call = Callable[..., tuple[int, str, str]]
TEXT = """LE CHÊNE ET LE HÉRISSON

Un grillon, certain soir, chantait près d'un ruisseau;
        Un loup passa, vit le museau,
Et, ne sachant que faire en si belle prairie,
        Dit: Chantez donc, je vous en prie.


L'ÉTÉ

La poule un matin s'en alla
        Sans savoir pourquoi au marché de la ville.
"""
SUMMARY = """
6 verses: 83.3% in a classical metre (66.7% in one that a verse within four also has), 66.7% rhymed, 4 distinct rhymes
verses of each metre: 8: 3, 12: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "fables.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_listing(call: Call, file: Path) -> None:
    code, out, err = call("verse", file)
    assert (code, err) == (0, "")
    assert out.startswith(LEGEND)
    assert out.endswith(SUMMARY)
    lines = out.splitlines()
    assert all(line in lines for line in ("LE CHÊNE ET LE HÉRISSON", "L'ÉTÉ"))
    assert "     3     12    12       4  o          Un grillon, certain soir, chantait près d'un ruisseau;" in lines
    assert lines[-4].split()[:5] == ["12", "11", "-", "-", "il@"]
    assert lines[-4].endswith("Sans savoir pourquoi au marché de la ville.          METRE RHYME")


def test_every_mark_and_column_is_explained(call: Call, file: Path) -> None:
    legend, listing = call("verse", file)[1].split("\n\n", 1)
    names = {line.split()[0] for line in legend.splitlines()}
    columns = listing.splitlines()[0].split()
    assert columns == ["line", "counts", "metre", "partner", "sounds", "text"]
    assert names == {*columns, "METRE", "RHYME", "alone?"} - {"text"}


def test_faults_alone(call: Call, file: Path) -> None:
    code, out, _ = call("verse", file, "--faults")
    assert code == 0
    assert "L'ÉTÉ" in out
    assert "RHYME\n" in out
    assert "Sans savoir pourquoi" in out
    assert "HÉRISSON" not in out
    assert "grillon" not in out
    assert out.endswith(SUMMARY)


def test_the_embedded_fables(call: Call) -> None:
    code, out, _ = call("verse", FABLES)
    assert code == 0
    assert sum("METRE" in line for line in out.splitlines()) == 1  # in the legend


def test_digits_and_single_verses(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Le 12 mai\nLe renard sort du bois\n", encoding="utf-8")
    rows = [line for line in call("verse", tmp_path / "a.txt")[1].splitlines() if line.startswith("     ")]
    assert rows[0].split()[:3] == ["1", "?", "-"]
    assert rows[0].endswith("METRE RHYME")
    assert rows[1].endswith("alone? RHYME")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_endings(call: Call, file: Path, tmp_path: Path, encoding: str, newline: str) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes(TEXT.replace("\n", newline).encode(encoding))
    flags = [] if encoding == "utf-8-sig" else ["--encoding", encoding]
    assert call("verse", other, *flags) == call("verse", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no verse found"),
        (b"\n \nLA FABLE\n\n-----\n", "no verse found"),
        ("L'été".encode("latin-1"), "not utf-8: byte 0xe9 at offset 2; if the file is in another encoding"),
        (b"PK\0\0", "a binary file"),
    ],
)
def test_refused_files(call: Call, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    code, out, err = call("verse", file)
    assert (code, out) == (2, "")
    assert err.startswith(f"verse: {file}: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: FILE"),
        (["."], ".: is a folder, not a text file"),
        ([FABLES, "--fault"], "--fault: unknown flag; did you mean --faults?"),
        ([FABLES, "--encoding", "klingon"], "--encoding: 'klingon' is not a known encoding"),
    ],
)
def test_refused_flags(call: Call, flags: list[object], message: str) -> None:
    code, out, err = call("verse", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"verse: {message}")
    assert err.count("\n") == 1
