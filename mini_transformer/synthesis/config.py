"""The settings of `generate_data.py`, checked in one place, and which of them decide what is written."""

import dataclasses
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mini_transformer.config import check_fields, option
from mini_transformer.errors import UserError


@dataclass(frozen=True)
class SynthesisConfig:
    """What to write, with which model, and what to keep; files are compared by their text."""

    out: Path = option(Path("data_mix.txt"), "text to train on; FILE.jsonl has each sample", metavar="FILE", free=True)
    samples: int = option(5000, "number of samples; a finished file grows", ge=1, le=10**9, free=True)
    batch: int = option(8, "samples written at once (openai: requests in flight)", ge=1, le=4096, free=True)
    model: str = option("Qwen/Qwen2.5-7B-Instruct-1M", "instruct model: a folder, or a name on the Hub", metavar="NAME")
    engine: str = option("transformers", "on this machine, or a server", choices=("transformers", "openai"))
    base_url: str | None = option(None, "openai: address of the server, such as http://localhost:8000/v1", free=True)
    temperature: float = option(0.9, "0: always the likeliest token", ge=0.0, le=2.0)
    top_p: float = option(0.95, "sample from the likeliest tokens that sum to X only", gt=0.0, le=1.0)
    max_new_tokens: int = option(800, "longest sample, in tokens", ge=1)
    seed: int = option(1337, "seed of the prompts and of the sampling", ge=0, le=2**63 - 1)
    language: str = option("fr", "language to write in, by its two letters")
    recipe: Path | None = option(None, "kinds of text and slots, for the prompts", metavar="FILE", free=True)
    filters: str = option("all", "all, none, or a list such as language,verse (see docs/synthesis.md)")
    avoid: tuple[Path, ...] = option((), "texts that no sample may quote (eight words)", metavar="FILE", free=True)
    merge: tuple[Path, ...] = option((), "join these outputs of --shard, and no more", metavar="FILE", free=True)
    encoding: str = option("utf-8", "encoding of the files of --avoid", free=True)
    retries: int = option(3, "times to ask a rejected sample again", ge=0, le=100, free=True)
    shard: str = option("1/1", "part of the work for this machine, such as 2/4", metavar="I/N")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"), free=True)
    gpu: str | None = option(None, "id of the GPU to use", metavar="ID", free=True)
    quantize: str | None = option(None, "load the weights in 4 bits, to fit a small GPU", choices=("4bit",))
    overwrite: bool = option(False, "replace the samples of another run", free=True)

    @property
    def part(self) -> tuple[int, int]:
        """`shard` I/N as (I - 1, N)."""
        index, _, count = self.shard.partition("/")
        return int(index) - 1, int(count)

    @property
    def attempts(self) -> int:
        """How often a sample may be asked for. The likeliest tokens are the same each time."""
        return self.retries + 1 if self.temperature > 0 else 1

    @property
    def quota(self) -> int:
        """How many samples this shard ends with."""
        index, count = self.part
        return len(range(index, self.samples, count))


def check(config: SynthesisConfig) -> None:
    """All checks that need no file, no device and no package. Raises `UserError`."""
    check_fields(config)
    if config.out.suffix not in ("", ".txt"):  # p.1 and p.2 would share p.jsonl
        raise UserError(f"`out`: {config.out} would clash with the record beside it; take a name that ends in .txt")
    shard = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", config.shard)
    if not shard or int(shard[1]) > int(shard[2]):
        raise UserError(f"`shard`: {config.shard} is no part of a whole; expected I/N, such as 1/4 up to 4/4")
    if config.quota == 0:
        raise UserError(f"`shard`: {config.shard} has nothing to do for {config.samples} samples")
    if config.gpu is not None and not re.fullmatch(r"\d{1,8}", config.gpu, re.ASCII):
        raise UserError(f"`gpu`: {config.gpu}: expected one id, such as 0; several GPUs share the work by `shard`")
    for name, engine in (("gpu", "transformers"), ("quantize", "transformers"), ("base_url", "openai")):
        if getattr(config, name) is not None and config.engine != engine:
            raise UserError(f"`{name}`: belongs to `engine` {engine}")
    url = config.base_url or ""
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # a port beyond 65535, a bracket that is not closed
        usable = False
    if config.engine == "openai" and (not usable or re.search(r"[?#\s]", url)):
        found = "no address of a server" if url else "missing"
        raise UserError(f"`base_url`: {found}; expected one such as http://localhost:8000/v1, no query")


def check_packages(*names: str, source: str = '-e ".[synthesis]"') -> None:
    """Refuse to start without packages. Raises `UserError` naming the first that is missing, and what brings it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the Python package {name!r} is missing: pip install {source}")


def settings(config: SynthesisConfig, digests: dict[str, str]) -> dict[str, Any]:
    """Everything that the samples depend on, by name; files by their digest, a model's folder by its full path."""
    names = [f.name for f in dataclasses.fields(config) if f.metadata and not f.metadata.get("free")]
    model = os.path.abspath(config.model) if os.path.isdir(config.model) else config.model
    return {name: getattr(config, name) for name in names} | {"model": model} | digests
