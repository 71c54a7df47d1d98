"""The command line: flags from the dataclasses, errors for people.

Each command is a function of its arguments that returns an exit code: 0 done, 2 wrong input (one line says what),
130 interrupted.
"""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mini_transformer import __version__
from mini_transformer.config import (
    PRESETS,
    ModelConfig,
    OptimConfig,
    Phase,
    RunConfig,
    TrainConfig,
    check_limits,
    flag,
)
from mini_transformer.errors import UserError

EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 2, 130
ITERS, LR, LR_PRETRAIN = 10_000, 5e-4, 3e-4


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which names the nearest flag for one that it does not know."""

    def __init__(self, **settings: Any) -> None:
        form = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(**{"formatter_class": form, "allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; raises `UserError` for anything wrong."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            raise UserError(f"{unknown[0]}: unknown flag" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return arguments


def _add_fields(parser: Parser, part: Any) -> None:
    """A flag for each field of a dataclass that is made with `option`. What is not given stays out of the result."""
    group = parser.add_argument_group(part.__doc__.split(";")[0].split("\n")[0].rstrip("."))
    for f in dataclasses.fields(part):
        if not f.metadata:
            continue
        help = f.metadata["help"] + (f" (default: {f.default})" if f.default not in (None, False) else "")
        settings: dict[str, Any] = {"help": help.replace("%", "%%"), "default": argparse.SUPPRESS}
        if f.type is bool:
            settings["action"] = "store_true"
        else:
            settings["type"] = f.type if f.type in (int, float) else Path if "Path" in str(f.type) else str
            settings["metavar"] = f.metadata.get("metavar", {int: "N", float: "X"}.get(settings["type"]))
            if "choices" in f.metadata:
                settings["choices"] = f.metadata["choices"]
        group.add_argument(flag(f.name), **settings)


def train_parser() -> Parser:
    """The flags of `train.py`."""
    parser = Parser(
        prog="train",
        description="Train a small GPT-OSS-style language model on your texts, in one phase (--data) or two "
        "(--pretrain-data, then --finetune-data). The same command continues a run that was stopped.",
        formatter_class=argparse.HelpFormatter,
    )
    text = parser.add_argument_group("Text: files, or folders of .txt files")
    for name, help in (
        ("--data", "text to train on, in one phase"),
        ("--pretrain-data", "text of the first of two phases"),
        ("--finetune-data", "text of the second of two phases"),
    ):
        text.add_argument(name, type=Path, nargs="+", metavar="FILE", help=help)
    length = parser.add_argument_group("Length and rate of the phases")
    length.add_argument("--preset", choices=PRESETS, help="shape, batch, rate and length that suit each other")
    length.add_argument("--max-iters", type=int, metavar="N", help=f"iterations of --data (default: {ITERS})")
    length.add_argument("--lr", type=float, metavar="X", help=f"peak learning rate of --data (default: {LR})")
    for phase, lr in (("pretrain", LR_PRETRAIN), ("finetune", LR)):
        length.add_argument(f"--max-iters-{phase}", type=int, metavar="N", help=f"(default: {ITERS})")
        length.add_argument(f"--lr-{phase}", type=float, metavar="X", help=f"(default: {lr})")
    for part in (ModelConfig, OptimConfig, RunConfig):
        _add_fields(parser, part)
    return parser


def train_config(argv: Sequence[str]) -> TrainConfig:
    """The settings that the flags of `train.py` mean: flags first, then the preset, then the defaults."""
    given = vars(train_parser().parse(argv))
    preset = PRESETS[given.pop("preset") or "mission"]

    def part(kind: Any) -> Any:
        names = [f.name for f in dataclasses.fields(kind) if f.metadata]
        return kind(**{name: (preset | given)[name] for name in names if name in preset | given})

    iters, lr = preset.get("iters", ITERS), preset.get("lr", LR)

    def phase(name: str, suffix: str, usual_lr: float) -> Phase:
        def value(key: str, usual: Any) -> Any:
            return usual if given[key + suffix] is None else given[key + suffix]

        return Phase(name, tuple(given[f"{name}_data"]), value("max_iters", iters), value("lr", usual_lr))

    two = given["pretrain_data"], given["finetune_data"]
    wrong = ["max_iters_pretrain", "max_iters_finetune", "lr_pretrain", "lr_finetune"]
    if given["data"] and any(two):
        raise UserError("--data: one phase, or --pretrain-data and --finetune-data for two; not both")
    if given["data"]:
        given["train_data"] = given["data"]
        phases: tuple[Phase, ...] = (phase("train", "", lr),)
    elif all(two):
        lr_pretrain = lr * LR_PRETRAIN / LR
        phases = (phase("pretrain", "_pretrain", lr_pretrain), phase("finetune", "_finetune", lr))
        wrong = ["max_iters", "lr"]
    elif any(two):
        missing = "--finetune-data" if two[0] else "--pretrain-data"
        raise UserError(f"{missing}: missing; training in two phases needs both texts (for one phase, use --data)")
    else:
        raise UserError("--data: missing; say which text to train on, such as --data fables.txt")
    for name in wrong:
        if given[name] is not None:
            other = "two phases" if len(phases) == 1 else "one phase (--data)"
            raise UserError(f"{flag(name)}: belongs to training in {other}")
    return TrainConfig(phases, part(ModelConfig), part(OptimConfig), part(RunConfig))


def train(argv: Sequence[str]) -> int:
    """Train a model."""
    config = train_config(argv)
    from mini_transformer.training.run import train as run
    from mini_transformer.training.trainer import Stopped

    try:
        run(config)
    except Stopped:
        print(f"Stopped; the state is saved in {config.run.out_dir}. The same command goes on from here.")
        return EXIT_INTERRUPTED
    return 0


def _model_flags(parser: Parser) -> None:
    parser.add_argument("--model-dir", type=Path, default=Path("out"), metavar="DIR", help="folder of the model")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument("--gpus", metavar="ID", help="id of the GPU to use")


def generate(argv: Sequence[str]) -> int:
    """Write with a trained model."""
    parser = Parser(prog="generate", description="Write text with a trained model. Only the text goes to stdout.")
    _model_flags(parser)
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

    from mini_transformer.device import pick_device
    from mini_transformer.generation.generator import BORDER, Writer
    from mini_transformer.generation.sampling import Sampling

    writer = Writer.load(given.model_dir, pick_device(given.device, given.gpus))
    sampling = Sampling(given.temperature, given.top_k, given.top_p)
    seed = given.seed
    if seed is None:
        seed = secrets.randbelow(2**31)
        if given.temperature:
            print(f"seed {seed}", file=sys.stderr)
    for number in range(given.num_samples):
        if number:
            print(BORDER, end="")
        print(given.prompt, end="", flush=True)
        for piece in writer.write(given.prompt, given.max_new_tokens, sampling, seed + number, given.stop_at_end):
            print(piece, end="", flush=True)
    print()
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Measure bits per character on a text."""
    parser = Parser(prog="evaluate", description="What it costs a model to reproduce a text: bits per character.")
    _model_flags(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="text to measure on")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the text file")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse(argv)
    from mini_transformer.data.sources import read_text
    from mini_transformer.device import pick_device
    from mini_transformer.evaluation.likelihood import measure
    from mini_transformer.generation.generator import Writer

    text = read_text(given.data, given.encoding)
    writer = Writer.load(given.model_dir, pick_device(given.device, given.gpus))
    result = measure(writer.model, writer.tokenizer, text, str(given.data))
    if given.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(f"{result.bits_per_character:.4f} bits per character")
        print(f"{result.bits_per_byte:.4f} bits per byte, {result.nats_per_token:.4f} nats per token")
        print(f"{result.characters:,} characters, {result.bytes:,} bytes, {result.tokens:,} tokens")
    return 0


