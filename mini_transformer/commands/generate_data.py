"""`generate-data`: texts to pre-train on, written by an instruct model."""

import argparse
import signal
from collections.abc import Sequence
from types import FrameType

from mini_transformer.cli import EXIT_INTERRUPTED, Parser, add_fields, path
from mini_transformer.errors import UserError
from mini_transformer.synthesis.config import SynthesisConfig, check


def main(argv: Sequence[str]) -> int:
    """Write samples, or go on with a run that was stopped, or join the outputs of several machines."""
    parser = Parser(
        prog="generate-data",
        description="Let an instruct model write fables, poems, tales and dialogues to pre-train on. The same command "
        "continues a run that was stopped.",
    )
    add_fields(parser, SynthesisConfig)
    parser.add_argument(
        "--avoid",
        type=path,
        nargs="+",
        action="extend",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="texts that no sample may quote (eight words in a row)",
    )
    parser.add_argument(
        "--merge",
        type=path,
        nargs="+",
        action="extend",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="join these outputs of --shard into --out; writes nothing new",
    )
    given = vars(parser.parse(argv))
    parts = given.pop("merge", None)
    config = SynthesisConfig(**given | {"avoid": tuple(given.get("avoid", ()))})
    before = signal.signal(signal.SIGINT, _interrupt_once)
    try:
        if parts:
            from mini_transformer.synthesis.pipeline import merge

            if wrong := sorted(given.keys() - {"out", "overwrite"}):
                raise UserError(f"--merge: takes the settings of the parts; leave --{wrong[0].replace('_', '-')} out")
            check(config)
            merge(parts, config.out, config.overwrite)
        else:
            from mini_transformer.synthesis.pipeline import synthesize

            synthesize(config)
    except KeyboardInterrupt:
        command = "The same command" + " without --overwrite" * config.overwrite
        print(f"\nStopped; what was kept is in {config.out}. {command} goes on from here.")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """A second Ctrl-C must not break into what the first one has still to put in order, which is soon done."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
