"""Records of JSON, CSV, Parquet and of Hub datasets as documents, streamed through the library `datasets`.

The library is an extra: it is imported only when such a source is named.
"""

import functools
import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_transformer.data.formats import kind_of, no_field, settings_of
from mini_transformer.errors import UserError
from mini_transformer.text.documents import Piece, cut_document

if TYPE_CHECKING:
    from mini_transformer.data.sources import Reading

HUB = "hf:"
NAMED = 3  # unreadable records that are told in full

_told: set[str] = set()  # sources whose unreadable records have been told: each is read more than once


def is_hub(path: Path) -> bool:
    """Whether a source is a dataset by name: `hf:NAME[:config][:split]`."""
    return str(path).startswith(HUB)


def parse_hub(path: Path) -> tuple[str, str | None, str]:
    """Name (or local folder), configuration and split of a Hub dataset."""
    parts = str(path).removeprefix(HUB).split(":")
    if len(parts) > 3 or not parts[0]:
        raise UserError(f"{path}: expected hf:NAME, hf:NAME:config or hf:NAME:config:split")
    name, config, split = [*parts, "", ""][:3]
    return name, config or None, split or "train"


def hub_folder(path: Path) -> Path | None:
    """The folder on this machine that a source names, if it does."""
    folder = Path(parse_hub(path)[0])
    return folder if folder.is_dir() else None


def is_remote(path: Path) -> bool:
    """Whether a source lies on the Hub and not on this machine."""
    return is_hub(path) and hub_folder(path) is None


class Unreachable(UserError):
    """The Hub does not answer."""


@functools.cache
def hub_revision(path: Path) -> str:
    """The commit that a dataset on the Hub stands at. Raises `UserError` if there is none, `Unreachable` if unknown."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    name = parse_hub(path)[0]
    try:
        return str(HfApi().dataset_info(name, timeout=20).sha)
    except GatedRepoError:
        raise UserError(f"{path}: its terms must be accepted on the Hub first (then: hf auth login)") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{path}: neither a folder here nor a public dataset on the Hub (for a private one: hf auth login)"
        ) from None
    except Exception as error:  # each kind of network has its own errors
        raise Unreachable(f"{path}: the Hub cannot be reached ({_short(error)})") from None


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _load(path: Path, reading: "Reading") -> Any:
    """The stream of a source's records."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path}: needs the Python package 'datasets': pip install datasets") from None
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # errors are told by us, once
    if is_hub(path):
        name, config, split = parse_hub(path)
        revision = hub_revision(path) if is_remote(path) else None
        return datasets.load_dataset(name, config, split=split, streaming=True, revision=revision)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{path}: its name is not UTF-8, so 'datasets' cannot open it: rename the file") from None
    settings = settings_of(path, reading.encoding, reading.text_field)
    if settings is None:
        return ()
    # a name is a pattern to the library
    settings |= {"data_files": glob.escape(os.fspath(path)), "split": "train", "streaming": True}
    kind = kind_of(path)
    records = datasets.load_dataset(kind, **settings)
    if kind != "parquet":
        return records
    if reading.text_field not in records.column_names:
        raise no_field(path, reading.text_field, records.column_names)
    return datasets.load_dataset(kind, columns=[reading.text_field], **settings)


def _records(path: Path, reading: "Reading") -> Iterator[dict[str, Any]]:
    """The records of a source. Raises `UserError` for whatever the library says."""
    try:
        yield from _load(path, reading)
    except UserError:
        raise
    except EOFError as error:
        raise UserError(f"{path}: cut short or damaged ({_short(error)})") from None
    except (StopIteration, RuntimeError) as error:
        if not isinstance(error, StopIteration) and not isinstance(error.__cause__, StopIteration):
            raise UserError(f"{path}: cannot be read ({_short(error)})") from None
        return  # so the library says that a file is empty
    except Exception as error:  # each format has its own errors
        advice = "; if it is in another encoding, name it (--encoding cp1252)"
        raise UserError(
            f"{path}: cannot be read: cut short, damaged or not this format ({_short(error)})"
            + advice * isinstance(error, UnicodeDecodeError)
        ) from None


def stream_records(path: Path, reading: "Reading") -> Iterator[Piece]:
    """The text of each record, one document each. Raises `UserError` past the limit of unreadable records."""
    unreadable: list[str] = []
    count = 0
    for number, record in enumerate(_records(path, reading), 1):
        if reading.text_field not in record:
            raise no_field(path, reading.text_field, record)
        text = record[reading.text_field]
        if wrong := _what_is_wrong(text):
            count += 1
            unreadable += [f"record {number}: {wrong}"] if count <= NAMED else []
            if count > reading.max_unreadable:
                raise UserError(
                    f"{path}: more than {reading.max_unreadable} records without readable text in "
                    f"{reading.text_field!r} ({'; '.join(unreadable)}); --max-unreadable allows more"
                )
            continue
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip("\n")
        if text.strip():
            yield from cut_document(text, path.name)
    if count and str(path) not in _told:
        _told.add(str(path))
        more = f"; and {count - NAMED} more" if count > NAMED else ""
        print(f"{path}: {count} unreadable records left out ({'; '.join(unreadable)}{more})", flush=True)


def _what_is_wrong(text: object) -> str:
    if text is None:
        return "nothing there"
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not a text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "a lone surrogate"
    return ""