def demo(argv: Sequence[str]) -> int:
    """Train a small model on the embedded fables and print what it writes."""
    parser = Parser(prog="demo", description="Train a small model on the embedded fables, then write one.")
    parser.add_argument("--out-dir", type=Path, default=Path("demo-out"), metavar="DIR", help="folder of the model")
    parser.add_argument("--max-iters", type=int, metavar="N", help="iterations (default: those of the preset)")
    given = parser.parse(argv)
    from mini_transformer.data.sources import embedded_corpus

    iters = [] if given.max_iters is None else ["--max-iters", str(given.max_iters)]
    folder = ["--out-dir", str(given.out_dir)]
    if code := train(["--data", str(embedded_corpus()), "--preset", "tiny", *iters, *folder]):
        return code
    print("\nA fable that it writes:\n", flush=True)
    generate(["--model-dir", str(given.out_dir), "--max-new-tokens", "600", "--seed", "1", "--device", "cpu"])
    print(f"\nThe model lies in {given.out_dir}: see loss_curve.png and generated_text.txt there. Let it go on:")
    print(f'  mini-transformer generate --model-dir {given.out_dir} --prompt "Un renard"')
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
    "demo": demo,
}


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong is told in one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # French text on any terminal, also under a C locale
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        return COMMANDS[name](sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        print(f"{name}: the Python package {error.name!r} is missing: pip install {error.name}", file=sys.stderr)
        return EXIT_WRONG_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """`mini-transformer COMMAND ...`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run(arguments[0], arguments[1:])
    if arguments == ["--version"]:
        print(__version__)
        return 0
    asked = not arguments or arguments[0] in ("-h", "--help")
    if not asked:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"mini-transformer: {arguments[0]}: unknown command; {hint}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    print("usage: mini-transformer COMMAND [flags]; COMMAND --help tells more\n")
    for name, command in COMMANDS.items():
        print(f"  {name:10} {command.__doc__}")
    return 0
