"""`demo`: from the base model of the package, or from nothing, to a first fable."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser, add_fields
from mini_transformer.commands import generate, train
from mini_transformer.config import PhaseSettings, RunConfig
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.settings import fill
from mini_transformer.text.fables import join_fables, load_fables

TITLE = "LE RENARD ET LE LOUP"  # of the fable that it is to write


def main(argv: Sequence[str]) -> int:
    """Train the base model, or a new one, on the embedded fables and print what it writes."""
    parser = Parser(prog="demo", description="Train the package's base model on its fables, then write one.")
    add_fields(parser, RunConfig, ["out_dir"], out_dir=Path("demo-out"))
    parser.add_argument("--from-scratch", action="store_true", help="train a new model instead of the base model")
    add_fields(parser, PhaseSettings, ["max_iters"], max_iters=None)
    add_fields(parser, RunConfig, ["overwrite"])
    given = vars(parser.parse(argv))
    run = fill(RunConfig, given)
    words = ["--recipe", "tiny"] if given["from_scratch"] else ["--recipe", "finetune"]
    words += ["--max-iters", str(given["max_iters"])] if given["max_iters"] else []
    words = [*_write_texts(run.out_dir), *words, "--out-dir", str(run.out_dir)] + ["--overwrite"] * run.overwrite
    print(f"mini-transformer train {shlex.join(words)}\n", flush=True)
    if code := train.main(words):
        return code
    print("\nA fable that it writes:\n", flush=True)
    words = ["--model-dir", str(run.out_dir), "--max-new-tokens", "700", "--top-p", "0.9"]
    if code := generate.main([*words, "--prompt", f"{TITLE}\n\n", "--seed", "1", "--stop-at-end"]):
        return code
    command = sys.argv[0] if Path(sys.argv[0]).name == "mini-transformer" else "mini-transformer"
    print(f"\nThe model and its loss_curve.png are in {run.out_dir}. To write more:")
    print(f"  {command} generate --model-dir {shlex.quote(str(run.out_dir))} --prompt $'{TITLE}\\n\\n'")
    print("A prompt that ends with its line (\\n) is a title; one that ends inside a word has it continued first.")
    return 0


def _write_texts(folder: Path) -> list[str]:
    """Write the fables to train and to validate on, and return their flags. Another file of that name is kept."""
    flags, is_demo = [], (folder / "run.json").exists()
    try:
        for name, flag in (("train", "--data"), ("validation", "--val-data")):
            file = folder / "text" / f"{name}.txt"
            flags += [flag, str(file)]
            content = join_fables([fable for fable in load_fables() if fable.validation == (name == "validation")])
            if file.exists() and not is_demo and file.read_text("utf-8") != content:
                raise UserError(f"`out_dir`: {file} is there, and is not of a demo; take another `out_dir`")
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"`out_dir`: {folder} cannot be written ({error.strerror})") from None
    return flags
