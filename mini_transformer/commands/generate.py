"""`generate`: write with a trained model."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser, add_fields
from mini_transformer.config import GenerateConfig, RunConfig, SamplingConfig
from mini_transformer.settings import fill


def main(argv: Sequence[str]) -> int:
    """Write with a trained model."""
    parser = Parser(prog="generate", description="Write text with a trained model. Only the text goes to stdout.")
    add_fields(parser, GenerateConfig, ["model_dir", "prompt", "max_new_tokens"])
    add_fields(parser, SamplingConfig)
    add_fields(parser, GenerateConfig, ["num_samples", "stop_at_end", "seed", "precision"])
    add_fields(parser, RunConfig, ["device", "gpus"])
    given = vars(parser.parse(argv))
    config, sampling, run = fill(GenerateConfig, given), fill(SamplingConfig, given), fill(RunConfig, given)
    import secrets

    from mini_transformer.generation.engine import Engine
    from mini_transformer.runtime import pick_device
    from mini_transformer.text.documents import DOCUMENT_SEPARATOR

    folder = config.model_dir if "model_dir" in given or config.model_dir.exists() else _another_model()
    engine = Engine.load(folder, pick_device(run.device, run.gpus), config.precision)
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    if config.seed is None and sampling.temperature:
        print(f"seed {seed}", file=sys.stderr)
    settings = dataclasses.asdict(sampling) | {"seed": seed, "stop_at_end": config.stop_at_end}
    prompt = _standard_input() if config.prompt == "-" else config.prompt
    texts = [prompt] * config.num_samples
    pieces = engine.stream_batch(texts, config.max_new_tokens, **settings)
    print(prompt, end="", flush=True)
    for number, piece in pieces:  # of all texts at once: the first is shown as it is written
        if number == 0:
            print(piece, end="", flush=True)
        texts[number] += piece
    print(*("", *texts[1:]), sep=DOCUMENT_SEPARATOR)
    return 0


def _standard_input() -> str:
    """All of it. The last line feed is the file's, not the text's. Raises `UserError` if it is not UTF-8."""
    from mini_transformer.data.reading import normalise
    from mini_transformer.errors import UserError

    try:
        return "".join(normalise([sys.stdin.buffer.read().decode()])).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"`prompt`: standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _another_model() -> Path:
    """The model to write with where none is named and there is no `out`: the demo's, or else that of the package."""
    from mini_transformer.model.pretrained import BASE, CONFIG

    demo = Path("demo-out")
    found, name = (demo, "the demo's model") if (demo / CONFIG).is_file() else (BASE, "the base model of the package")
    print(
        f"There is no folder out: {name} writes. Train one with train.py, or name one with --model-dir", file=sys.stderr
    )
    return found
