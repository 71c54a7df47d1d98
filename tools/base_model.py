"""Make the base model of the package from a finished run: its folder, with weights of 16 bits.

    python train.py --recipe base --data theatre-en-vers.txt --out-dir base-out
    python tools/base_model.py base-out [mini_transformer/base]

float16 rounds weights of this size to eight times finer steps than bfloat16, in as many bytes.
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
    config = json.loads((target / "config.json").read_text(encoding="utf-8")) | {"dtype": "float16"}
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "mini_transformer/base"))
