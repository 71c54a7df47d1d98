"""A built wheel holds all that the commands need."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT


def test_a_wheel_works_by_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "mini_transformer").symlink_to(ROOT / "mini_transformer")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for name in ("py.typed", "recipes/tiny.toml", "verse/lexicon.toml", "base/model.safetensors"):
        assert (tmp_path / "site" / "mini_transformer" / name).is_file()
    result = subprocess.run(
        [sys.executable, "-m", "mini_transformer", "corpus"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    assert "fables. mini-transformer corpus WORDS" in result.stdout
