"""The OpenAI protocol, against a real server on this machine that fails in all the ways that servers fail."""

import email.utils
import itertools
import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_transformer.errors import UserError
from mini_transformer.synthesis.backends import Task
from mini_transformer.synthesis.backends import server as backend
from mini_transformer.synthesis.backends.server import ServerEngine
from mini_transformer.synthesis.config import SynthesisConfig, check
from mini_transformer.synthesis.prompts import embedded_recipe, load
from tests.conftest import ROOT, spawn
from tests.synthesis.conftest import check_outputs, records
from tests.synthesis.server import BROKEN, Server

Call = Callable[..., tuple[int, str, str]]
RECIPE = load(embedded_recipe(), "fr")
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds or minutes with a real server: some hundredths of a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    for name, seconds in (("FIRST_PAUSE", 0.01), ("TIMEOUT", 5.0), ("PATIENCE", 20.0)):
        monkeypatch.setattr(backend, name, seconds)


def engine(server: Server, said: list[str] | None = None, batch: int = 4) -> ServerEngine:
    config = SynthesisConfig(engine="openai", base_url=server.url, batch=batch, model="m", max_new_tokens=50)
    return ServerEngine(config, (said if said is not None else []).append)


def write_all(writer: ServerEngine, seeds: range) -> list[str]:
    """Write all, refilling what is in flight as the pipeline does."""
    waiting = [Task(RECIPE.prompt(seed, 1), 0, seed) for seed in seeds]
    outputs = writer.generate(waiting[: writer.concurrency])
    sent = writer.concurrency
    while len(outputs) < len(seeds):
        free = writer.concurrency - (min(sent, len(seeds)) - len(outputs))
        more, sent = waiting[sent : sent + free], sent + free
        outputs += writer.generate(more)
    writer.close()
    return [output.text for output in outputs]


def expected(seeds: range) -> list[str]:
    return [f"Texte numéro {seed}." for seed in seeds]


@pytest.mark.parametrize("failure", ["status 408", "status 409", "status 429", "status 500", "status 503", "drop"])
def test_a_failure_is_asked_again(server: Server, failure: str) -> None:
    """The client tries three times, then it is for us to go on: here the fifth request is answered."""
    server.plan = lambda seed, nth: failure if seed % 3 == 0 and nth < 4 else "answer"
    said: list[str] = []
    assert sorted(write_all(engine(server, said), range(7))) == expected(range(7))
    assert server.counts == {seed: 5 if seed % 3 == 0 else 1 for seed in range(7)}
    assert len(said) == 1  # not a line for each
    assert "is asked again in" in said[0]


@pytest.mark.parametrize("failure", ["cut", *BROKEN])
def test_a_broken_answer_is_asked_again(server: Server, failure: str) -> None:
    server.plan = lambda seed, nth: failure if seed % 3 == 0 and nth < 2 else "answer"
    said: list[str] = []
    assert sorted(write_all(engine(server, said), range(7))) == expected(range(7))
    assert server.counts == {seed: 3 if seed % 3 == 0 else 1 for seed in range(7)}
    assert len(said) == 1
    reason = {"cut": "connection lost (", "huge": "an answer of more than 4,000,000 bytes"}
    assert reason.get(failure, "an answer that is no chat completion") in said[0]


