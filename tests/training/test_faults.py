"""Faults that really happen, to one process and to several: nothing is lost, nothing is left behind. Takes minutes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import FABLES, ROOT
from tests.training.processes import SMALL, kill, losses, processes, ranks, run, start, wait_for, weights

pytestmark = pytest.mark.slow
KILLS = 25  # for each number of processes
LOST = "train: lost contact with another process (it was killed, or did not answer within --rank-timeout); "


def wait_for_checkpoint(out: Path, process: "subprocess.Popen[str]") -> None:
    """Until a process that was just started has saved one, or has ended."""
    begun = time.time()
    while process.poll() is None:
        with suppress(FileNotFoundError):
            if any(path.stat().st_mtime > begun for path in (out / "checkpoints").glob("[0-9]*.pt")):
                return
        time.sleep(0.01)


@pytest.mark.parametrize("number", [1, 2])
def test_kills_at_random_moments(tmp_path: Path, number: int) -> None:
    """Of all processes, of the launcher alone, or of one rank."""
    chance, kills, resumed, runs = random.Random(number), 0, 0, 0
    flags = ["--max-iters", 300, "--eval-interval", 50, "--checkpoint-interval", 1, "--nproc", number]
    assert run(tmp_path, *flags, "--out-dir", "whole")[0] == 0
    while kills < KILLS:
        out = tmp_path / f"killed-{runs}"
        runs += 1
        while True:
            process = start(tmp_path, *flags, "--out-dir", out)
            if kills < KILLS:
                if chance.random() < 0.5:  # at any moment, preparing and starting included; else while it trains
                    time.sleep(chance.uniform(0.0, 3.0 + 3.0 * number))
                else:
                    wait_for_checkpoint(out, process)
                    time.sleep(chance.uniform(0.0, 1.0))
                victims = chance.choice(
                    [processes(out), [process.pid], list(ranks(out).values())[-1:] or [process.pid]]
                )
                kills += process.poll() is None
                kill(victims)
            said, err = process.communicate(timeout=120)
            resumed += "Resuming from" in said
            assert "Traceback" not in err, err
            assert err.count("\n") <= 1, err
            deadline = time.monotonic() + 60
            while processes(out):  # a rank that has lost its launcher saves and ends by itself
                assert time.monotonic() < deadline
                time.sleep(0.1)
            if process.returncode == 0:
                break
        assert weights(out) == weights(tmp_path / "whole")
        assert not list(out.rglob("*.temporary"))
    print(f"\n{number} process(es): {kills} kills, {resumed} resumptions, {runs} runs, all with the same bytes")
    assert resumed > KILLS // 3


ELASTIC = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "3",
]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_or_silent_is_restarted(tmp_path: Path, number: signal.Signals) -> None:
    flags = ["--max-iters", 400, "--eval-interval", 100, "--checkpoint-interval", 1, "--rank-timeout", 5]
    assert run(tmp_path, *flags, "--out-dir", "whole", "--nproc", 2)[0] == 0
    out = tmp_path / "out"
    process = start(tmp_path, *flags, "--out-dir", out, launcher=ELASTIC)
    wait_for(out / "checkpoints", process)
    time.sleep(0.5)
    kill([ranks(out)[1]], number)
    said, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Resuming from the checkpoint" in said
    assert err.count(LOST) <= 1
    assert weights(out) == weights(tmp_path / "whole")


def test_without_a_launcher_ranks_that_have_just_started_end(tmp_path: Path) -> None:
    """They would try to connect to its store for half an hour."""
    process = start(tmp_path, "--out-dir", tmp_path / "out", "--nproc", 2)
    while len(ranks(tmp_path / "out")) < 2:
        time.sleep(0.01)
    kill([process.pid])
    assert process.communicate(timeout=60) == ("", "")


def test_without_a_launcher_ranks_save_and_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tmp_path, "--max-iters", 100_000, "--checkpoint-interval", 5, "--out-dir", out, "--nproc", 2)
    wait_for(out / "checkpoints", process)
    kill([process.pid])
    said, err = process.communicate(timeout=60)
    assert said.count("Stopped; the state is saved") == 1
    assert err == ""
    assert not processes(out)


def test_a_node_that_is_taken_away_comes_back(tmp_path: Path) -> None:
    """Two agents, as on two machines; one dies with its rank, both are started again with the same command."""
    out, port = tmp_path / "out", 20_000 + os.getpid() % 20_000
    flags = ["--max-iters", 300, "--eval-interval", 100, "--checkpoint-interval", 1, "--rank-timeout", 10]
    assert run(tmp_path, *flags, "--out-dir", "whole", "--nproc", 2)[0] == 0
    agents = []
    for attempt in range(2):
        agents = []
        for node in range(2):
            where = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
            where += ["--master-addr", "127.0.0.1", "--master-port", str(port + attempt)]
            launcher = [sys.executable, "-m", "torch.distributed.run", *where]
            agents.append(start(tmp_path, *flags, "--out-dir", out, launcher=launcher, GLOO_SOCKET_IFNAME="lo"))
        if attempt == 0:
            wait_for(out / "checkpoints", agents[0])
            kill([agents[1].pid, ranks(out)[1]])
        ends = [agent.communicate(timeout=200) for agent in agents]
        assert not processes(out)
    assert [agent.returncode for agent in agents] == [0, 0], ends
    assert "Resuming from the checkpoint" in ends[0][0]
    assert weights(out) == weights(tmp_path / "whole")


ONE_RANK = """
import sys, torch
from mini_transformer.commands import train
from mini_transformer.runtime import rank
from mini_transformer.training import run
plain, calls = run.cross_entropy_sum, [0]
def broken(model, inputs, targets):
    loss, count = plain(model, inputs, targets)
    calls[0] += 1
    return (loss * float("nan") if rank() == 1 and model.training and calls[0] > 40 else loss), count
