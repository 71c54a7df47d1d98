"""`demo`: from nothing to a first fable."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser, path
from mini_transformer.commands import generate, train
from mini_transformer.config import check_limits
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.text.fables import join_fables, load_fables


def main(argv: Sequence[str]) -> int:
    """Train a small model on the embedded fables and print what it writes."""
    parser = Parser(prog="demo", description="Train a small model on the embedded fables, then write one.")
    parser.add_argument("--out-dir", type=path, default=Path("demo-out"), metavar="DIR", help="folder of the model")
    parser.add_argument("--max-iters", type=int, metavar="N", help="iterations (default: those of the preset)")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo of other settings")
    given = parser.parse(argv)
    # on so little text, tokens of several letters learn words where characters learn letters
    flags = ["--preset", "tiny", "--tokenizer", "bpe", "--vocab-size", "1024", "--out-dir", str(given.out_dir)]
    if given.max_iters is not None:
        check_limits("max_iters", given.max_iters, {"least": 1})
        flags += ["--max-iters", str(given.max_iters)]
    flags += ["--overwrite"] * given.overwrite
    texts = _write_texts(given.out_dir)
    words = ["--data", str(texts["train"]), "--val-data", str(texts["validation"]), *flags]
    print(f"mini-transformer train {shlex.join(words)}\n", flush=True)
    if code := train.main(words):
        return code
    print("\nA fable that it writes:\n", flush=True)
    words = ["--model-dir", str(given.out_dir), "--max-new-tokens", "700", "--temperature", "0.6"]
    if code := generate.main([*words, "--seed", "1", "--stop-at-end"]):
        return code
    print(f"\nThe model lies in {given.out_dir}: look at loss_curve.png there. Let it write on:")
    print(f'  mini-transformer generate --model-dir {given.out_dir} --prompt "LE RENARD"')
    return 0


def _write_texts(folder: Path) -> dict[str, Path]:
    """Write the fables to train and to validate on; a file that is there and is another one is left alone."""
    fables = load_fables()
    texts = {name: folder / "text" / f"{name}.txt" for name in ("train", "validation")}
    try:
        for name, file in texts.items():
            content = join_fables([fable for fable in fables if fable.validation == (name == "validation")])
            if file.exists() and not (folder / "run.json").exists() and file.read_text("utf-8") != content:
                raise UserError(f"--out-dir: {file} is there, and is not of a demo; take another --out-dir")
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out-dir: {folder} cannot be written ({error.strerror})") from None
    return texts
