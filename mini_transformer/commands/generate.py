"""`generate`: write with a trained model."""

import dataclasses
import sys
from collections.abc import Sequence

from mini_transformer.cli import Parser, add_fields
from mini_transformer.config import GenerateConfig, RunConfig, SamplingConfig
from mini_transformer.settings import fill


def main(argv: Sequence[str]) -> int:
    """Write with a trained model."""
    parser = Parser(prog="generate", description="Write text with a trained model. Only the text goes to stdout.")
    add_fields(parser, GenerateConfig, ["model_dir", "prompt", "max_new_tokens"])
    add_fields(parser, SamplingConfig)
    add_fields(parser, GenerateConfig, ["num_samples", "stop_at_end", "seed"])
    add_fields(parser, RunConfig, ["device", "gpus"])
    given = vars(parser.parse(argv))
    config, sampling, run = fill(GenerateConfig, given), fill(SamplingConfig, given), fill(RunConfig, given)
    import secrets

    from mini_transformer.generation.engine import Engine
    from mini_transformer.runtime import pick_device
    from mini_transformer.text.documents import DOCUMENT_SEPARATOR

    engine = Engine.load(config.model_dir, pick_device(run.device, run.gpus))
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    if config.seed is None and sampling.temperature:
        print(f"seed {seed}", file=sys.stderr)
    settings = dataclasses.asdict(sampling) | {"seed": seed, "stop_at_end": config.stop_at_end}
    texts = [config.prompt] * config.num_samples
    pieces = engine.stream_batch(texts, config.max_new_tokens, **settings)
    print(config.prompt, end="", flush=True)
    for number, piece in pieces:  # of all texts at once: the first is shown as it is written
        if number == 0:
            print(piece, end="", flush=True)
        texts[number] += piece
    print(*("", *texts[1:]), sep=DOCUMENT_SEPARATOR)
    return 0
