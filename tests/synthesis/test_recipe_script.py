"""`recipes/synthetic.sh`: the whole story, with small numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mini_transformer.synthesis.cleaning import clean
from tests.conftest import ROOT, TINY
from tests.synthesis.conftest import records
from tests.synthesis.test_filters import labelled


@pytest.mark.slow
def test_generate_pretrain_finetune_evaluate(instruct_model: Path, tmp_path: Path) -> None:
    texts = [clean(answer.raw) for answer in labelled("labelled_a.txt") if answer.good]
    (tmp_path / "fables.txt").write_text("\n\n\n".join(texts[:-3]), encoding="utf-8")
    (tmp_path / "held out.txt").write_text("\n\n\n".join(texts[-3:]), encoding="utf-8")
    small = {
        "OUT": "out here",
        "SAMPLES": "30",
        "PRETRAIN_ITERS": "10",
        "FINETUNE_ITERS": "10",
        "GENERATE_FLAGS": f"--model {instruct_model} --max-new-tokens 60 --filters quotes --device cpu",
        "TRAIN_FLAGS": " ".join(TINY),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",  # quicker for tiny models
    }
    command = [str(ROOT / "recipes" / "synthetic.sh"), "fables.txt", "held out.txt"]
    for _ in range(2):  # the second time, all is there already
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | small)
        assert result.returncode == 0, result.stderr
        assert re.search(r"^\d\.\d{4} bits per character$", result.stdout, re.MULTILINE)
    assert "30 samples are there already" in result.stdout
    assert "this run is finished" in result.stdout
    assert len(records(tmp_path / "out here" / "data_mix.txt")) == 30
    assert (tmp_path / "out here" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("words", [[], ["fables.txt"], ["fables.txt", "", "more"]])
def test_without_its_two_files_the_usage_is_told(words: list[str]) -> None:
    result = subprocess.run([str(ROOT / "recipes" / "synthetic.sh"), *words], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "usage: recipes/synthetic.sh FABLES.txt HELD_OUT.txt\n"
