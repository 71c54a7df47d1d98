"""The command line: flags from the dataclasses, errors for people.

Exit codes: 0 done, 2 wrong input (one line on standard error says what), 130 interrupted.
"""

import argparse
import atexit
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from mini_transformer import __version__
from mini_transformer.config import TRAINABLE_TOKENIZERS, flag, with_flags
from mini_transformer.errors import UserError, did_you_mean
from mini_transformer.runtime import is_launched

EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 2, 130
OTHER_NAMES = {  # flags of nanoGPT and transformers, and ours
    "--learning-rate": "--lr",
    "--start": "--prompt",
    "--max-length": "--max-new-tokens",
    "--num-return-sequences": "--num-samples",
    "--max-steps": "--max-iters",
    "--num-train-epochs": "--epochs",
    "--train-file": "--data",
    "--output-dir": "--out-dir",
    "--per-device-train-batch-size": "--batch-size",
    "--warmup-steps": "--warmup-iters",
    "--max-grad-norm": "--grad-clip",
    "--dtype": "--precision",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which names the nearest flag for one that it does not know."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; raises `UserError` for anything wrong."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            flags = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
            word = unknown[0].split("=")[0].replace("_", "-")
            ours = did_you_mean(OTHER_NAMES.get(word, word).lstrip("-"), flags)
            hint = ours.replace("mean ", "mean --") or "; see --help"  # no hint is better than a wrong one
            if not word.startswith("-"):
                raise UserError(f"{unknown[0]}: there is no flag before it; see --help")
            if word == "--resume" and "overwrite" in flags:
                hint = "; the same command continues a run that was stopped"
            raise UserError(f"{unknown[0]}: unknown flag{hint}")
        return arguments


def name(word: str) -> str:
    """The type of a flag that names something: the empty word, as of an unset variable, is refused."""
    if not word:
        raise argparse.ArgumentTypeError("an empty name")
    return word


def path(word: str) -> Path:
    """The type of a flag that names a file or folder."""
    return Path(name(word))


def tokenizer(word: str) -> str:
    """The type of `--tokenizer`: a kind, in capital letters or not, or the name of a ready one."""
    return word.lower() if word.lower() in TRAINABLE_TOKENIZERS else name(word)


def add_fields(parser: argparse._ActionsContainer, part: Any, only: Sequence[str] = (), **defaults: Any) -> None:
    """A flag for each setting of a dataclass, or for those named. A flag not given is absent from the result.

    `defaults`: those that differ from the dataclass's; they are always in the result.
    """
    settings = {f.name: f for f in dataclasses.fields(part) if f.metadata}
    for f in (settings[name] for name in only or settings):
        default = defaults.get(f.name, f.default)
        help = f.metadata["help"].replace("%", "%%")
        if default not in (None, False, "", ()):
            help = f"{help[:-1]}; default: {default})" if help[-1] == ")" else f"{help} (default: {default})"
        more: dict[str, Any] = {"help": help, "default": defaults.get(f.name, argparse.SUPPRESS)}
        kind = (get_args(f.type) or (f.type,))[0]  # of `Path | None`: Path
        if kind is bool:
            more["action"] = "store_true"
        else:
            words = tokenizer if f.name == "tokenizer" else str if f.default == "" else name
            more["type"] = {int: int, float: float, Path: path}.get(kind, words)
            more["metavar"] = f.metadata.get("metavar") or {int: "N", float: "X"}.get(kind)
            more["choices"] = f.metadata.get("choices")
            if get_origin(f.type) is tuple:
                more |= {"nargs": "+", "action": "extend"}
        parser.add_argument(flag(f.name), **more)


# Each command is the module of its name in `commands`, loaded only when it is called.
COMMANDS = {
    "train": "train a model on your texts",
    "generate": "write with a trained model",
    "generate-data": "let an instruct model write texts to pre-train on",
    "evaluate": "measure bits per character on a text",
    "prepare": "read and tokenize the texts of a run ahead of time",
    "tokenizer": "train a tokenizer alone, or show what one makes of a text",
    "gguf": "write a model as a file for llama.cpp, Ollama and LM Studio",
    "verse": "check the syllables, metre and rhyme of French verse",
    "corpus": "list or print the fables that come with the package",
    "demo": "train the base model on the embedded fables and print one that it writes",
}


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command; an error is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # French text on any terminal, also under a C locale
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # and names that are not UTF-8
    try:
        command = importlib.import_module(f"mini_transformer.commands.{name.replace('-', '_')}")
        return int(command.main(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        message = with_flags(str(error).replace("\n", " "))
    except SystemExit as leaving:  # of --help, and of a rank that has nothing to say
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        return 0
    except OSError as error:
        message = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    except ModuleNotFoundError as error:
        message = f"the Python package {error.name!r} is missing: pip install {error.name}"
    print(f"{name}: {message}", file=sys.stderr)
    return EXIT_WRONG_INPUT


def door(name: str = "") -> NoReturn:
    """The process of one command, or of the one that its first word names.

    Until a command has a better answer to Ctrl-C, that ends it at once: Python's would get lost in the imports of
    libraries, or wait for their long work, and nothing is half-written at any moment. A rank ends without tearing down
    the threads that gloo has left.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = run(name) if name else main()
    if is_launched():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """`mini-transformer COMMAND ...`."""
    word, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if word in COMMANDS:
        return run(word, arguments)
    if word == "--version":
        print(__version__)
        return 0
    if word not in ("-h", "--help"):
        hint = did_you_mean(word, COMMANDS, f"; there are {', '.join(COMMANDS)}")
        print(f"mini-transformer: {word}: unknown command{hint}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    print("usage: mini-transformer COMMAND [flags]; COMMAND --help lists the flags\n")
    for name, purpose in COMMANDS.items():
        print(f"  {name:15} {purpose}")
    return 0
