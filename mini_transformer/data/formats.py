"""Files of records: how JSON, CSV and Parquet are to be read, judged by their first characters.

What the library `datasets` would misread, or end this process over, is refused here.
"""

import contextlib
import csv
import functools
import io
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from mini_transformer.data.reading import find_codec, is_compressed, look_into, read_chunks
from mini_transformer.errors import UserError

KINDS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json")
KINDS |= {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MANY, LONGEST = 20, 40  # fields, and characters of each, that an error names


def kind_of(file: Path) -> str | None:
    """The format of a file of records by its name, or None."""
    name = file.with_suffix("") if is_compressed(file) else file
    return KINDS.get(name.suffix.lower())


def settings_of(path: Path, encoding: str, field: str) -> dict[str, Any] | None:
    """What to tell the library about a file of records; None if there is nothing in it.

    Raises `UserError` if it cannot be read, is another format than its name says, or has no such field.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return {"batch_size": 1024}
    beginning = look_into(path, encoding)
    if not beginning:
        return None
    if kind == "csv":
        return _csv_settings(path, beginning, field) | {"encoding": find_codec(encoding).name}
    return _json_settings(path, beginning, encoding)


def _json_settings(path: Path, beginning: str, encoding: str) -> dict[str, Any]:
    """A `null` in the place of a record is refused: pyarrow ends the process over one."""
    if beginning[0] not in "{[" or re.match(r"\[\s*null\b", beginning):
        raise UserError(
            f"{path}: cannot be read: cut short, damaged or not this format "
            f"(it begins with {beginning[:20]!r}, not with a record or a list of records)"
        )
    if beginning[0] == "[":
        return {}  # the library reads a list as UTF-8 alone
    codec = find_codec(encoding)
    if "\n".encode(codec.name) != b"\n":  # the library parts the bytes at line feeds before it decodes them
        raise UserError(f"{path}: JSON is not read as {encoding}; save the file as utf-8")
    _check_no_null(path)
    return {"encoding": codec.name}


@functools.cache  # a source is read more than once
def _check_no_null(path: Path) -> None:
    end, line = b"", 1
    for chunk in read_chunks(path):
        data = end + chunk
        if (at := data.find(b"\nnull")) >= 0:
            line += data.count(b"\n", 0, at + 1)
            raise UserError(f"{path}: cannot be read: line {line} is null, not a record; take it out")
        kept = max(0, len(data) - 4)
        line, end = line + data.count(b"\n", 0, kept), data[kept:]


def _csv_settings(path: Path, beginning: str, field: str) -> dict[str, Any]:
    """Every field as the text that stands there: not as a number, nor `NA` and `None` as nothing."""
    fields: list[str] = []
    # semicolons are what Excel writes where the comma is the decimal point
    for separator in "\t" if ".tsv" in path.name.lower() else ",;\t":
        names, first = _rows(beginning, separator)
        if field in names:
            if len(first) > len(names):  # which the library would take for an index, and shift the names
                raise UserError(f"{path}: cannot be read: the first record has more fields than the header has names")
            converters = dict.fromkeys(range(len(names)), str)
            return {"sep": separator, "converters": converters, "na_filter": False}
        fields = max(fields, names, key=len)
    raise no_field(path, field, fields)


def _rows(text: str, separator: str) -> tuple[list[str], list[str]]:
    """The header and the first record; empty where they are too long to be told."""
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows += islice(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), 2)
    header, first = [*rows, [], []][:2]
    return header, first


def no_field(path: Path, field: str, fields: Iterable[str]) -> UserError:
    """The error for records without a field, naming those that they have."""
    names = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in sorted(fields)]
    shown = ", ".join(names[:MANY] + ["…"] * (len(names) > MANY)) or "none"
    return UserError(f"--text-field: {path} has no field {field!r}; its fields: {shown}")
