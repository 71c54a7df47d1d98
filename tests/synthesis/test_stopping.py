"""Runs that end before their time: nothing that was there is lost, and what is told helps."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.synthesis import test_remote
from tests.synthesis.conftest import check_outputs, flags
from tests.synthesis.test_remote import Server

Call = Callable[..., tuple[int, str, str]]
server = test_remote.server


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
