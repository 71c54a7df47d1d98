"""What can be read: text files and folders of them, as documents, and their division into training and validation."""

from dataclasses import dataclass
from pathlib import Path

from mini_transformer.data.documents import split_documents
from mini_transformer.errors import UserError

VALIDATION_SHARE = 0.1


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of one file as it stands, line ends included. Raises `UserError` if it cannot be read as text."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a text file") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in data and encoding.lower().replace("_", "-") in (
        "utf-8",
        "utf8",
        "utf-8-sig",
        "latin-1",
        "cp1252",
    ):
        raise UserError(f"{path}: a binary file (zero byte at offset {data.index(0)}), not text")
    try:
        return data.decode(encoding)
    except LookupError:
        raise UserError(f"--encoding: {encoding!r} is not a known encoding; try utf-8, latin-1 or cp1252") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {encoding}: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "if the file is in another encoding, name it (for example --encoding latin-1)"
        ) from None


def text_files(path: Path) -> list[Path]:
    """The file itself, or all `.txt` files of a folder and its sub-folders, in the order of their names."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*.txt") if p.is_file())
    if not files:
        raise UserError(f"{path}: the folder holds no .txt file")
    return files


def read_documents(paths: tuple[Path, ...], encoding: str = "utf-8") -> list[str]:
    """All documents of some files or folders. Line ends become line feeds; a byte-order mark is dropped.

    Raises `UserError` if there is no text at all.
    """
    documents: list[str] = []
    for path in paths:
        for file in text_files(path):
            text = read_text(file, encoding).removeprefix("\ufeff")
            documents += split_documents(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not documents:
        raise UserError(f"{', '.join(map(str, paths))}: empty: there is no text to learn from")
    return documents


@dataclass(frozen=True)
class Split:
    """Documents to train on, and documents to validate on."""

    train: list[str]
    validation: list[str]


def split_validation(documents: list[str]) -> Split:
    """Set a tenth of the documents aside, evenly spread; of fewer than ten documents, the last tenth of the text."""
    if len(documents) >= 10:
        every = round(1 / VALIDATION_SHARE)
        validation = documents[every - 1 :: every]
        train = [document for i, document in enumerate(documents) if i % every != every - 1]
        return Split(train, validation)
    keep = round(sum(map(len, documents)) * (1 - VALIDATION_SHARE))
    train, validation = [], []
    for document in documents:
        cut = max(0, min(len(document), keep))
        keep -= cut
        train += [document[:cut]] if document[:cut].strip() else []
        validation += [document[cut:]] if document[cut:].strip() else []
    return Split(train, validation)
