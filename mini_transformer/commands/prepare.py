"""`prepare`: read and tokenise the texts of a run ahead of time."""

from collections.abc import Sequence

from mini_transformer.commands.train import parse_config
from mini_transformer.config import check


def main(argv: Sequence[str]) -> int:
    """Do what `train` with the same flags would do with the texts, and no more."""
    config = parse_config(argv, prog="prepare")
    check(config)
    from mini_transformer.training.phases import read_material

    material = read_material(config)
    for text in material.phases:
        tokens = text.stream.epoch_tokens
        print(f"{text.phase.name}: {text.characters:,} characters, {tokens:,} tokens, {text.documents:,} documents")
    characters, tokens = material.validation_characters, material.tokenizer.vocab_size
    print(f"validation: {characters:,} characters; vocabulary: {tokens:,} tokens")
    print(f"overlap: {material.overlap}")
    material.overlap.warn()
    print("Ready: train with the same flags starts at once")
    return 0
