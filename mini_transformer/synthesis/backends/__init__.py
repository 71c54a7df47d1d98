"""Engines that write samples: one small interface, and behind it this machine (`local`) or a server (`remote`)."""

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
    finished: bool  # the model ended by itself; otherwise it was cut at --max-new-tokens


class Engine(Protocol):
    """Takes tasks and gives outputs back, in batches or as they come."""

    room: int  # tasks that it takes in hand at once
    place: str  # where it works, in words

    def write(self, tasks: Sequence[Task]) -> list[Output]:
        """Take more tasks in hand, then return outputs: at least one while any task is in hand.

        Raises `UserError` if the engine cannot go on.
        """

    def close(self) -> None:
        """Give up what is in hand, and free what the engine holds."""
