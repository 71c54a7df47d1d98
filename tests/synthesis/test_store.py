"""What is on disk after a kill at any moment, tried by cutting the files everywhere."""

import re
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer import files
from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from mini_transformer.synthesis import config
from mini_transformer.synthesis.cleaning import plain
from mini_transformer.synthesis.config import SynthesisConfig
from mini_transformer.synthesis.store import Record, Store
from tests.conftest import ROOT, spawn
from tests.synthesis.conftest import check_outputs, records, rejected

SETTINGS = {"model": "m", "seed": 1}


def sample(number: int, text: str, reason: str | None = None) -> Record:
    return {"number": number, "attempt": 0, "rejected": reason, "tokens": 5, "kind": "fable", "text": text}


def fill(store: Store, numbers: range) -> None:
    """A batch: even numbers are kept, odd ones rejected."""
    store.commit([sample(n, f"Texte {n}\n\nde deux strophes", "truncated" if n % 2 else None) for n in numbers])


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "mix.txt"
    store = Store(out, SETTINGS)
    fill(store, range(4))
    store.close()
    again = Store(out, SETTINGS)
    assert (again.progress.next, len(again.progress.kept), again.progress.open) == (4, 2, {1: 1, 3: 1})
    assert (again.progress.asked, again.progress.tokens, again.progress.rejected) == (4, 20, {"truncated": 2})
    fill(again, range(4, 8))
    again.close()
    check_outputs(out, [0, 2, 4, 6])
    assert [record["number"] for record in rejected(out)] == [1, 3, 5, 7]


def test_what_was_in_flight_is_asked_for_first(tmp_path: Path) -> None:
    """A server answers in any order: of a shard's numbers, those that were passed over are still open."""
    store = Store(tmp_path / "mix.txt", SETTINGS, (1, 3))
    assert [store.progress.draw() for _ in range(4)] == [1, 4, 7, 10]
    store.commit([sample(7, "Sept"), sample(4, "Quatre", "truncated")])
    store.close()
    again = Store(tmp_path / "mix.txt", SETTINGS, (1, 3))
    assert (again.progress.open, again.progress.next) == ({1: 0, 4: 1}, 10)
    again.close()


def test_a_torn_batch_is_removed_wherever_it_was_torn(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS)
    fill(store, range(3))
    before = {path: path.read_bytes() for path in (store.samples, out)}
    fill(store, range(3, 6))
    store.close()
    after = {path: path.read_bytes() for path in before}
    for size in range(len(before[store.samples]), len(after[store.samples])):  # the text of it is not begun
        store.samples.write_bytes(after[store.samples][:size])
        out.write_bytes(before[out])
        Store(out, SETTINGS).close()
        assert {path: path.read_bytes() for path in before} == before
    for size in range(len(after[out])):  # killed after the marker: only the text is behind
        store.samples.write_bytes(after[store.samples])
        out.write_bytes(after[out][:size])
        Store(out, SETTINGS).close()
        assert {path: path.read_bytes() for path in before} == after


