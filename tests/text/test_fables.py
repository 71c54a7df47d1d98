"""What the corpus promises, counted."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from mini_transformer.text.documents import split_documents
from mini_transformer.text.fables import find_fables, join_fables, load_fables
from mini_transformer.verse.scansion import analyse
from tests.conftest import FABLES, ROOT

Call = Callable[..., tuple[int, str, str]]
TEXT = FABLES.read_text(encoding="utf-8")
# Lines that are repeated on purpose: refrains.
REFRAINS: set[str] = set()
# Verses that the checker does not find classical although they are, or that break the metre on purpose.
EXCEPTIONS: set[str] = set()


def test_size_and_variety() -> None:
    fables = load_fables()
    assert len(fables) >= 150
    assert len(TEXT.encode()) >= 120_000
    assert len({fable.title for fable in fables}) == len(fables)
    assert len({fable.protagonists[0] for fable in fables}) >= 60
    assert len({fable.moral for fable in fables}) >= 60
    assert len({fable.form for fable in fables}) >= 8
    openings = Counter(fable.text.split("\n\n", 1)[1].removeprefix("« ").split()[0] for fable in fables)
    assert openings.most_common(1)[0][1] <= len(fables) / 5


def test_layout() -> None:
    assert [fable.text for fable in load_fables()] == split_documents(TEXT)
    assert join_fables(load_fables()) == TEXT
    for fable in load_fables():
        assert fable.title.isupper()
        assert fable.text.startswith(f"{fable.title}\n\n")
        assert 12 <= sum(bool(line) for line in fable.text.splitlines()[2:]) <= 40, fable.title
        assert all(fable.protagonists)
        assert fable.moral


def test_typography() -> None:
    assert not re.findall(r"[’ʼ`\"“”\u00a0\u202f\t]", TEXT)
    assert not re.findall(r"\.\.\.|[ ]\n| ,| \.|[^\s…—][!?:;]|«[^ ]|[^ ]»|[cs]oeu|[ \n]oeu|noeud|oeil", TEXT)
    assert TEXT.count("«") == TEXT.count("»")
    assert set(TEXT) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZàâæçéèêëîïôùûüœÀÂÇÉÈÊËÎÏÔÙÛŒ «»',;:.!?…—-()\n"
    )
    indents = {len(line) - len(line.lstrip(" ")) for line in TEXT.splitlines()}
    assert indents <= {0, 8}


def test_verse() -> None:
    report = analyse(TEXT)
    lines = [verse.text.strip() for verse in report.verses]
    repeated = {line for line, count in Counter(lines).items() if count > 1}
    assert repeated == REFRAINS
    astray = {verse.text.strip() for verse in report.verses if verse.metre is None}
    assert len(astray | EXCEPTIONS) <= len(lines) / 10
    assert astray <= EXCEPTIONS
    assert report.rhymed >= 0.98
    assert report.settled >= 0.95
    assert report.distinct_rhymes >= 150
    assert sum(report.metres.values()) >= 3000


def test_validation_is_a_tenth_and_never_changes() -> None:
    fables = load_fables()
    kept = [fable.title for fable in fables if fable.validation]
    assert kept == (ROOT / "mini_transformer" / "text" / "corpus" / "validation.txt").read_text("utf-8").splitlines()
    assert round(len(fables) / 10) == len(kept)


def test_fables_are_found_by_their_words() -> None:
    fables = load_fables()
    for fable in fables:
        assert fable in find_fables(fables, fable.title.lower())
    assert find_fables(fables, "zzz") == []


def test_the_command(call: Call) -> None:
    code, out, _ = call("corpus")
    assert code == 0
    fables = load_fables()
    assert all(fable.title in out for fable in fables)
    assert call("corpus", fables[3].title)[1].startswith(fables[3].text)
    parts = [call("corpus", "--split", part)[1] for part in ("train", "validation")]
    assert len(split_documents(parts[0])) + len(split_documents(parts[1])) == len(fables)
    assert call("corpus", "--split", "all")[1] == TEXT
    code, _, err = call("corpus", "zzzz")
    assert code == 2
    assert err.startswith("corpus: 'zzzz': no fable with these words")


@pytest.mark.slow
def test_no_eight_words_stand_elsewhere() -> None:
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the texts to compare with are not there")
    command = [sys.executable, str(ROOT / "tools" / "originality.py"), str(data)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env={"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stdout
