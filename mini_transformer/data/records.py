"""Records of JSON, CSV, Parquet and of Hub datasets as documents: one document for each record, in bounded memory.

Parquet needs `pyarrow`, the Hub needs `datasets`: extras, imported when such a source is named.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mini_transformer.data import hub
from mini_transformer.data.reading import ReaderConfig, is_compressed, read_lines
from mini_transformer.errors import UserError
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece, cut_document

KINDS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json")
KINDS |= {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
ROWS = 1024  # of a Parquet file that are read at once
SHOWN_RECORDS, SHOWN_FIELDS, SHOWN_LENGTH = 3, 20, 40  # in messages: records, names of fields, characters of a name
_SPACE = re.compile(r"\s*")

_logged: set[str] = set()  # sources whose unreadable records have been reported: each is read more than once


def kind_of(file: Path) -> str | None:
    """The format of a file of records, by its name: json, csv or parquet; None for any other file."""
    name = file.with_suffix("") if is_compressed(file) else file
    return KINDS.get(name.suffix.lower())


def read_records(path: Path, reader: ReaderConfig) -> Iterator[Piece]:
    """The texts of a source's records, one document each, in pieces.

    Records without readable text are left out and reported. Raises `UserError` past `max_unreadable` of them, if the
    first record does not have the field, and if the source cannot be read.
    """
    field, unreadable = reader.text_field, list[str]()
    for number, record in enumerate(_records(path, reader), 1):
        if number == 1 and isinstance(record, dict) and field not in record:
            raise missing_field(path, field, record)
        try:
            text = _text_of(record, field)
        except ValueError as error:
            unreadable.append(f"record {number}: {error}")
            if len(unreadable) > reader.max_unreadable:
                raise UserError(
                    f"{path}: more than {reader.max_unreadable} records without readable text in {field!r} "
                    f"({'; '.join(unreadable[:SHOWN_RECORDS])}); `max_unreadable` allows more"
                ) from None
            continue
        if text := text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip("\n"):
            yield from cut_document(text, path.name)
    if unreadable and str(path) not in _logged:
        _logged.add(str(path))
        more = f"; and {len(unreadable) - SHOWN_RECORDS} more" if len(unreadable) > SHOWN_RECORDS else ""
        shown = "; ".join(unreadable[:SHOWN_RECORDS])
        log(f"{path}: {len(unreadable)} unreadable records left out ({shown}{more})")


def _text_of(record: Any, field: str) -> str:
    """The text of a record. Raises `ValueError` that says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"{json.dumps(record)[:SHOWN_LENGTH]} is not a record")
    text = record.get(field)
    if not isinstance(text, str):
        raise ValueError("nothing there" if text is None else f"a {type(text).__name__}, not a text")
    text.encode("utf-8")  # half of a surrogate pair is an error
    return "" if text.isspace() else text


def missing_field(path: Path, field: str, fields: Iterable[str]) -> UserError:
    """The error for records without a field, naming those that they have."""
    names = [name if len(name) <= SHOWN_LENGTH else f"{name[:SHOWN_LENGTH]}…" for name in sorted(map(str, fields))]
    shown = ", ".join(names[:SHOWN_FIELDS] + ["…"] * (len(names) > SHOWN_FIELDS)) or "none"
    return UserError(f"`text_field`: {path} has no field {field!r}; its fields: {shown}")


def _records(path: Path, reader: ReaderConfig) -> Iterator[Any]:
    """The records of a source, whatever its format."""
    if hub.is_hub(path):
        return hub.read_dataset(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return {"json": _json, "csv": _csv, "parquet": _parquet}[str(kind_of(path))](path, reader)


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path}: cannot be read: cut short, damaged or not this format ({why})")


def _json(path: Path, reader: ReaderConfig) -> Iterator[Any]:
    """One record per line; or, read as a whole, records that take several lines, or lists of records or of texts."""
    lines = ((number, line) for number, line in enumerate(read_lines(path, reader.encoding), 1) if line.strip())
    for i, (number, line) in enumerate(lines):
        try:
            if i > 0:
                yield json.loads(line)
                continue
            if line.lstrip()[0] not in "[{":
                raise ValueError(f"it begins with {line.strip()[:20]!r}, not with a record or a list of records")
            if line.lstrip()[0] == "[" or line.rstrip()[-1] != "}":
                line += "".join(rest for _, rest in lines)
            for value in _values(line):
                if isinstance(value, list):
                    yield from ({reader.text_field: record} if isinstance(record, str) else record for record in value)
                else:
                    yield value
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"line {number}: {error}") from None


def _values(text: str) -> Iterator[Any]:
    """All JSON values of a text, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while (start := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
        value, at = decoder.raw_decode(text, start)
        yield value


def _csv(path: Path, reader: ReaderConfig) -> Iterator[Any]:
    """Every field as the text that it is: `NA` and `12` too. The separator is the one that splits the header."""
    csv.field_size_limit(2**31 - 1)  # the most that every system takes
    lines = read_lines(path, reader.encoding)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    # semicolons are what Excel writes where the comma is the decimal point
    separators = "\t" if ".tsv" in path.name.lower() else ",;\t"
    headers: list[list[str]] = [next(csv.reader([first], delimiter=separator), []) for separator in separators]
    header = next((names for names in headers if reader.text_field in names), None)
    if header is None:
        raise missing_field(path, reader.text_field, sorted(headers, key=len)[-1])
    rows = csv.reader(lines, delimiter=separators[headers.index(header)], strict=True)
    try:
        for row in rows:
            if len(row) > len(header):
                raise _damaged(path, f"line {rows.line_num + 1} has {len(row)} fields, the header {len(header)}")
            if row:
                yield dict.fromkeys(header) | dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise _damaged(path, f"line {rows.line_num + 1}: {error}") from None


def _parquet(path: Path, reader: ReaderConfig) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: needs the Python package 'pyarrow': pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if reader.text_field not in names:
                raise missing_field(path, reader.text_field, names)
            for batch in file.iter_batches(ROWS, columns=[reader.text_field]):
                yield from ({reader.text_field: text} for text in batch.column(0).to_pylist())
    except (ArrowException, OSError) as error:
        raise _damaged(path, error) from None
