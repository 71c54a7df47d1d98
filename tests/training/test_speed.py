"""Tokens/s and the share of the device's products."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_transformer.config import ModelConfig
from mini_transformer.training import speed
from mini_transformer.training.plan import flops_per_token
from mini_transformer.training.speed import Speed, product_speed


def test_the_share_is_that_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(block_size=16, n_layer=1, n_embd=32, n_head=2).resolve(50)
    monkeypatch.setattr(speed, "product_speed", lambda *_: 1000 * flops_per_token(config))
    of_phase = Speed(config, 100, torch.device("cpu"), torch.float32)
    assert of_phase.summary() == ""
    assert [of_phase.add(seconds) for seconds in (0.5, 0.25)] == [200, 400]
    assert of_phase.take() == {"tokens_per_second": round(200 / 0.75), "flop_utilisation": round(0.2 / 0.75, 4)}
    of_phase.add(0.25)
    assert of_phase.take() == {"tokens_per_second": 400, "flop_utilisation": 0.4}
    assert of_phase.summary() == "400 tokens/s, 40% of what the products of this device allow"
    of_phase.begin()
    assert of_phase.summary() == ""


def test_products_are_measured() -> None:
    a = torch.randn(768, 768)
    started = time.perf_counter()
    for _ in range(5):
        a @ a
    slow = 5 * 2 * 768**3 / (time.perf_counter() - started)
    assert slow / 10 < product_speed(torch.device("cpu"), torch.float32) < 100 * slow


def test_a_run_says_its_speed(call: Callable[..., tuple[int, str, str]], fables: Path, tmp_path: Path) -> None:
    shape = {"n-layer": 1, "n-embd": 32, "n-head": 2, "block-size": 16, "batch-size": 2, "max-iters": 20}
    flags = [word for name, value in shape.items() for word in (f"--{name}", value)]
    code, told, error = call("train", "--data", fables, "--out-dir", tmp_path / "out", *flags)
    assert code == 0, error
    assert re.search(r"^train: [\d,]+ tokens/s, \d+% of what the products of this device allow$", told, re.MULTILINE)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["flop_utilisation"] < 1 for line in lines if "tokens_per_second" in line)
