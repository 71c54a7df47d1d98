"""The real `transformers` path, with a small model of the Qwen2 family."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_transformer.errors import UserError
from mini_transformer.synthesis.backends import Task
from mini_transformer.synthesis.backends.local import LocalEngine
from mini_transformer.synthesis.config import SynthesisConfig
from mini_transformer.synthesis.prompts import embedded_recipe, load, sample_seed
from tests.conftest import ROOT
from tests.synthesis.conftest import check_outputs, flags, lines, records

Call = Callable[..., tuple[int, str, str]]
RECIPE = load(embedded_recipe(), "fr")


def engine(model: Path | str, said: list[str] | None = None, **changes: Any) -> LocalEngine:
    config = SynthesisConfig(**{"model": str(model), "batch": 4, "max_new_tokens": 24, "device": "cpu"} | changes)
    return LocalEngine(config, (said if said is not None else []).append)


def tasks(*numbers: int, attempt: int = 0) -> list[Task]:
    return [Task(RECIPE.prompt(n, 1), attempt, sample_seed(1, n, attempt)) for n in numbers]


def test_a_whole_run(call: Call, instruct_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.txt"
    code, told, err = call("generate-data", *flags(instruct_model, out, "--samples", 21, "--batch", 4))
    assert code == 0, err
    assert "21 samples kept of" in told
    found = records(out)
    assert len(found) == 21
    check_outputs(out, [record["number"] for record in found])
    assert {record["kind"] for record in found} == {kind.name for kind in RECIPE.kinds}
    for record in found:
        prompt = RECIPE.prompt(record["number"], 1337)
        assert (record["prompt"], record["slots"], record["system"]) == (prompt.text, prompt.slots, prompt.system)
        assert record["seed"] == sample_seed(1337, record["number"], record["attempt"])
        assert record["finished"] == (record["tokens"] < 24)
    assert {record["finished"] for record in found} == {True, False}
    assert lines(out)[0]["settings"]["model"] == str(instruct_model)
    summary = told[told.index("\n\n- 21 samples kept of") :]
    assert "\n- kinds: " in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix.jsonl", "mix.txt"]

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, told, _ = call("generate-data", *flags(instruct_model, out, "--samples", 21, "--batch", 4))
    there = f"{out}: 21 samples are there already; nothing to do (raise --samples for more)\n"
    assert (code, told) == (0, there + summary[1:])  # which is shown again
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    code, told, _ = call("generate-data", *flags(instruct_model, out, "--samples", 30, "--batch", 4))
    assert code == 0
    assert "going on after 21 of 30 samples" in told
    assert records(out)[:21] == found
    assert len(records(out)) == 30

    code, _, err = call("generate-data", *flags(instruct_model, out, "--samples", 40, "--temperature", 0.5))
    assert code == 2
    assert "samples of other settings (--temperature: 0.9, not 0.5)" in err
    assert err.count("\n") == 1


def test_the_same_seed_gives_the_same_samples(call: Call, instruct_model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        more = ["--samples", 6, "--seed", seed]
        assert call("generate-data", *flags(instruct_model, tmp_path / f"{name}.txt", *more))[0] == 0
        torch.manual_seed(hash(name) % 1000)  # the state of PyTorch's own generator does not matter
    a, b, c = (records(tmp_path / f"{name}.txt") for name in "abc")
    assert a == b
    assert [record["prompt"] for record in a] != [record["prompt"] for record in c]
    assert [record["text"] for record in a] != [record["text"] for record in c]


def test_what_is_sampled_does_not_depend_on_its_neighbours(instruct_model: Path) -> None:
    """In a batch, prompts are padded on the left and finished rows wait for the others: alone, all is as it was."""
    writer = engine(instruct_model)
    together = writer.generate(tasks(0, 1, 2, 3))
    alone = [writer.generate(tasks(number))[0] for number in range(4)]
    assert together == alone
    assert len({len(RECIPE.prompt(number, 1).text) for number in range(4)}) == 4  # padding there was
    again = writer.generate(tasks(0, attempt=1))[0]
    assert again.text != alone[0].text


def test_the_chat_template_and_the_likeliest_tokens(instruct_model: Path) -> None:
    """With temperature 0, the engine writes what a plain loop over the model writes after the ChatML prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    writer = engine(instruct_model, temperature=0.0)
    task = tasks(2)[0]
    output = writer.generate([task])[0]
    tokenizer = AutoTokenizer.from_pretrained(instruct_model)
    model: Any = AutoModelForCausalLM.from_pretrained(instruct_model).eval()
    chat = (
        f"<|im_start|>system\n{task.prompt.system}<|im_end|>\n<|im_start|>user\n{task.prompt.text}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokens, written = tokenizer(chat, add_special_tokens=False)["input_ids"], []
    with torch.no_grad():
        while len(written) < 24:
            token = int(model(torch.tensor([tokens + written])).logits[0, -1].argmax())
            if token in model.generation_config.eos_token_id:
                break
            written.append(token)
    assert output.text == tokenizer.decode(written, skip_special_tokens=True)
    assert (output.tokens, output.finished) == (len(written), len(written) < 24)


def test_the_draw_follows_the_distribution(instruct_model: Path) -> None:
    """The first token over many seeds comes as often as its probability, within the tokens that top-p leaves."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    writer = engine(instruct_model, temperature=0.5, top_p=0.5, max_new_tokens=1)
    prompt, count = RECIPE.prompt(0, 1), 200
    outputs = [
        o for i in range(0, count, 100) for o in writer_batch(writer, [Task(prompt, 0, i + j) for j in range(100)])
    ]
    tokenizer: Any = AutoTokenizer.from_pretrained(instruct_model)
    model: Any = AutoModelForCausalLM.from_pretrained(instruct_model).eval()
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.text}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**tokenizer(chat, add_special_tokens=False, return_tensors="pt")).logits[0, -1]
    shares, order = (logits / 0.5).softmax(-1).sort(descending=True)
    keep = int((shares.cumsum(-1) < 0.5).sum()) + 1
    shares = shares[:keep] / shares[:keep].sum()
    ends = set(model.generation_config.eos_token_id)
    texts = {tokenizer.decode([int(i)], skip_special_tokens=True) for i in order[:keep] if int(i) not in ends} | {""}
    assert {output.text for output in outputs} <= texts
    likeliest = int(order[0])
    text = "" if likeliest in ends else tokenizer.decode([likeliest])
    share = sum(output.text == text for output in outputs) / count
    assert abs(share - float(shares[0])) < 4 * (float(shares[0]) / count) ** 0.5


def writer_batch(writer: LocalEngine, batch: list[Task]) -> Any:
    writer.concurrency = len(batch)
    return writer.generate(batch)


def test_out_of_memory_halves_the_batch_and_says_so(instruct_model: Path) -> None:
    said: list[str] = []
    writer = engine(instruct_model, said, batch=8)
    expected = writer.generate(tasks(*range(8)))
    generate = writer._model.generate

    def scarce(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    writer._model.generate = scarce
    assert writer.generate(tasks(*range(8))) == expected
    assert writer.concurrency == 2
    assert said == [f"Out of memory on cpu: the batch is halved to {n}" for n in (4, 2)]

    def none(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    writer._model.generate = none
    with pytest.raises(UserError, match="out of memory on cpu with a single sample: lower `max_new_tokens`"):
        writer.generate(tasks(0, 1))


def test_models_that_will_not_do(instruct_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(instruct_model, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template; an instruct model is needed"):
        engine(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"`model`: .*base cannot be loaded: "):
        engine(base)
    with pytest.raises(UserError, match=r"`model`: \./nowhere: there is no such folder"):
        engine("./nowhere")


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def resize(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"hidden_size": 64, "intermediate_size": 32}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", tear, "cannot be loaded: Error while deserializing header"),
        ("config.json", resize, "cannot be loaded: its weights do not have the sizes that its config.json tells"),
        ("config.json", lambda file: file.write_text("[]"), "cannot be loaded: "),
        ("tokenizer.json", lambda file: file.write_text('{"model": 3}'), "cannot be loaded: "),
        ("tokenizer.json", Path.unlink, "has no tokenizer; copy its tokenizer.json beside the weights"),
        ("chat_template.jinja", lambda file: file.write_text("{% if"), "does not work: unexpected 'end of template'"),
        ("chat_template.jinja", lambda file: file.write_text("{{ 1 + 'a' }}"), "does not work: unsupported operand"),
    ],
)
def test_a_damaged_folder_is_one_line(
    instruct_model: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(instruct_model, tmp_path / "model")
    damage(tmp_path / "model" / name)
    with pytest.raises(UserError) as caught:
        engine(tmp_path / "model")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_reason_is_told_in_one_line(instruct_model: Path, tmp_path: Path) -> None:
    """The libraries' messages have a list behind their first line: what they looked for."""
    shutil.copytree(instruct_model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"qwen2"', '"mistral"'), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: Couldn't instantiate .* \(2\) a slow tokenizer") as caught:
        engine(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_text_beyond_the_context_is_announced_once(instruct_model: Path) -> None:
    said: list[str] = []
    writer = engine(instruct_model, said, max_new_tokens=2000)
    for number in (0, 1):
        assert writer.generate(tasks(number))[0].finished
    assert len(said) == 1
    assert re.match(r"Warning: a prompt of \d+ tokens and --max-new-tokens 2000 go beyond the 2048 positions", said[0])


def test_a_template_without_a_system_role(instruct_model: Path, tmp_path: Path) -> None:
    """Such as Gemma's: what the system would say stands before the prompt."""
    shutil.copytree(instruct_model, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + template.read_text(encoding="utf-8"), encoding="utf-8")
    prompt = RECIPE.prompt(0, 1)
    chat = engine(tmp_path / "model")._chat(prompt.system, prompt.text)
    assert chat == f"<|im_start|>user\n{prompt.system}\n\n{prompt.text}<|im_end|>\n<|im_start|>assistant\n"


def test_4_bits_need_an_nvidia_gpu(instruct_model: Path) -> None:
    with pytest.raises(UserError, match="`quantize` 4bit: needs an NVIDIA GPU, and this runs on cpu"):
        engine(instruct_model, quantize="4bit")


def without_network(cache: Path) -> dict[str, str]:
    """An environment in which a proxy that refuses every connection stands for a machine without network."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    return {**os.environ, **nowhere, "HF_HOME": str(cache)}


def test_without_network_and_cache_the_error_says_how_to_get_the_model(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "generate_data.py", "--out", tmp_path / "mix.txt", "--device", "cpu"]
    result = subprocess.run(words, capture_output=True, text=True, env=without_network(tmp_path / "cache"), timeout=60)
    assert result.returncode == 2
    assert result.stderr == (
        "generate-data: --model: Qwen/Qwen2.5-7B-Instruct-1M is not in the cache of this machine, and the Hub cannot "
        "be reached; with a network, `hf download Qwen/Qwen2.5-7B-Instruct-1M` fetches it; without, copy its folder "
        "here and name it: --model FOLDER\n"
    )
    assert not list(tmp_path.glob("mix*"))


@pytest.mark.slow
def test_a_model_in_the_cache_needs_no_network(instruct_model: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "hub" / "models--nobody--tiny"
    shutil.copytree(instruct_model, cached / "snapshots" / "0123456789abcdef")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789abcdef")
    words = [sys.executable, ROOT / "generate_data.py", *flags("nobody/tiny", tmp_path / "mix.txt", "--samples", 2)]
    result = subprocess.run(words, capture_output=True, text=True, env=without_network(tmp_path / "cache"), timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(records(tmp_path / "mix.txt")) == 2


@pytest.mark.gpu
def test_on_an_nvidia_gpu(instruct_model: Path) -> None:
    writer = engine(instruct_model, device="cuda")
    assert "bfloat16" in writer.place
    together = writer.generate(tasks(0, 1, 2, 3))
    assert together == writer.generate(tasks(0, 1, 2, 3))
