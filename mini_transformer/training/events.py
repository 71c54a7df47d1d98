"""The values of `metrics.jsonl` as TensorBoard shows them, in `tensorboard/` of the run's folder."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

FOLDER, FILES = "tensorboard", "events.out.tfevents.*"


def check_tensorboard() -> None:
    """Raises `UserError` if the package is not there."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError('`tensorboard`: needs a package: pip install -e ".[tensorboard]"')


class EventLog:
    """Scalars and samples; a step is an iteration, counted over all phases."""

    def __init__(
        self, folder: Path, phases: Sequence[tuple[str, int]], at: tuple[int, int], lines: Sequence[Mapping[str, Any]]
    ) -> None:
        """`phases`: names and iterations. `at`: phase and iteration where the run goes on. `lines`: metrics so far.

        TensorBoard drops what a killed run wrote from that step on (`purge_step`). Of the step itself, some lines may
        be older than the checkpoint: they are written again.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._before, total = dict[str, int](), 0
        for name, iters in phases:
            self._before[name] = total
            total += iters
        start = self._before[phases[at[0]][0]] + at[1]
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=start)
        for values in lines:
            if self._step(values) >= start:
                self.write(values)

    def _step(self, values: Mapping[str, Any]) -> int:
        step: int = self._before[values["phase"]] + values["iteration"]
        return step

    def write(self, values: Mapping[str, Any]) -> None:
        """One line of metrics, at once: a kill loses nothing that a checkpoint may rely on."""
        for name in values.keys() - {"phase", "iteration", "expert_load"}:
            self._writer.add_scalar(name, values[name], self._step(values))
        self._writer.flush()

    def sample(self, text: str, phase: str, iteration: int) -> None:
        """A text that the model wrote; TensorBoard reads Markdown, in which indented lines stay as they are."""
        lines = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text("sample", lines, self._step({"phase": phase, "iteration": iteration}))

    def close(self) -> None:
        """The run is over or has stopped."""
        self._writer.close()
