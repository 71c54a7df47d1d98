"""Runs that end before their time: nothing that was there is lost, and what is told helps."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, spawn
from tests.synthesis.conftest import check_outputs, flags, records
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
    assert json.loads((tmp_path / "mix.run.json").read_text(encoding="utf-8"))["settings"]["--seed"] == 2


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
    assert told.endswith(f"{kept} of 500 kept, 24 asked; dropped: empty {24 - kept} ({(24 - kept) / 24:.1%})\n")


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
    assert "given up after 2 attempts each (dropped: language" in err
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
    drops = [json.loads(line) for line in (tmp_path / "mix.drops.jsonl").read_text(encoding="utf-8").splitlines()]
    assert drops
    assert {record["attempt"] for record in records(out) + drops} == {0}


def test_a_summary_that_a_kill_prevented_is_made_up_for(server: Server, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    command = words(server, out, "--samples", 6)
    assert call("generate-data", *command)[0] == 0
    page, picture = tmp_path / "mix.summary.md", tmp_path / "mix.summary.png"
    before = page.read_bytes()
    picture.unlink()
    code, told, _ = call("generate-data", *command)
    assert code == 0
    assert "6 samples are there already; nothing to do" in told
    assert "6 samples kept of 6 asked for" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.write_text("of an earlier state")
    os.utime(page, (0, 0))
    assert call("generate-data", *command)[0] == 0
    assert page.read_bytes() == before
    assert call("generate-data", *command)[1].count("\n") == 1  # now there is nothing to do


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
            for suffix in (".txt", ".jsonl", ".drops.jsonl", ".run.json"):
                shutil.copy(part.with_suffix(suffix), early.with_suffix(suffix))
    drops = part.with_suffix(".drops.jsonl").read_bytes().splitlines()
    assert drops
    whole = tmp_path / "mix.txt"
    code, told, err = call("generate-data", "--out", whole, "--merge", early, part, part)
    assert code == 0, err
    assert f"20 samples kept of {20 + len(drops)} asked for" in told
    assert f"written: {7 * (20 + len(drops))} tokens" in told
    assert f"dropped: empty {len(drops)} (" in told
    assert sorted(whole.with_suffix(".drops.jsonl").read_bytes().splitlines()) == sorted(drops)
    check_outputs(whole, [record["number"] for record in sorted(records(part), key=lambda record: record["number"])])

    part.with_suffix(".drops.jsonl").unlink()
    code, told, err = call("generate-data", "--out", whole, "--overwrite", "--merge", part)
    assert code == 0, err
    assert told.startswith(f"Note: {part.with_suffix('.drops.jsonl')}: missing or damaged")
    assert "20 samples kept of 20 asked for" in told
    part.with_suffix(".jsonl").write_bytes(part.with_suffix(".jsonl").read_bytes()[:-100])
    before = everything(tmp_path)
    code, _, err = call("generate-data", "--out", whole, "--overwrite", "--merge", part)
    assert (code, err) == (2, f"generate-data: --merge: {part.with_suffix('.jsonl')}: missing or damaged\n")
    assert everything(tmp_path) == before


def test_a_merge_that_was_killed_is_no_run(server: Server, call: Call, tmp_path: Path) -> None:
    part, whole = tmp_path / "part.txt", tmp_path / "mix.txt"
    assert call("generate-data", *words(server, part, "--samples", 6))[0] == 0
    killed = (  # in the middle of the first line that it writes
        "import os, sys; from mini_transformer import cli; from mini_transformer.synthesis import store\n"
        "store._append = lambda file, data: (file.write(data[:100]), os.kill(os.getpid(), 9))\n"
        "cli.run('generate-data', sys.argv[1:])"
    )
    assert spawn(["-c", killed, "--out", whole, "--merge", part], ROOT).wait(60) == -signal.SIGKILL
    assert whole.with_suffix(".jsonl").stat().st_size == 100
    code, _, err = call("generate-data", "--out", whole, "--merge", part)
    assert code == 0, err
    check_outputs(whole, range(6))
