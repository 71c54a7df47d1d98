"""`demo`: from nothing to a first fable."""

from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser
from mini_transformer.commands import generate, train


def main(argv: Sequence[str]) -> int:
    """Train a small model on the embedded fables and print what it writes."""
    parser = Parser(prog="demo", description="Train a small model on the embedded fables, then write one.")
    parser.add_argument("--out-dir", type=Path, default=Path("demo-out"), metavar="DIR", help="folder of the model")
    parser.add_argument("--max-iters", type=int, metavar="N", help="iterations (default: those of the preset)")
    given = parser.parse(argv)
    from mini_transformer.data.sources import embedded_corpus

    iters = [] if given.max_iters is None else ["--max-iters", str(given.max_iters)]
    folder = ["--out-dir", str(given.out_dir)]
    if code := train.main(["--data", str(embedded_corpus()), "--preset", "tiny", *iters, *folder]):
        return code
    print("\nA fable that it writes:\n", flush=True)
    generate.main(["--model-dir", str(given.out_dir), "--max-new-tokens", "600", "--seed", "1", "--device", "cpu"])
    print(f"\nThe model lies in {given.out_dir}: see loss_curve.png and generated_text.txt there. Let it go on:")
    print(f'  mini-transformer generate --model-dir {given.out_dir} --prompt "Un renard"')
    return 0
