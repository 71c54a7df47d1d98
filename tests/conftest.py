"""What several tests share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # quicker for tiny models, also in processes that tests start

import torch

from mini_transformer import cli
from mini_transformer.config import ModelConfig, SamplingConfig
from mini_transformer.generation.decoding import context_start, generate_tokens
from mini_transformer.generation.sampling import sample
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import trainer

ROOT = Path(__file__).resolve().parent.parent
FABLES = ROOT / "mini_transformer" / "text" / "corpus" / "fables.txt"
TINY = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 32 --batch-size 4 --dropout 0.1 --device cpu".split()  # noqa: SIM905

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background job of a shell begins with it ignored
trainer.FINAL_TOKENS = 100  # of the text at the end of each run in this process, which few tests read


@pytest.fixture(scope="session")
def fables() -> Path:
    return FABLES


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(
        n_layer=2, n_embd=32, n_head=4, n_kv_head=2, block_size=16, sliding_window=6, dropout=0.0, expert_hidden=24
    ).resolve(vocab_size=50)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that is trained for a moment on the embedded fables. Not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    flags = ["--data", str(FABLES), "--max-iters", "20", "--eval-interval", "10", "--lr", "3e-3", "--out-dir", str(out)]
    assert cli.run("train", flags + TINY) == 0
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `mini-transformer WORDS...` in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def generate_one(
    model: Decoder,
    prompt: list[int],
    sampling: SamplingConfig,
    generator: np.random.Generator,
    suppress_tokens: list[int],
    max_new_tokens: int | None = None,
) -> Iterator[int]:
    """`generate_tokens` for one row."""
    pairs = generate_tokens(model, [prompt], sampling, [generator], suppress_tokens, max_new_tokens)
    return (token for _, token in pairs)


@torch.inference_mode()
def generate_without_cache(
    model: Decoder,
    prompt: list[int],
    sampling: SamplingConfig,
    generator: np.random.Generator,
    suppress_tokens: list[int],
) -> Iterator[int]:
    """The same, computing the whole context again for each token: the reference."""
    tokens = list(prompt)
    while True:
        context = tokens[context_start(len(tokens), model.config.block_size) :]
        logits = model(torch.tensor([context]))[0, -1]
        logits[suppress_tokens] = float("-inf")
        tokens.append(sample(logits.numpy(), sampling, generator, context))
        yield tokens[-1]


def spawn(words: Sequence[object], cwd: Path) -> subprocess.Popen[str]:
    """Start `python WORDS...` as a process of its own, as a user would."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
