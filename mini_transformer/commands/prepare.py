"""`prepare`: read and tokenize the texts of a run ahead of time."""

from collections.abc import Sequence

from mini_transformer.commands.train import parse_config
from mini_transformer.config import check


def main(argv: Sequence[str]) -> int:
    """Do what `train` with the same flags would do with the texts, and no more."""
    config = parse_config(argv, prog="prepare")
    check(config)
    from mini_transformer.data.prepare import prepare_data
    from mini_transformer.runtime import log

    data = prepare_data(config)
    for phase in data.phases:
        size = f"{phase.characters:,} characters, {phase.tokens:,} tokens, {phase.documents:,} documents"
        log(f"{phase.phase.name}: {size}")
    log(f"validation: {data.validation_characters:,} characters; vocabulary: {data.tokenizer.vocab_size:,} tokens")
    log(f"contamination: {data.contamination}")
    data.contamination.warn()
    log("Ready: train with the same flags starts at once")
    return 0