@pytest.mark.parametrize("failure", ["hang", "drip", "drip 401"])
def test_an_answer_that_takes_too_long_is_asked_for_again(
    server: Server, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose bytes come in one by one: it is the whole of it that counts."""
    monkeypatch.setattr(backend, "TIMEOUT", 0.4)
    server.plan = lambda seed, nth: failure if seed == 0 and nth < 1 else "answer"
    said: list[str] = []
    assert sorted(write_all(engine(server, said), range(3))) == expected(range(3))
    assert server.counts[0] == 2
    assert [": no answer in time;" in line for line in said] == [True]


def test_an_error_without_an_end_is_not_read_to_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TIMEOUT", 1.0)
    server.plan = lambda seed, nth: "drip 503" if nth < 4 else "answer"
    started = time.monotonic()
    assert write_all(engine(server), range(1)) == expected(range(1))
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("tokens", [10**400, -1, 2.5, "7", True, None])
def test_a_number_of_tokens_that_is_none_counts_as_0(server: Server, tokens: object) -> None:
    server.plan = lambda seed, nth: f"tokens {json.dumps(tokens)}"
    writer = engine(server)
    assert [output.tokens for output in writer.generate([Task(RECIPE.prompt(0, 1), 0, 0)])] == [0]
    writer.close()


@pytest.mark.parametrize("key", ["", KEY])
def test_a_server_without_a_key_gets_none(server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    write_all(engine(server), range(1))
    assert [authorization for _, _, authorization in server.requests] == ([f"Bearer {KEY}"] if key else [""])


def test_the_protocol(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_all(engine(server), range(1))
    _, question, authorization = server.requests[0]
    prompt = RECIPE.prompt(0, 1)
    assert authorization == f"Bearer {KEY}"
    assert question == {
        "model": "m",
        "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.text}],
        "temperature": 0.9,
        "top_p": 0.95,
        "max_tokens": 50,
        "seed": 0,
    }


def test_many_requests_are_in_flight_at_once(server: Server) -> None:
    server.delay = 0.1
    started = time.monotonic()
    assert sorted(write_all(engine(server, batch=16), range(48))) == sorted(expected(range(48)))
    assert 8 <= server.most_at_once <= 16
    assert time.monotonic() - started < 2.4  # one after the other: 4.8 s


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_wait_that_a_server_asks_for_is_respected(server: Server, form: str) -> None:
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.plan = lambda seed, nth: f"status 429 {wait}" if nth == 0 else "answer"
    write_all(engine(server), range(1))
    (first, _, _), (second, _, _) = server.requests
    assert (0.9 if form == "seconds" else 0.6) <= second - first < 4  # a date has whole seconds


def test_waits_grow_and_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "PATIENCE", 0.9)
    server.plan = lambda seed, nth: "status 500"
    with pytest.raises(
        UserError, match=r"has answered nothing for 0.015 minutes \(Error code: 500\); the samples so far are"
    ):
        write_all(engine(server), range(1))
    times = [moment for moment, _, _ in server.requests]
    waits = [b - a for a, b in itertools.pairwise(times)][2::3]  # after every third request, the client gives up
    assert len(waits) >= 5
    assert waits[-1] > 4 * waits[0]
    assert waits[-1] >= 0.01 * 2**4 * 0.5


def test_a_server_that_answers_others_is_not_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that limits its rate may refuse the same request for longer than the patience with one that is dead."""
    monkeypatch.setattr(backend, "PATIENCE", 0.4)
    monkeypatch.setattr(backend, "FIRST_PAUSE", 0.05)
    refused_until = time.monotonic() + 1.2
    server.plan = lambda seed, nth: "status 429" if seed == 0 and time.monotonic() < refused_until else "answer"
    server.delay = 0.05
    texts = write_all(engine(server, batch=2), range(30))
    assert sorted(texts) == sorted(expected(range(30)))
    assert server.counts[0] > 3


def test_a_server_that_starts_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests fail for a while, more often than any number of tries; then the run goes on."""
    monkeypatch.setattr(backend, "FIRST_PAUSE", 0.001)
    back = time.monotonic() + 0.8
    server.plan = lambda seed, nth: "answer" if time.monotonic() > back else "drop"
    said: list[str] = []
    assert sorted(write_all(engine(server, said), range(4))) == expected(range(4))
    assert min(server.counts.values()) > 8


def test_no_server_at_all(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "PATIENCE", 0.05)
    server.server_close()
    with pytest.raises(UserError, match=r"has answered nothing for .* minutes \(Connection error \(.*connect"):
        write_all(engine(server), range(1))


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_short_is_not_finished(server: Server, reason: str) -> None:
    server.plan = lambda seed, nth: f"finish {reason}"
    writer = engine(server)
    assert [output.finished for output in writer.generate([Task(RECIPE.prompt(0, 1), 0, 0)])] == [False]
    writer.close()


@pytest.mark.parametrize(("status", "hint"), [(401, "is OPENAI_API_KEY set to the right key?"), (404, "end in /v1?")])
def test_a_refusal_is_final_and_the_key_stays_secret(
    server: Server, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, hint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.plan = lambda seed, nth: f"status {status}"
    words = ["--out", tmp_path / "mix.txt", "--engine", "openai", "--base-url", server.url, "--batch", 1]
    code, out, err = call("generate-data", *words)
    assert code == 2
    assert len(server.requests) == 1
    assert hint in err
    assert "Bearer [key]" in err  # what the server said, without the key that it repeated
    assert err.count("\n") == 1
    everything = out + err + "".join(path.read_text() for path in tmp_path.glob("mix*"))
    assert KEY not in everything


def test_no_piece_of_the_key_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a long complaint is cut off, the key is taken out of it before."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.plan = lambda seed, nth: "status 401"
    told = []
    for words in range(36, 46):
        server.long_complaint = words
        with pytest.raises(UserError) as caught:
            write_all(engine(server), range(1))
        assert KEY[:4] not in str(caught.value)
        told.append("[key]" in str(caught.value))
    assert set(told) == {True, False}  # cut off behind it, and before


def test_a_redirect_is_named(server: Server) -> None:
    server.plan = lambda seed, nth: "redirect https://elsewhere.example/v1/chat/completions"
    with pytest.raises(
        UserError, match=r"status 307, a redirect to https://elsewhere\.example/v1/chat/completions; give"
    ):
        write_all(engine(server), range(1))


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "sk-clé"])
def test_a_key_that_cannot_be_one(server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError) as caught:
        engine(server)
    assert str(caught.value).startswith("OPENAI_API_KEY: holds a space, a line break or a letter that no key has")
    assert "sk" not in str(caught.value)


@pytest.mark.parametrize("rest", ["?api-version=3", "?", "#top"])
def test_an_address_with_a_query_is_refused(rest: str) -> None:
    config = SynthesisConfig(engine="openai", base_url=f"http://127.0.0.1:9/v1{rest}")
    with pytest.raises(UserError, match=r"`base_url`: no address of a server; expected .*, no query"):
        check(config)


def test_a_whole_run_through_storms(
    server: Server, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    storms = ["status 429 0", "status 500", "drop", "cut"]
    server.plan = lambda seed, nth: storms[seed % 4] if nth == 0 and seed % 5 == 0 else "answer"
    out = tmp_path / "mix.txt"
    words = ["--out", out, "--engine", "openai", "--base-url", server.url, "--batch", 6, "--filters", "none"]
    code, told, err = call("generate-data", *words, "--samples", 40)
    assert code == 0, err
    check_outputs(out, range(40))
    assert all(record["tokens"] == 7 for record in records(out))
    everything = told + err + "".join(path.read_text() for path in tmp_path.glob("mix*"))
    assert KEY not in everything
    code, told, err = call("generate-data", *words, "--samples", 45, "--batch", 2)
    assert code == 0, err
    check_outputs(out, range(45))


def test_nothing_that_quotes_the_files_to_avoid_is_kept(server: Server, call: Call, tmp_path: Path) -> None:
    (tmp_path / "fables.txt").write_text("LE RAT\n\nUn rat plus petit de corps que de courage\nVit un jour passer.")
    quoting = "Il était un rat plus petit de corps, que de courage l'on vantait : numéro {}."
    server.text = lambda seed: (
        quoting.format(seed) if seed % 2 else f"Un rat plus petit que son courage : numéro {seed}."
    )
    out = tmp_path / "mix.txt"
    words = ["--out", out, "--engine", "openai", "--base-url", server.url, "--samples", 6, "--filters", "quotes"]
    code, told, err = call("generate-data", *words, "--avoid", tmp_path / "fables.txt", "--retries", 20)
    assert code == 0, err
    check_outputs(out, range(6))
    assert "vantait" not in out.read_text(encoding="utf-8")
    assert re.search(r"rejected: quote \d+ \(\d+\.\d%\)$", told, re.MULTILINE)
    code, _, err = call("generate-data", *words)
    assert code == 2
    assert "(--avoid: the text is another one)" in err


def test_a_server_that_goes_away_and_comes_back(server: Server, call: Call, tmp_path: Path) -> None:
    server.plan = lambda seed, nth: "status 400" if len(server.requests) > 12 else "answer"
    out = tmp_path / "mix.txt"
    words = ["--out", out, "--engine", "openai", "--base-url", server.url, "--filters", "none", "--samples", 20]
    code, _, err = call("generate-data", *words)
    assert code == 2
    assert "refuses with status 400" in err
    kept = records(out)
    assert 8 <= len(kept) < 20
    server.plan = lambda seed, nth: "answer"
    assert call("generate-data", *words)[0] == 0
    check_outputs(out, range(20))
    assert records(out)[: len(kept)] == kept


def test_ctrl_c_keeps_what_there_is(server: Server, tmp_path: Path) -> None:
    server.delay = 0.2
    out = tmp_path / "mix.txt"
    words = ["--out", out, "--engine", "openai", "--base-url", server.url, "--filters", "none"]
    process = spawn([ROOT / "generate_data.py", *words], tmp_path)
    deadline = time.monotonic() + 30
    while len(server.requests) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.endswith(f"Stopped; what was kept is in {out}. The same command goes on from here.\n")
    assert err == ""
    found = records(out)
    assert len(found) >= 8
    check_outputs(out, [record["number"] for record in found])


def test_ctrl_c_twice_at_once(server: Server, call: Call, tmp_path: Path) -> None:
    """As an impatient hand, or a script that passes on a signal which came to the whole group anyway."""
    code = """
import os, sys
from mini_transformer import cli
from mini_transformer.synthesis.backends import server
ask, count = server.ServerEngine._ask, 0
async def interrupting(self, task):
    global count
    count += 1
    answer = await ask(self, task)
    if count >= 12:
        os.kill(os.getpid(), 2); os.kill(os.getpid(), 2)
    return answer
server.ServerEngine._ask = interrupting
sys.exit(cli.run("generate-data", sys.argv[1:]))
"""
    out = tmp_path / "mix.txt"
    words = ["--out", out, "--engine", "openai", "--base-url", server.url, "--filters", "none"]
    process = spawn(["-c", code, *words], ROOT)
    told, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "Stopped; what was kept is in" in told
    assert call("generate-data", *words, "--samples", 40)[0] == 0
    check_outputs(out, range(40))


def test_a_client_of_a_server_loads_no_torch() -> None:
    code = (
        "import sys; from mini_transformer.commands import generate_data; import mini_transformer.synthesis.pipeline, "
        "mini_transformer.synthesis.backends.server; sys.exit('torch' in sys.modules)"
    )
    assert spawn(["-c", code], ROOT).wait(60) == 0
