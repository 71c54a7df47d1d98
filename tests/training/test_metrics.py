import json
from pathlib import Path

import pytest

from mini_transformer.training.metrics import MetricsLogger, duration
from mini_transformer.training.plot import draw_loss_curve, smoothed

PHASES = [("train", 40)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5401, "1.5 hours"), (700_000, "8.1 days")],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_smoothing_is_a_running_mean() -> None:
    assert smoothed([1.0, 3.0, 5.0, 1.0], 2) == [1.0, 2.0, 4.0, 3.0]
    assert smoothed([2.0, 4.0], 10) == [2.0, 3.0]


def test_metrics_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    logger = MetricsLogger(file, PHASES, (0, 0), False)
    logger.write(phase="train", iteration=1)
    logger.write(phase="train", iteration=1, val_loss=1.0)  # after the checkpoint
    logger.write(phase="train", iteration=2)
    logger.close()
    logger = MetricsLogger(file, PHASES, (0, 1), False)
    logger.write(phase="train", iteration=3)
    logger.close()
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [1, 3]
    file.unlink()  # lost by the user: the run goes on all the same
    logger = MetricsLogger(file, PHASES, (0, 3), False)
    logger.write(phase="train", iteration=4)
    logger.write(phase="train", iteration=4, val_loss=1.0)
    logger.close()
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [4, 4]
    MetricsLogger(file, PHASES, (0, 4), True).close()
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [4, 4]


DAMAGED = [
    b'{"phase": "tra',
    b"\xff",
    b"[" * 100_000,
    b"3",
    b'{"phase": "other", "iteration": 1}',
    b'{"phase": "train"}',
    b'{"phase": "train", "iteration": 41}',
    b'{"phase": "train", "iteration": 1.5}',
    b'{"phase": "train", "iteration": 1, "train_loss": "3"}',
    b'{"phase": "train", "iteration": 1, "train_loss": 1e999}',
    b'{"phase": "train", "iteration": 1, "train_loss": 1' + b"0" * 400 + b"}",
    b'{"phase": ["train"], "iteration": 1}',
]


def test_damaged_lines_are_dropped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    good = [b'{"phase": "train", "iteration": 1, "%s": 3.0}\n' % name for name in (b"train_loss", b"val_loss")]
    file.write_bytes(good[0] + b"\n".join([*DAMAGED, good[1]]) + DAMAGED[0])
    draw_loss_curve(file, tmp_path / "curve.png", PHASES, 1.0)
    MetricsLogger(file, PHASES, (0, 1), True).close()
    assert capsys.readouterr().out == f"{file}: {len(DAMAGED) + 1} damaged lines left out\n" * 2
    assert file.read_bytes() == b"".join(good)


@pytest.mark.parametrize("phases", [[("train", 40)], [("pretrain", 20), ("finetune", 20)]])
@pytest.mark.parametrize("lines", [0, 1, 40])
def test_a_curve_is_drawn_for_any_number_of_points(tmp_path: Path, phases: list[tuple[str, int]], lines: int) -> None:
    file = tmp_path / "metrics.jsonl"
    values = [{"phase": phases[i * len(phases) // 40][0], "iteration": i % phases[0][1]} for i in range(lines)]
    file.write_text("".join(json.dumps(v | {"train_loss": 3.0, "val_loss": 2.5}) + "\n" for v in values))
    draw_loss_curve(file, tmp_path / "curve.png", phases, 1.0)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
