"""Files as damage and ill will leave them: seeded changes of bytes, of JSON values, of tensors, and of whole files."""

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

HOSTILE: list[Any] = [
    *(None, True, 0, -1, 1, 2**31, 2**32 - 1, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "x" * 10_000, "../../etc/passwd", [], {}, [[[]]], [0] * 10_000, {"a": {"b": [1]}}),
    *({"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "(a*)*\\1(?<=b+)"}, "content": ""}),
]
FACTORS = [0.0, -1.0, 1e10, 3e38, float("nan"), float("inf")]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def flip(content: bytes, chance: random.Random) -> bytes:
    """One bit is another one."""
    damaged = bytearray(content)
    if damaged:
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def change_bytes(content: bytes, chance: random.Random, marker: Path) -> bytes:
    """A bit, a block, the end, or all of it."""
    place, size = chance.randrange(len(content) + 1), chance.choice([1, 4, 64, 4096])
    before, block, after = content[:place], content[place : place + size], content[place + size :]
    return chance.choice(
        [
            lambda: flip(content, chance),
            lambda: before + bytes(len(block)) + after,
            lambda: before,
            lambda: before + after,
            lambda: before + block + block + after,
            lambda: before + chance.randbytes(size) + after,
            lambda: b"",
            lambda: b"[" * 100_000,
            lambda: pickle.dumps(Evil(marker)),
        ]
    )()


def change_value(content: bytes, chance: random.Random) -> bytes:
    """Of JSON: one value is another one, or is gone, or comes twice."""
    value = json.loads(content)
    spots: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for key, child in inner[:50]:  # of a vocabulary or a list of tokens, the first ones
            spots.append((node, key))
            if isinstance(child, dict | list):
                visit(child)

    visit(value)
    node, key = chance.choice(spots)
    what = chance.randrange(8)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = chance.choice(HOSTILE)
    return json.dumps(value).encode()


def change_tensor(content: bytes, chance: random.Random) -> bytes:
    """Of safetensors: one tensor has other values, or another type, shape or name, or is gone."""
    tensors = load(content)
    name = chance.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changes = [
        lambda: {name: tensor * chance.choice(FACTORS)},
        lambda: {name: tensor.to(chance.choice([torch.float16, torch.float64, torch.int8, torch.bool]))},
        lambda: {name: tensor[..., :-1].contiguous()},
        lambda: {f"{name}.more": tensor},
        lambda: {},
    ]
    return save({**tensors, **chance.choice(changes)()})


def mutate(file: Path, chance: random.Random, marker: Path) -> None:
    """Change a file in one way; or take it away."""
    content, structured = file.read_bytes(), chance.random() < 0.6
    if chance.random() < 0.02:
        file.unlink()
    elif structured and file.suffix == ".json" and content:
        file.write_bytes(change_value(content, chance))
    elif structured and file.suffix == ".jsonl" and content:
        lines = content.splitlines(keepends=True)
        number = chance.randrange(len(lines))
        lines[number] = change_value(lines[number], chance) + b"\n"
        file.write_bytes(b"".join(lines))
    elif structured and file.suffix == ".safetensors":
        file.write_bytes(change_tensor(content, chance))
    else:
        file.write_bytes(change_bytes(content, chance, marker))
