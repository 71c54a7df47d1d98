"""Engines that write samples: one small interface, for this machine (`local`) and for a server (`server`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mini_transformer.synthesis.prompts import Prompt


@dataclass(frozen=True)
class Task:
    """One attempt at a sample."""

    prompt: Prompt
    attempt: int
    seed: int


@dataclass(frozen=True)
class Output:
    """What the model wrote for a task, as it came."""

    task: Task
    text: str
    tokens: int
    finished: bool  # the model ended by itself; otherwise it was truncated, as at `max_new_tokens`


class Engine(Protocol):
    """Takes tasks and gives outputs back, in batches or as they come. Raises `UserError` if it cannot go on."""

    concurrency: int  # tasks that may be in flight at once
    place: str  # where it works, in words

    def generate(self, tasks: Sequence[Task]) -> list[Output]:
        """Start these tasks too, then return outputs: at least one while any task is in flight."""

    def close(self) -> None:
        """Cancel what is in flight, and free what the engine holds."""