@given(st.lists(st.text().map(plain).filter(str.strip), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_any_texts_come_back_document_by_document(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    out = folder / "mix.txt"
    store = Store(out, SETTINGS)
    store.commit([sample(i, text) for i, text in enumerate(texts)])
    store.close()
    assert [record["text"] for record in records(out)] == texts
    assert read_documents((out,)) == texts
    again = Store(out, SETTINGS)
    assert again.progress.kept == records(out)
    again.close()
    shutil.rmtree(folder)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS)
    fill(store, range(2))
    store.close()
    content = out.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(`seed`: 1, not 2\)"):
        Store(out, SETTINGS | {"seed": 2})
    assert out.read_bytes() == content
    new = Store(out, SETTINGS | {"seed": 2}, overwrite=True)
    assert out.read_bytes() == content  # until there is something to put in its place
    new.commit([sample(0, "Neuf")])
    new.close()
    check_outputs(out, [0])
    assert out.read_bytes() == b"Neuf\n\n\n"


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there, but no run of ours"):
        Store(out, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mix.txt"]
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder, not a file"):
        Store(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="cannot be written"):
        Store(out / "below" / "mix.txt", SETTINGS)
    (tmp_path / "other.jsonl").write_text('{"text": "mine"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: changed by hand, or no run of ours"):
        Store(tmp_path / "other.txt", SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix.txt", "other.jsonl"]


def test_what_was_changed_by_hand_is_told(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS)
    fill(store, range(4))
    store.close()
    text, whole = out.read_bytes(), store.samples.read_bytes()
    for other in (text + b"Mon texte\n", text[5:], text.replace(b"Texte 0", b"Texte zero")):
        out.write_bytes(other)
        with pytest.raises(UserError, match=r"mix\.txt: changed by hand \(it is derived from mix\.jsonl\): move your"):
            Store(out, SETTINGS)
        assert out.read_bytes() == other
    out.unlink()
    Store(out, SETTINGS).close()
    assert out.read_bytes() == text
    without_a_line = b"".join(line for line in whole.splitlines(True) if b"Texte 1" not in line)
    for edited in (
        whole[:-9],
        whole.replace(b'"number": 2', b'"number": 0'),
        whole.replace(b"Texte 0", b"Le premier texte"),
        whole.replace(b'"text"', b'"texte"'),
        whole.replace(b'"tokens": 5', b'"tokens": "5"'),
        whole.replace(b'"settings"', b'"setting"'),
        whole[whole.index(b"\n") + 1 :],
        whole[:40] + b"}" + whole[40:],
        without_a_line,
        whole.replace(b'"number": 2', b'"number": 7'),
        whole.replace(b'"tokens": 5', b'"tokens": 1' + b"0" * 400, 1),
        whole.replace(b'"tokens": 5', b'"tokens": 1' + b"0" * 5000, 1),
        whole.replace(b'"tokens": 5', b'"tokens": ' + b"[" * 100_000 + b"]" * 100_000, 1),
        whole.replace(b'"tokens": 5', b'"tokens": 4', 1),
        whole.replace(b'"kind": "', b'"kind": ["', 1),
    ):
        store.samples.write_bytes(edited)
        with pytest.raises(UserError, match="changed by hand"):
            Store(out, SETTINGS)
        assert store.samples.read_bytes() == edited
        assert out.read_bytes() == text


def test_numbers_and_types_are_checked_where_there_is_no_checksum(tmp_path: Path) -> None:
    """As in the samples of an earlier version."""
    store = Store(tmp_path / "mix.txt", SETTINGS)
    fill(store, range(4))
    store.close()
    whole = re.sub(rb', "crc32": \d+', b"", store.samples.read_bytes())
    store.samples.write_bytes(whole)
    Store(tmp_path / "mix.txt", SETTINGS).close()
    for old, new in ((b'"number": 3', b'"number": 4000000000'), (b'"tokens": 5', b'"tokens": 1' + b"0" * 400)):
        store.samples.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="changed by hand"):
            Store(tmp_path / "mix.txt", SETTINGS)


def test_two_processes_do_not_write_the_same_samples(tmp_path: Path) -> None:
    first = Store(tmp_path / "mix.txt", SETTINGS)
    with pytest.raises(UserError, match="another process is writing"):
        Store(tmp_path / "mix.txt", SETTINGS)
    assert (tmp_path / "mix.txt").exists()
    first.close()
    Store(tmp_path / "mix.txt", SETTINGS).close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_process_takes_away_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one opened it first, got nothing, and removes it between our opening and our locking."""
    out = tmp_path / "mix.txt"
    lock = files.try_lock
    monkeypatch.setattr("mini_transformer.synthesis.store.try_lock", lambda file: out.unlink() or lock(file))
    with pytest.raises(UserError, match="another process is writing"):
        Store(out, SETTINGS)


def test_a_killed_overwriting_leaves_the_old_run_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS)
    fill(store, range(4))
    store.close()
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = SETTINGS | {"seed": 2}
    for killed in ("replacing", "_append"):  # before the samples are replaced, and before the text follows
        with monkeypatch.context() as context:
            context.setattr(f"mini_transformer.synthesis.store.{killed}", lambda *_: 1 / 0)
            new = Store(out, other, overwrite=True)
            with pytest.raises(ZeroDivisionError):
                fill(new, range(2))
            new.close()
        assert out.read_bytes() == b""
        Store(out, SETTINGS if killed == "replacing" else other).close()
        if killed == "replacing":
            assert {path: path.read_bytes() for path in old} == old
    check_outputs(out, [0])


def test_a_disk_that_is_full_loses_nothing_that_was_there(tmp_path: Path) -> None:
    """At whichever byte: the process may not write files beyond a size, which is how a full disk looks to it."""
    code = """
import resource, signal, sys
from pathlib import Path
from tests.synthesis.test_store import SETTINGS, Store, fill
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path("mix.txt"), SETTINGS)
fill(store, range(3))
size = store.samples.stat().st_size
for more in (0, 1, 150, 300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))
    try:
        fill(store, range(3, 6))
    except Exception as error:
        print(error)
    store.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store = Store(Path("mix.txt"), SETTINGS)
    assert (len(store.progress.kept), store.samples.stat().st_size) == (2, size)
store.close()
"""
    process = spawn(["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], tmp_path)
    told, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert told == "`out`: mix.txt cannot be written (File too large); the samples so far are kept\n" * 4
    check_outputs(tmp_path / "mix.txt", [0, 2])


def test_ctrl_c_waits_until_a_batch_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS)
    replacing = files.replacing
    monkeypatch.setattr(
        "mini_transformer.synthesis.store.replacing", lambda path: (signal.raise_signal(2), replacing(path))[1]
    )
    with pytest.raises(KeyboardInterrupt):
        fill(store, range(4))
    store.close()
    check_outputs(out, [0, 2])


def test_a_folder_of_a_model_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "model").mkdir(parents=True)
    names = ("folder/model/", "./folder/model", str(tmp_path / "folder" / "model"), "folder/model")
    recorded = [config.settings(SynthesisConfig(model=name), {}) for name in names]
    assert all(settings == recorded[0] for settings in recorded)
    assert config.settings(SynthesisConfig(model="model"), {})["model"] == "model"
