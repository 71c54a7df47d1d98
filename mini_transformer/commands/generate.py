"""`generate`: write with a trained model."""

import sys
from collections.abc import Sequence
from typing import Any

from mini_transformer.cli import Parser, add_model_flags
from mini_transformer.config import check_limits


def main(argv: Sequence[str]) -> int:
    """Write with a trained model."""
    parser = Parser(prog="generate", description="Write text with a trained model. Only the text goes to stdout.")
    add_model_flags(parser)
    add = parser.add_argument
    add("--prompt", default="", help="text to continue; may be empty")
    add("--max-new-tokens", type=int, default=400, metavar="N", help="tokens to write, beyond the block too")
    add(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0: always the likeliest token; 1: as learned",
    )
    add("--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest tokens only (0: all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="draw from the likeliest tokens that sum to X only",
    )
    add("--seed", type=int, metavar="N", help="for the same text again; a new one is drawn and told otherwise")
    add("--num-samples", type=int, default=1, metavar="N", help="texts to write, two blank lines between them")
    add("--stop-at-end", action="store_true", help="stop where the model ends a document")
    given = parser.parse(argv)
    limits: dict[str, dict[str, Any]] = {
        "max_new_tokens": {"least": 1},
        "temperature": {"least": 0.0},
        "top_k": {"least": 0},
        "top_p": {"above": 0.0, "most": 1.0},
        "seed": {"least": 0, "most": 2**63 - 1},
        "num_samples": {"least": 1},
    }
    for name, limit in limits.items():
        if getattr(given, name) is not None:
            check_limits(name, getattr(given, name), limit)
    import secrets

    from mini_transformer.generation.engine import Engine
    from mini_transformer.generation.sampling import SamplingConfig
    from mini_transformer.runtime import pick_device
    from mini_transformer.text.documents import DOCUMENT_SEPARATOR

    writer = Engine.load(given.model_dir, pick_device(given.device, given.gpus))
    sampling = SamplingConfig(given.temperature, given.top_k, given.top_p)
    seed = given.seed
    if seed is None:
        seed = secrets.randbelow(2**31)
        if given.temperature:
            print(f"seed {seed}", file=sys.stderr)
    for number in range(given.num_samples):
        pieces = writer.generate(given.prompt, given.max_new_tokens, sampling, seed + number, given.stop_at_end)
        print((DOCUMENT_SEPARATOR if number else "") + given.prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    print()
    return 0
