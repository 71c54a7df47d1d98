"""The README's commands as they are written, with small numbers put behind them."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FABLES, ROOT, TINY
from tests.synthesis.conftest import build_instruct_model, flags

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]
SMALL = {
    "--max-iters": ["--max-iters", "4"],
    "--max-iters-pretrain": ["--max-iters-pretrain", "4", "--max-iters-finetune", "4"],
}


def run(words: list[str], cwd: Path) -> str:
    """Run a command of the README with this environment's Python and package."""
    if words[0] == "python" and words[1].endswith(".py"):
        words = [sys.executable, str(ROOT / words[1]), *words[2:]]
    else:
        assert words[0] == "mini-transformer"
        words = [sys.executable, "-m", "mini_transformer", *words[1:]]
    result = subprocess.run(
        words, cwd=cwd, capture_output=True, encoding="utf-8", env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(trained, folder / "out")  # so that each command runs without those before it
    for name in ("fables.txt", "other-fables.txt", "poems.txt"):
        (folder / name).write_text(FABLES.read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", [line for line in SHELL if not line.startswith("make")])
def test_command(folder: Path, command: str) -> None:
    words = shlex.split(command)
    if "train.py" in words:
        two = "--pretrain-data" in words
        words += [*TINY, *SMALL["--max-iters-pretrain" if two else "--max-iters"], "--overwrite"]
    if "generate_data.py" in words:
        model = build_instruct_model(folder / "instruct")
        words += [*flags(model, Path("synthetic.txt")), "--samples", "2"]
    out = run(words, folder)
    if "generate_data.py" in words:
        assert (folder / "synthetic.txt").stat().st_size > 0
    if "train.py" in words:
        assert "The best weights" in out
        assert (folder / "out" / "loss_curve.png").is_file()
    if "generate.py" in words:
        assert out.startswith("Un renard et un corbeau")
        assert len(out) > 400


def test_the_python_examples(folder: Path) -> None:
    """Ours without the packages that `make demo` does not install, then that of `transformers`."""
    ours, theirs = re.findall(r"```python\n(.*?)```", README, re.S)
    for name in ("numba", "transformers"):
        (folder / "absent").mkdir(exist_ok=True)
        (folder / "absent" / f"{name}.py").write_text("raise ImportError")
    for code, path in ((ours, f"{folder / 'absent'}:{ROOT}"), (theirs, str(ROOT))):
        out = subprocess.run(
            [sys.executable, "-c", code.replace("max_new_tokens=100", "max_new_tokens=5")],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        )
        assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("Un renard")


@pytest.mark.parametrize("more", [[], ["--from-scratch"]])
def test_the_demo(tmp_path: Path, more: list[str]) -> None:
    out = run(["mini-transformer", "demo", "--max-iters", "2", *more], tmp_path)
    assert "A fable that it writes:" in out
    assert (tmp_path / "demo-out" / "generated_text.txt").is_file()


def test_nothing_is_left_to_fill_in() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "@@" not in page.read_text(encoding="utf-8"), page.name


def test_make_has_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in SHELL if line.startswith("make")}
    assert targets >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_map_shows_what_is_there() -> None:
    (tree,) = re.findall(r"```\n(train\.py.*?)```", README, re.S)
    shown = set(re.findall(r"^  ([a-z_]+)(?:/|\.py)", tree, re.M))
    package = ROOT / "mini_transformer"
    there = {p.stem for p in package.iterdir() if not p.name.startswith("__") and p.suffix in ("", ".py")}
    assert shown == there - {"errors", "files"}
