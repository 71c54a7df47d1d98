"""What is on disk after a kill at any moment, tried by cutting the files everywhere."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer import files
from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from mini_transformer.synthesis.cleaning import plain
from mini_transformer.synthesis.store import Store, difference
from tests.synthesis.conftest import check_outputs, records

SETTINGS = {"--model": "m", "--seed": 1}


def fill(store: Store, numbers: range) -> None:
    """A batch: even numbers are kept, odd ones dropped."""
    kept = [{"number": n, "text": f"Texte {n}\n\nde deux strophes"} for n in numbers if n % 2 == 0]
    dropped = [{"reason": "cut", "number": n} for n in numbers if n % 2]
    store.progress.kept += len(kept)
    store.progress.next = numbers.stop
    store.commit(kept, dropped)


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(4))
    store.close()
    again = Store(out, SETTINGS, 0)
    assert (again.progress.next, again.progress.kept) == (4, 2)
    fill(again, range(4, 8))
    again.close()
    check_outputs(out, [0, 2, 4, 6])


def test_a_torn_batch_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(3))
    before = {path: path.read_bytes() for path in (store.samples, store.drops, out)}
    run = store.run.read_bytes()
    fill(store, range(3, 6))
    store.close()
    after = {path: path.read_bytes() for path in before}
    for path in (store.samples, store.drops):  # one torn, the one written before it whole, what comes after not begun
        for size in range(len(before[path]), len(after[path]) + 1):
            store.run.write_bytes(run)
            for other in before:
                other.write_bytes(before[other])
            path.write_bytes(after[path][:size])
            Store(out, SETTINGS, 0).close()
            assert {p: p.read_bytes() for p in before} == before
    for size in range(len(after[out])):  # killed after run.json: only the text is behind
        other = Store(out, SETTINGS, 0)
        if size == 0:
            fill(other, range(3, 6))
        other.close()
        out.write_bytes(after[out][:size])
        Store(out, SETTINGS, 0).close()
        assert {p: p.read_bytes() for p in before} == after


@given(st.lists(st.text().map(plain).filter(str.strip), max_size=5))
@settings(deadline=None, max_examples=40)
def test_any_texts_come_back_document_by_document(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    out = folder / "mix.txt"
    store = Store(out, SETTINGS, 0)
    store.progress.kept = len(texts)
    store.commit([{"number": i, "text": text} for i, text in enumerate(texts)], [])
    store.close()
    assert [record["text"] for record in records(out)] == texts
    if texts:
        assert read_documents((out,)) == texts
    Store(out, SETTINGS, 0).close()
    shutil.rmtree(folder)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(2))
    store.close()
    content = out.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(--seed: 1 there, 2 here\)"):
        Store(out, SETTINGS | {"--seed": 2}, 0)
    assert out.read_bytes() == content
    new = Store(out, SETTINGS | {"--seed": 2}, 0, overwrite=True)
    assert out.read_bytes() == content  # until there is something to put in its place
    new.commit([], [])
    new.close()
    assert out.read_bytes() == b""


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there, but no run of ours"):
        Store(out, SETTINGS, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mix.txt"]
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder, not a file"):
        Store(tmp_path, SETTINGS, 0)
    with pytest.raises(UserError, match="cannot be written"):
        Store(out / "below" / "mix.txt", SETTINGS, 0)


def test_what_was_changed_by_hand_is_told(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(4))
    store.close()
    text, whole = out.read_bytes(), store.samples.read_bytes()
    for other in (text + b"Mon texte\n", text[5:], text.replace(b"Texte 0", b"Texte zero")):
        out.write_bytes(other)
        with pytest.raises(
            UserError, match=r"mix\.txt: changed by hand \(it is written anew from mix\.jsonl\): move your"
        ):
            Store(out, SETTINGS, 0)
        assert out.read_bytes() == other
    out.unlink()
    Store(out, SETTINGS, 0).close()
    assert out.read_bytes() == text
    store.samples.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="9 bytes are missing at its end"):
        Store(out, SETTINGS, 0)
    for edited in (
        whole.replace(b'"number": 2', b'"number": 0'),
        whole.replace(b"Texte 0", b"Le premier texte"),
        whole.replace(b'"text"', b'"texte"'),
    ):
        store.samples.write_bytes(edited)
        with pytest.raises(UserError, match="changed by hand"):
            Store(out, SETTINGS, 0)
        assert store.samples.read_bytes() == edited
    store.samples.write_bytes(whole)
    store.run.write_text(json.dumps({"settings": SETTINGS}))
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        Store(out, SETTINGS, 0)


def test_two_processes_do_not_write_the_same_samples(tmp_path: Path) -> None:
    first = Store(tmp_path / "mix.txt", SETTINGS, 0)
    with pytest.raises(UserError, match="another process is writing"):
        Store(tmp_path / "mix.txt", SETTINGS, 0)
    first.close()
    Store(tmp_path / "mix.txt", SETTINGS, 0).close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_process_takes_away_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one opened it first, got nothing, and removes it between our opening and our locking."""
    samples = tmp_path / "mix.jsonl"
    lock = files.try_lock
    monkeypatch.setattr("mini_transformer.synthesis.store.try_lock", lambda file: samples.unlink() or lock(file))
    with pytest.raises(UserError, match="another process is writing"):
        Store(tmp_path / "mix.txt", SETTINGS, 0)


def test_a_killed_overwriting_leaves_the_old_run_or_an_empty_one(tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(4))
    store.close()
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    new = Store(out, SETTINGS, 0, overwrite=True)
    new._begin()
    new.close()
    empty = store.run.read_bytes()
    for path in old:  # killed after the text
        path.write_bytes(b"" if path == out else old[path])
    Store(out, SETTINGS, 0).close()
    assert {path: path.read_bytes() for path in old} == old
    out.write_bytes(b"")  # killed after run.json
    store.run.write_bytes(empty)
    other = Store(out, SETTINGS | {"--seed": 2}, 0)  # nothing is there that other settings could disagree with
    fill(other, range(2))
    other.close()
    check_outputs(out, [0])


def test_the_record_of_the_dropped_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mix.txt"
    store = Store(out, SETTINGS, 0)
    fill(store, range(4))
    store.close()
    store.drops.unlink()
    Store(out, SETTINGS, 0).close()
    assert capsys.readouterr().out.startswith(f"Note: {store.drops}: ")
    again = Store(out, SETTINGS, 0)
    fill(again, range(4, 8))
    again.close()
    Store(out, SETTINGS, 0).close()
    assert capsys.readouterr().out == ""
    check_outputs(out, [0, 2, 4, 6])
    assert [json.loads(line)["number"] for line in store.drops.read_bytes().splitlines()] == [5, 7]


def test_a_folder_of_a_model_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder/model/", "./folder/model", str(tmp_path / "folder" / "model")):
        assert difference({"--model": "folder/model"}, {"--model": name}) is None
    assert difference({"--model": "folder/model", "--seed": 1}, {"--model": "model", "--seed": 2}) == "--model"
