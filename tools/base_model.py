"""Make the base model of the package from a finished run: its folder, with weights of 16 bits.

    python tools/base_model.py RUN [mini_transformer/base]

docs/base.md has the commands of the run. Weights are in bfloat16, which the compiled step of writing reads as it is.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def main(source: Path, target: Path) -> None:
    """Copy what belongs to a model, and halve the bytes of its weights."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    config = json.loads((target / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "mini_transformer/base"))
