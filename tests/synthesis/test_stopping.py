"""Runs that end before their time: nothing that was there is lost, and what is told helps."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, spawn
from tests.synthesis.conftest import check_outputs, flags, lines, records, rejected
from tests.synthesis.server import Server

Call = Callable[..., tuple[int, str, str]]


def words(server: Server, out: Path, *more: object) -> list[object]:
    return ["--out", out, "--engine", "openai", "--base-url", server.url, "--filters", "none", *more]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_overwriting_waits_until_there_is_something_new(server: Server, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    assert call("generate-data", *words(server, out, "--samples", 6))[0] == 0
    before = everything(tmp_path)
    code, _, err = call("generate-data", *flags(tmp_path / "nosuch" / "folder", out, "--overwrite"))
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no such folder" in err
    assert everything(tmp_path) == before
    server.plan = lambda seed, nth: "status 404"
    assert call("generate-data", *words(server, out, "--samples", 3, "--seed", 2, "--overwrite"))[0] == 2
    assert everything(tmp_path) == before
    server.plan = lambda seed, nth: "answer"
    assert call("generate-data", *words(server, out, "--samples", 3, "--seed", 2, "--overwrite"))[0] == 0
    check_outputs(out, range(3))
    assert lines(out)[0]["settings"]["seed"] == 2


def test_a_run_that_got_nothing_binds_nobody(server: Server, call: Call, tmp_path: Path) -> None:
    """A misspelt model is found out by the first request; the corrected command must not be refused."""
    out = tmp_path / "mix.txt"
    server.plan = lambda seed, nth: "status 404"
    assert call("generate-data", *words(server, out, "--model", "quwen", "--samples", 3))[0] == 2
    assert not list(tmp_path.iterdir())
    server.plan = lambda seed, nth: "answer"
    assert call("generate-data", *words(server, out, "--model", "qwen", "--samples", 3))[0] == 0
    check_outputs(out, range(3))


def test_a_run_that_stops_tells_what_it_has(server: Server, call: Call, tmp_path: Path) -> None:
    server.text = lambda seed: "" if seed % 2 else f"Texte numéro {seed}."
    server.plan = lambda seed, nth: "status 400" if len(server.requests) > 24 else "answer"
    out = tmp_path / "mix.txt"
    code, told, _ = call("generate-data", *words(server, out, "--samples", 500, "--batch", 1))
    assert code == 2
    kept = len(records(out))
    assert told.endswith(f"{kept} of 500 kept, 24 asked; rejected: empty {24 - kept} ({(24 - kept) / 24:.1%})\n")


def test_ctrl_c_while_overwriting(server: Server, call: Call, tmp_path: Path) -> None:
    """The same command would overwrite what it is told to go on with."""
    out = tmp_path / "mix.txt"
    assert call("generate-data", *words(server, out, "--samples", 3, "--seed", 2))[0] == 0
    server.requests.clear()
    server.plan = lambda seed, nth: "answer" if len(server.requests) != 20 else str(os.kill(os.getpid(), signal.SIGINT))
    code, told, err = call("generate-data", *words(server, out, "--samples", 5000, "--overwrite", "--batch", 1))
    assert (code, err) == (130, "")
    kept = len(records(out))
    assert kept >= 19
    assert f"\n{kept:,} of 5,000 kept, {kept:,} asked\n" in told
    assert told.endswith("The same command without --overwrite goes on from here.\n")
    assert call("generate-data", *words(server, out, "--samples", kept + 2))[0] == 0
    check_outputs(out, range(kept + 2))


def test_a_hopeless_run_is_told_early_and_not_started_again(server: Server, call: Call, tmp_path: Path) -> None:
    server.text = lambda seed: f"The moon is a cake that the night eats, and {seed} is a number. " * 9
    more = ["--samples", 5000, "--filters", "language", "--retries", 1]
    code, _, err = call("generate-data", *words(server, tmp_path / "mix.txt", *more))
    assert code == 2
    assert "given up after 2 attempts each (rejected: language" in err
    assert err.endswith("more --retries, or another --model or other --filters with another --out may help\n")
    asked = len(server.requests)
    assert asked < 100
    code, told, again = call("generate-data", *words(server, tmp_path / "mix.txt", *more))
    assert (code, told, again) == (2, "", err)
    assert len(server.requests) == asked


def test_the_likeliest_text_is_asked_for_once(server: Server, call: Call, tmp_path: Path) -> None:
    server.text = lambda seed: "" if seed % 4 == 1 else f"Texte numéro {seed}."
    out = tmp_path / "mix.txt"
    assert call("generate-data", *words(server, out, "--samples", 20, "--temperature", 0))[0] == 0
    assert len(records(out)) == 20
    assert rejected(out)
    assert {record["attempt"] for record in records(out) + rejected(out)} == {0}


def test_the_summary_of_a_finished_run_is_shown_again(server: Server, call: Call, tmp_path: Path) -> None:
    """Such as after a kill between the last batch and the summary."""
    command = words(server, tmp_path / "mix.txt", "--samples", 6)
    code, told, _ = call("generate-data", *command)
    assert code == 0
    summary = told[told.index("\n\n- 6 samples kept of 6 asked for") :]
    before = everything(tmp_path)
    code, told, _ = call("generate-data", *command)
    assert code == 0
    assert "6 samples are there already; nothing to do" in told
    assert told.endswith(summary)
    assert everything(tmp_path) == before


def test_shards_that_are_missing_are_written_after_merging(server: Server, call: Call, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{i}.txt" for i in (1, 3)]
    for i, part in zip((1, 3), parts, strict=True):
        assert call("generate-data", *words(server, part, "--samples", 20, "--shard", f"{i}/3"))[0] == 0
    whole = tmp_path / "mix.txt"
    assert call("generate-data", "--out", whole, "--merge", *parts)[0] == 0
    assert call("generate-data", *words(server, whole, "--samples", 20))[0] == 0
    check_outputs(whole, range(20))


def test_parts_that_overlap_are_counted_once(server: Server, call: Call, tmp_path: Path) -> None:
    """Such as a part, and a copy of it from before it went on."""
    server.text = lambda seed: "" if seed % 3 == 0 else f"Texte numéro {seed}."
    part, early = tmp_path / "part.txt", tmp_path / "early" / "part.txt"
    early.parent.mkdir()
    for samples in (8, 20):
        assert call("generate-data", *words(server, part, "--samples", samples))[0] == 0
        if samples == 8:
            for suffix in (".txt", ".jsonl"):
                shutil.copy(part.with_suffix(suffix), early.with_suffix(suffix))
    refused = rejected(part)
    assert refused
    whole = tmp_path / "mix.txt"
    code, told, err = call("generate-data", "--out", whole, "--merge", early, part, part)
    assert code == 0, err
    assert f"20 samples kept of {20 + len(refused)} asked for" in told
    assert f"written: {7 * (20 + len(refused))} tokens" in told
    assert f"rejected: empty {len(refused)} (" in told
    by_number = sorted(refused, key=lambda record: (record["number"], record["attempt"]))
    assert rejected(whole) == by_number
    check_outputs(whole, [record["number"] for record in sorted(records(part), key=lambda record: record["number"])])

    # A part without its end, as after a kill, has the samples of its whole batches.
    data, kept = part.with_suffix(".jsonl").read_bytes(), len(records(part))
    part.with_suffix(".jsonl").write_bytes(data[:-100])
    code, told, err = call("generate-data", "--out", whole, "--overwrite", "--merge", part)
    assert code == 0, err
    assert kept - 8 <= len(records(whole)) < kept
    for damaged in (data.replace(b'"number"', b'"no"'), data.replace(b'"settings"', b'"set"'), data[500:], b""):
        part.with_suffix(".jsonl").write_bytes(damaged)
        before = everything(tmp_path)
        code, _, err = call("generate-data", "--out", whole, "--overwrite", "--merge", part)
        assert code == 2
        assert err.startswith(f"generate-data: {part.with_suffix('.jsonl')}: changed by hand, or no run of ours")
        assert everything(tmp_path) == before


def test_a_merge_that_was_killed_is_no_run(server: Server, call: Call, tmp_path: Path) -> None:
    part, whole = tmp_path / "part.txt", tmp_path / "mix.txt"
    assert call("generate-data", *words(server, part, "--samples", 6))[0] == 0
    killed = (  # in the middle of the first line that it writes
        "import os, sys; from mini_transformer import cli; from mini_transformer.synthesis import store\n"
        "write = store.Path.write_bytes\n"
        "store.Path.write_bytes = lambda file, data: (write(file, data[:100]), os.kill(os.getpid(), 9))\n"
        "cli.run('generate-data', sys.argv[1:])"
    )
    assert spawn(["-c", killed, "--out", whole, "--merge", part], ROOT).wait(60) == -signal.SIGKILL
    assert not whole.with_suffix(".jsonl").exists()
    assert 100 in [path.stat().st_size for path in tmp_path.iterdir()]
    code, _, err = call("generate-data", "--out", whole, "--merge", part)
    assert code == 0, err
    check_outputs(whole, range(6))
