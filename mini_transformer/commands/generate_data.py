"""`generate-data`: texts to pre-train on, written by an instruct model."""

import signal
from collections.abc import Sequence
from types import FrameType

from mini_transformer.cli import EXIT_INTERRUPTED, Parser, add_fields
from mini_transformer.errors import UserError
from mini_transformer.settings import fill
from mini_transformer.synthesis.config import SynthesisConfig, check


def main(argv: Sequence[str]) -> int:
    """Write samples, or go on with a run that was stopped, or join the outputs of several machines."""
    parser = Parser(
        prog="generate-data",
        description="Let an instruct model write fables, poems, tales and dialogues to pre-train on. The same command "
        "continues a run that was stopped.",
    )
    add_fields(parser, SynthesisConfig)
    given = vars(parser.parse(argv))
    config = fill(SynthesisConfig, given)
    before = signal.signal(signal.SIGINT, _interrupt_once)
    try:
        if config.merge:
            from mini_transformer.synthesis.pipeline import merge

            if wrong := sorted(given.keys() - {"out", "overwrite", "merge"}):
                raise UserError(f"`merge`: takes the settings of the parts; leave `{wrong[0]}` out")
            check(config)
            merge(config.merge, config.out, config.overwrite)
        else:
            from mini_transformer.synthesis.pipeline import synthesize

            synthesize(config)
    except KeyboardInterrupt:
        command = "The same command" + " without --overwrite" * config.overwrite
        kept = f"what was kept is in {config.out}" if config.out.exists() else "nothing was kept yet"
        print(f"\nStopped; {kept}. {command} goes on from here.")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """A second Ctrl-C must not break into what the first one has still to put in order, which is soon done."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
