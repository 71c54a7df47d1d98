"""`gguf`: a model as one file for llama.cpp, Ollama and LM Studio."""

from collections.abc import Sequence
from pathlib import Path

from mini_transformer.cli import Parser, add_fields, path
from mini_transformer.config import GenerateConfig
from mini_transformer.settings import fill

TYPES = ("f32", "f16", "bf16", "q8_0")  # as llama.cpp's own converter names them


def main(argv: Sequence[str]) -> int:
    """Write a model as a GGUF file."""
    about = "Write a model as one GGUF file, for llama.cpp, Ollama and LM Studio. Training writes it in f32."
    parser = Parser(prog="gguf", description=about)
    add_fields(parser, GenerateConfig, ["model_dir"])
    add = parser.add_argument
    add("--type", choices=TYPES, default="f32", help="type of the matrices (default: f32)")
    add("--out", type=path, metavar="FILE", help="file to write (default: model-TYPE.gguf in the folder of the model)")
    given = parser.parse(argv)
    model_dir = fill(GenerateConfig, vars(given)).model_dir
    import torch

    from mini_transformer.errors import UserError
    from mini_transformer.export.gguf import write_gguf
    from mini_transformer.generation.engine import Engine

    engine = Engine.load(model_dir, torch.device("cpu"))
    folder = model_dir if model_dir.is_dir() else Path()  # the package's model has none of its own
    out: Path = given.out or folder / f"model-{given.type}.gguf"
    if out.exists() and not (out.is_file() and (not out.stat().st_size or out.open("rb").read(4) == b"GGUF")):
        raise UserError(f"`out`: {out} is there, and no GGUF file; choose another name")
    try:
        write_gguf(out, engine.model.config, engine.tokenizer, engine.model.state_dict(), given.type)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    print(f"{out}: {out.stat().st_size / 1e6:,.1f} MB")
    return 0
