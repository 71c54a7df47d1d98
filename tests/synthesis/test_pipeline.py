"""The door and the loop: refusals, filters at work, asking again, shards and merging, missing packages."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from mini_transformer.synthesis.backends import Output, Task
from mini_transformer.synthesis.config import SynthesisConfig
from mini_transformer.synthesis.filters import FilterPipeline, choose
from mini_transformer.synthesis.pipeline import fill
from mini_transformer.synthesis.prompts import embedded_recipe, load
from mini_transformer.synthesis.store import Store
from tests.synthesis.conftest import check_outputs, flags, lines, records, rejected
from tests.synthesis.test_filters import labelled

Call = Callable[..., tuple[int, str, str]]
OPENAI = ("--engine", "openai", "--base-url", "http://localhost:1/v1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", 0], "--samples: 0 is too small: at least 1"),
        (["--samples", 10**23], f"--samples: {10**23} is too large: at most 1000000000"),
        (["--batch", 0], "--batch: 0 is too small"),
        (["--temperature", 3], "--temperature: 3.0 is too large"),
        (["--temperature", "nan"], "--temperature: nan is not a number"),
        (["--top-p", 0], "--top-p: 0.0 is too small"),
        (["--max-new-tokens", 0], "--max-new-tokens: 0 is too small"),
        (["--seed", -1], "--seed: -1 is too small"),
        (["--retries", -1], "--retries: -1 is too small"),
        (["--language", "xx"], "--language: xx is not in recipe.toml, which has fr, en"),
        (["--recipe", "none.toml"], "none.toml: cannot be read (No such file or directory)"),
        (["--avoid", "none.txt"], "none.txt: no such file"),
        (["--avoid", "none.txt", "--avoid", __file__], "none.txt: no such file"),
        (["--avoid", __file__, "--filters", "verse"], "--avoid: is what the filter quotes looks at; add quotes to"),
        (["--filters", "vers"], "--filters: 'vers' is not one"),
        (["--shard", "3/2"], "--shard: 3/2 is no part of a whole"),
        (["--shard", "0/2"], "--shard: 0/2 is no part of a whole"),
        (["--shard", "half"], "--shard: half is no part of a whole"),
        (["--shard", "9/9", "--samples", 5], "--shard: 9/9 has nothing to do for 5 samples"),
        (["--gpu", "0,1"], "--gpu: 0,1: expected one id, such as 0; several GPUs share the work by --shard"),
        (["--gpu", "0", "--device", "cpu"], "--gpu 0: goes with --device cuda"),
        (["--gpu", "99"], "--gpu 99: there is no GPU of id 99"),
        (["--quantize", "8bit"], "--quantize: invalid choice"),
        (["--quantize", "4bit", "--device", "cpu"], "--quantize 4bit: needs an NVIDIA GPU"),
        (["--engine", "openai"], "--base-url: missing"),
        (["--engine", "openai", "--base-url", "localhost"], "--base-url: no address of a server"),
        (["--engine", "openai", "--base-url", "http://[local"], "--base-url: no address of a server"),
        (["--engine", "openai", "--base-url", "http://local:99999/v1"], "--base-url: no address of a server"),
        (["--base-url", "http://localhost"], "--base-url: belongs to --engine openai"),
        ([*OPENAI, "--gpu", 0], "--gpu: belongs to --engine transformers"),
        ([*OPENAI, "--quantize", "4bit"], "--quantize: belongs to --engine transformers"),
        (["--sample", 3], "--sample: unknown flag; did you mean --samples?"),
        (["--merge", "none.txt"], "--merge: none.txt is no output of generate_data.py"),
        (["--merge", "none.txt", "--seed", 1], "--merge: takes the settings of the parts; leave --seed out"),
        (["--merge", "none.txt", "--avoid", __file__], "--merge: takes the settings of the parts; leave --avoid out"),
        (["--merge", "."], "--merge: . is no output of generate_data.py"),
    ],
)
def test_refusals(call: Call, tmp_path: Path, words: list[object], message: str) -> None:
    code, out, err = call("generate-data", "--out", tmp_path / "mix.txt", *words)
    assert code == 2
    assert err.startswith(f"generate-data: {message}"), err
    assert (out, err.count("\n")) == ("", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mix.jsonl", "mix.1", "mix.md"])
@pytest.mark.parametrize("words", [[], ["--merge", "part.txt"]])
def test_the_output_needs_a_name_of_its_own(call: Call, tmp_path: Path, name: str, words: list[str]) -> None:
    code, _, err = call("generate-data", "--out", tmp_path / name, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "would clash with the record beside it" in err


class Scripted:
    """An engine whose answers are given, to see what the loop does with them."""

    concurrency, place = 4, "here"

    def __init__(self, answer: Callable[[Task], str]) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []

    def generate(self, tasks: Any) -> list[Output]:
        self.asked += [(task.prompt.number, task.attempt) for task in tasks]
        return [Output(task, self.answer(task), 10, True) for task in tasks]

    def close(self) -> None:
        """Nothing to do."""


GOOD = {(a.kind.name, i): a.raw for i, a in enumerate(labelled("labelled_a.txt")) if a.good}


def good(kind: str, number: int) -> str:
    texts = [text for (name, _), text in GOOD.items() if name == kind]
    return texts[number // 5 % len(texts)]


def scripted(tmp_path: Path, answer: Callable[[Task], str], **changes: Any) -> tuple[Scripted, Store]:
    config = SynthesisConfig(**{"out": tmp_path / "mix.txt", "samples": 10, "filters": "all"} | changes)
    store = Store(config.out, {"filters": config.filters}, config.part)
    engine = Scripted(answer)
    kept = [record["text"] for record in store.progress.kept]
    pipeline = FilterPipeline(choose(config.filters), "fr", ["la lune est un gâteau que la nuit"], kept)
    fill(config, load(embedded_recipe(), "fr"), pipeline, store, engine)
    store.close()
    return engine, store


def test_rejected_samples_are_asked_again_first(tmp_path: Path) -> None:
    def answer(task: Task) -> str:
        number, kind = task.prompt.number, task.prompt.kind.name
        wrong = {
            1: "Je suis désolé, mais non.",
            2: "",
            3: good(kind, 3) + "\nLa lune est un gâteau\nque la nuit mange.",
        }
        return wrong[number] if number in wrong and task.attempt < number else good(kind, number)

    engine, store = scripted(tmp_path, answer)
    assert engine.asked[:9] == [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (4, 0), (2, 2)]
    assert store.progress.rejected == {"refusal": 1, "empty": 2, "quote": 3}
    check_outputs(tmp_path / "mix.txt", range(10))
    found = rejected(tmp_path / "mix.txt")
    assert [(r["number"], r["attempt"], r["rejected"]) for r in found][:2] == [(1, 0, "refusal"), (2, 0, "empty")]


def test_a_sample_is_given_up_after_the_retries_and_another_takes_its_place(tmp_path: Path) -> None:
    engine, store = scripted(
        tmp_path,
        lambda task: "" if task.prompt.number == 1 else good(task.prompt.kind.name, task.prompt.number),
        retries=1,
    )
    assert engine.asked.count((1, 0)) == engine.asked.count((1, 1)) == 1
    check_outputs(tmp_path / "mix.txt", [0, *range(2, 11)])
    assert store.progress.open == {1: 2}


def test_a_hopeless_run_ends_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"0 of 10 samples, and 2\d given up after 4 attempts each \(rejected: language \d+\)"
    ):
        scripted(
            tmp_path,
            lambda task: "The moon is a cake that the night eats, and no one knows why. " * 9,
            filters="language",
        )


def test_near_duplicates_are_known_after_a_restart(tmp_path: Path) -> None:
    first = good("fable", 0)
    scripted(
        tmp_path,
        lambda task: first if task.prompt.number == 0 else f"{task.seed} " * 30,
        samples=1,
        filters="duplicates",
    )
    again = first.replace("frileux", "frileux et sage")
    engine, store = scripted(
        tmp_path,
        lambda task: (
            again
            if task.prompt.number == 1 and not task.attempt
            else f"{task.prompt.kind.name} mot{'x' * task.prompt.number}"
        ),
        samples=3,
        filters="duplicates",
    )
    assert store.progress.rejected == {"near-duplicate": 1}
    assert (1, 1) in engine.asked
    check_outputs(tmp_path / "mix.txt", range(3))


def test_shards_share_the_work_and_merge_without_duplicates(call: Call, instruct_model: Path, tmp_path: Path) -> None:
    more = ["--samples", 11, "--batch", 4]
    parts = [tmp_path / f"part{i}.txt" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        code, _, err = call("generate-data", *flags(instruct_model, part, *more, "--shard", f"{i}/3"))
        assert code == 0, err
        assert {record["number"] % 3 for record in records(part)} == {i - 1}
    assert [len(records(part)) for part in parts] == [4, 4, 3]
    whole = tmp_path / "mix.txt"
    code, told, err = call(
        "generate-data", "--out", whole, "--merge", parts[2], parts[0], "--merge", parts[1], parts[0]
    )
    assert code == 0, err
    assert sorted(tmp_path.glob("part*.txt")) == parts  # what a shell gives to --merge
    asked = [record for part in parts for record in records(part) + rejected(part)]
    assert f"11 samples kept of {len(asked)} asked for" in told
    assert f"written: {sum(record['tokens'] for record in asked)} tokens" in told
    numbers = sorted(record["number"] for part in parts for record in records(part))
    check_outputs(whole, numbers)
    assert [record["number"] for record in records(whole)] == numbers
    assert read_documents((whole,)) == [record["text"] for record in records(whole)]

    code, _, err = call("generate-data", "--out", whole, "--merge", *parts)
    assert code == 2
    assert "holds samples already" in err
    code, _, err = call("generate-data", "--out", tmp_path / "sub" / ".." / "part1.txt", "--merge", *parts)
    assert (code, err.count("\n")) == (2, 1)
    assert "part1.txt is the output itself" in err
    # The merged output is a run like any other: it grows.
    code, _, err = call("generate-data", *flags(instruct_model, whole, "--samples", 14))
    assert code == 0, err
    assert len({record["number"] for record in records(whole)}) == 14

    other = tmp_path / "other.txt"
    assert call("generate-data", *flags(instruct_model, other, "--samples", 2, "--seed", 2))[0] == 0
    code, _, err = call("generate-data", "--out", tmp_path / "no.txt", "--merge", parts[0], other)
    assert code == 2
    assert "has other settings than" in err
    assert "(--seed: 2, not 1337)" in err
    assert not (tmp_path / "no.txt").exists()


def test_merging_rejects_what_two_machines_wrote_alike(call: Call, tmp_path: Path) -> None:
    text = good("fable", 0).strip()
    for i in (0, 1):
        store = Store(tmp_path / f"{i}.txt", {"filters": "duplicates", "shard": f"{i + 1}/2"}, (i, 2))
        record = {"number": i, "attempt": 0, "kind": "fable", "tokens": 90, "rejected": None}
        store.commit([record | {"text": text.replace("frileux", "frileux et sage") if i else text}])
        store.close()
    code, told, err = call(
        "generate-data", "--out", tmp_path / "mix.txt", "--merge", tmp_path / "1.txt", tmp_path / "0.txt"
    )
    assert code == 0, err
    assert "rejected: near-duplicate 1" in told
    check_outputs(tmp_path / "mix.txt", [0])
    assert [(r["number"], r["rejected"]) for r in rejected(tmp_path / "mix.txt")] == [(1, "near-duplicate")]
    store = Store(tmp_path / "mix.txt", lines(tmp_path / "mix.txt")[0]["settings"])
    assert store.progress.open == {1: 1}  # asked again when the merged run goes on
    store.close()


@pytest.mark.parametrize(
    ("package", "words"), [("datasketch", []), ("py3langid", []), ("transformers", []), ("openai", list(OPENAI))]
)
def test_a_missing_package_is_named_with_the_command(package: str, words: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from mini_transformer import cli; "
        f"sys.exit(cli.run('generate-data', ['--out', 'mix.txt', *{words!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f'generate-data: the Python package {package!r} is missing: pip install -e ".[synthesis]"\n'
    )
    assert not list(tmp_path.iterdir())