run.cross_entropy_sum = broken
from mini_transformer import cli
sys.exit(cli.run("train", sys.argv[1:]))
"""


def test_a_loss_that_is_no_number_on_one_rank_stops_all(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(ONE_RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["--data", FABLES, *SMALL, "--max-iters", 200, "--cache-dir", "cache", "--out-dir", tmp_path / "out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in (*launcher, tmp_path / "broken.py", *flags)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode != 0
    found = re.findall(r"iteration \d+ of phase train: the loss is nan, .*; the weights were not changed", done.stderr)
    assert len(found) == 1, done.stderr
    assert not processes(tmp_path / "out")


def test_a_text_that_changes_or_vanishes(tmp_path: Path) -> None:
    """During the run nothing reads it again; a resumption finds another text, or none, and says so."""
    text = tmp_path / "text.txt"
    text.write_bytes(FABLES.read_bytes())
    flags = ["--data", text, "--max-iters", 100_000, "--checkpoint-interval", 1, "--nproc", 2, "--out-dir", "out"]
    process = start(tmp_path, *flags)
    wait_for(tmp_path / "out" / "checkpoints", process)
    text.write_text("Autre chose. " * 500)
    time.sleep(0.5)
    text.unlink()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    code, _, err = run(tmp_path, *flags)
    assert code == 2
    assert err == f"train: {text}: no such file\n"
    text.write_text("Autre chose. " * 500)
    code, _, err = run(tmp_path, *flags)
    assert code == 2
    assert "holds a run with other settings (--data: the text is another one)" in err
    assert err.count("\n") == 1


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    flags = ["--max-iters", 100_000, "--out-dir", tmp_path / "out", "--nproc", 2]
    process = start(tmp_path, *flags)
    wait_for(tmp_path / "out" / "model.safetensors", process)
    code, _, err = run(tmp_path, *flags)
    assert (code, err) == (2, f"train: --out-dir: another process is training in {tmp_path / 'out'}\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A read-only disk, which stops root too."""
    (tmp_path / "disk").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path / "disk")]
    if os.geteuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("only root can mount a read-only disk")
    try:
        code, _, err = run(tmp_path, "--max-iters", 10, "--out-dir", tmp_path / "disk" / "out", "--nproc", 2)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)
    message = f"train: --out-dir: {tmp_path / 'disk' / 'out'} cannot be written (Read-only file system)\n"
    assert (code, err) == (2, message)


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """Each look at the wall clock is days before or after the last one: saving and logging go on as before."""
    (tmp_path / "sitecustomize.py").write_text(
        "import random, time\nreal = time.time\ntime.time = lambda: real() + random.uniform(-1e6, 1e6)\n"
    )
    flags = ["--max-iters", 60, "--eval-interval", 20, "--checkpoint-interval", 5, "--keep-checkpoints", "--nproc", 2]
    assert run(tmp_path, *flags, "--out-dir", "plain")[0] == 0
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    code, out, err = run(tmp_path, *flags, "--out-dir", "jumping", PYTHONPATH=path)
    assert (code, err) == (0, "")
    assert losses(tmp_path / "jumping") == losses(tmp_path / "plain")
    assert weights(tmp_path / "jumping") == weights(tmp_path / "plain")
    assert re.search(r"train 20/60: .* \d+ s left", out)
    speeds = [json.loads(line) for line in (tmp_path / "jumping" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["tokens_per_second"] < 1e7 for line in speeds if "tokens_per_second" in line)
