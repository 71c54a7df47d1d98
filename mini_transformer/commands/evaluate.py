"""`evaluate`: bits per character on a text."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from mini_transformer.cli import Parser, add_fields, path
from mini_transformer.config import GenerateConfig, RunConfig
from mini_transformer.settings import fill


def main(argv: Sequence[str]) -> int:
    """Measure bits per character on a text."""
    parser = Parser(prog="evaluate", description="What it costs a model to reproduce a text: bits per character.")
    parser.add_argument("--data", type=path, required=True, metavar="FILE", help="text to measure on")
    add_fields(parser, GenerateConfig, ["model_dir", "precision"])
    add_fields(parser, RunConfig, ["encoding", "device", "gpus"])
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse(argv)
    run, model = fill(RunConfig, vars(given)), fill(GenerateConfig, vars(given))
    from mini_transformer.data.reading import read_text
    from mini_transformer.data.records import kind_of
    from mini_transformer.evaluation.likelihood import measure
    from mini_transformer.generation.engine import Engine
    from mini_transformer.runtime import pick_device

    text = read_text(given.data, run.encoding)
    if kind_of(given.data):
        print(f"Warning: {given.data} is measured as the text that it is, not as its records", file=sys.stderr)
    if "\r\n" in text:
        advice = "training reads them as line feeds, so save the file with these for a fair figure"
        print(f"Warning: {given.data} has Windows line ends, which are measured as they are; {advice}", file=sys.stderr)
    engine = Engine.load(model.model_dir, pick_device(run.device, run.gpus), model.precision)
    result = measure(engine.model, engine.tokenizer, text, str(given.data), progress=True)
    if given.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(f"{result.bits_per_character:.4f} bits per character")
        print(f"{result.bits_per_byte:.4f} bits per byte, {result.nats_per_token:.4f} nats per token")
        print(f"{result.characters:,} characters, {result.bytes:,} bytes, {result.tokens:,} tokens")
    return 0
