"""`demo`: from nothing to a first fable."""

from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser
from mini_transformer.commands import generate, train
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.text.fables import join_fables, load_fables


def main(argv: Sequence[str]) -> int:
    """Train a small model on the embedded fables and print what it writes."""
    parser = Parser(prog="demo", description="Train a small model on the embedded fables, then write one.")
    parser.add_argument("--out-dir", type=Path, default=Path("demo-out"), metavar="DIR", help="folder of the model")
    parser.add_argument("--max-iters", type=int, metavar="N", help="iterations (default: those of the preset)")
    given = parser.parse(argv)
    fables = load_fables()
    texts = {name: given.out_dir / "text" / f"{name}.txt" for name in ("train", "validation")}
    try:
        for name, path in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as draft:
                part = [fable for fable in fables if fable.validation == (name == "validation")]
                draft.write_text(join_fables(part), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out-dir: {given.out_dir} cannot be written ({error.strerror})") from None
    flags = ["--data", str(texts["train"]), "--val-data", str(texts["validation"]), "--preset", "tiny"]
    flags += ["--out-dir", str(given.out_dir)]
    if given.max_iters is not None:
        flags += ["--max-iters", str(given.max_iters)]
    print(f"mini-transformer train {' '.join(flags)}\n", flush=True)
    if code := train.main(flags):
        return code
    print("\nA fable that it writes:\n", flush=True)
    sampling = ["--temperature", "0.6", "--seed", "1", "--stop-at-end"]
    generate.main(["--model-dir", str(given.out_dir), "--max-new-tokens", "700", *sampling])
    print(f"\nThe model lies in {given.out_dir}: look at loss_curve.png there. Let it write on:")
    print(f'  mini-transformer generate --model-dir {given.out_dir} --prompt "LE RENARD"')
    return 0
