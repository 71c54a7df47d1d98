"""Datasets of the Hugging Face Hub, by name (`hf:NAME[:config][:split]`), streamed through the library `datasets`."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

HUB = "hf:"


class UnreachableError(UserError):
    """The Hub does not answer."""


def is_hub(path: Path) -> bool:
    """Whether a source is a dataset by name."""
    return str(path).startswith(HUB)


def parse_hub(path: Path) -> tuple[str, str | None, str]:
    """Name (or local folder), configuration and split of a dataset. Raises `UserError` for anything else."""
    parts = str(path).removeprefix(HUB).split(":")
    if len(parts) > 3 or not parts[0]:
        raise UserError(f"{path}: expected hf:NAME, hf:NAME:config or hf:NAME:config:split")
    name, config, split = [*parts, "", ""][:3]
    return name, config or None, split or "train"


def hub_folder(path: Path) -> Path | None:
    """The folder on this machine that a source names, if it is one."""
    folder = Path(parse_hub(path)[0])
    return folder if folder.is_dir() else None


def is_remote(path: Path) -> bool:
    """Whether a source is on the Hub and not on this machine."""
    return is_hub(path) and hub_folder(path) is None


@functools.cache
def hub_revision(path: Path) -> str:
    """The newest commit of a dataset on the Hub.

    Raises `UserError` if there is no such dataset, `UnreachableError` if the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return str(HfApi().dataset_info(parse_hub(path)[0], timeout=20).sha)
    except GatedRepoError:
        raise UserError(f"{path}: its terms must be accepted on the Hub first (then: hf auth login)") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{path}: neither a folder here nor a public dataset on the Hub (for a private one: hf auth login)"
        ) from None
    except Exception as error:  # each kind of network has its own errors
        raise UnreachableError(f"{path}: the Hub cannot be reached ({_first_line(error)})") from None


def read_dataset(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a dataset, at the commit of `hub_revision`. Raises `UserError` for whatever the library says."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path}: needs the Python package 'datasets': pip install datasets") from None
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # errors are reported by us, once
    name, config, split = parse_hub(path)
    revision = hub_revision(path) if is_remote(path) else None
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True, revision=revision)
    except Exception as error:  # each format that a dataset may have brings its own errors
        raise UserError(f"{path}: cannot be read ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
