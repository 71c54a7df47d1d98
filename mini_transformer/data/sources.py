"""What can be read: text files, folders, patterns, files of records and Hub datasets; and whether they have changed."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from mini_transformer.data import hub
from mini_transformer.data.cache import DataCache, digest
from mini_transformer.data.reading import COMPRESSED, ReaderConfig, decode, is_compressed, normalise
from mini_transformer.data.records import kind_of, read_records
from mini_transformer.errors import UserError
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece, stream_documents

TEXTS = (".txt", *(f".txt{suffix}" for suffix in COMPRESSED))

_logged: set[Path] = set()  # folders whose files of records were left out: each is listed more than once


def _files_below(folder: Path) -> list[Path]:
    """All files of a folder and its sub-folders, except those of a model: what it wrote is not to be trained on."""
    files: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(place)
        if "run.json" in names or real in seen:  # links may lead round in a circle
            folders.clear()
        else:
            seen.add(real)
            folders.sort()
            files += (Path(place, name) for name in names)
    return sorted(file for file in files if file.is_file())


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")


def _files_of_a_folder(folder: Path) -> list[Path]:
    """All its texts; where there are none, all its files of records. A corpus comes in one form or the other."""
    everything = _files_below(folder)
    texts = [file for file in everything if file.name.lower().endswith(TEXTS)]
    others = [file for file in everything if kind_of(file)]
    if texts and others and folder not in _logged:
        _logged.add(folder)
        log(f"{folder}: {len(others)} files of records left out (as {others[0].name}); name them to read them, too")
    if not texts and not others:
        what = "is that of a run, which is not to be trained on; name a file" if (folder / "run.json").exists() else ""
        raise UserError(f"{folder}: the folder {what or 'holds no .txt file'}")
    return texts or others


def text_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder or of a pattern (`*`, `?`, `[`), in the order of their names.

    Raises `UserError` if there is no such file, or it can be read only once.
    """
    if path.is_dir():
        return _files_of_a_folder(path)
    if not path.exists() and glob.has_magic(str(path)):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        files = sorted({os.path.realpath(file): file for file in reversed(found)}.values())  # links may lead round
        if not files:
            raise UserError(f"{path}: no file fits this pattern")
        return files
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; a text is read more than once, so save it as a file first")
    return [path]


class Sources:
    """Sources whose documents follow each other as one text."""

    def __init__(self, paths: Sequence[Path], reader: ReaderConfig) -> None:
        """Raises `UserError` if a file is missing."""
        self.paths, self.reader = tuple(paths), reader
        self.remote = any(map(hub.is_remote, paths))
        self.reads = 0  # how often the text was read
        self.stats = self._list()
        self.size = sum(size for size, *_ in self.stats.values())  # bytes on disk

    def _list(self) -> dict[Path, list[int]]:
        """The files on this machine, and what changes when they do: size and times."""
        stats = {}
        for path in self.paths:
            folder = hub.hub_folder(path) if hub.is_hub(path) else None
            for file in (
                sorted(filter(Path.is_file, folder.rglob("*")))
                if folder
                else ()
                if hub.is_hub(path)
                else text_files(path)
            ):
                if not file.exists():
                    raise UserError(f"{file}: no such file")
                stat = file.stat()
                stats[file] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        return stats

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    @property
    def text_size(self) -> int | None:
        """The bytes of text to come, where the size on disk tells."""
        plain = not self.remote and not any(is_compressed(file) or kind_of(file) for file in self.stats)
        return self.size if plain and not any(map(hub.is_hub, self.paths)) else None

    def key(self, cache: DataCache) -> str:
        """A hash of where the sources are, how they are read, and the state that they are in."""
        files = [[str(file.absolute()), *stat] for file, stat in self.stats.items()]
        datasets = [[str(path), _revision(path, cache)] for path in self.paths if hub.is_remote(path)]
        return digest(list(map(str, self.paths)), files, datasets, vars(self.reader))

    def stream(self) -> Iterator[Piece]:
        """All documents, piece by piece, in bounded memory. Raises `UserError` for what cannot be read, or changes."""
        self.reads += 1
        for path in self.paths:
            for file in [path] if hub.is_hub(path) else text_files(path):
                if hub.is_hub(path) or kind_of(file):
                    yield from read_records(file, self.reader)
                else:
                    yield from stream_documents(normalise(decode(file, self.reader.encoding)), file.name)
        if self._list() != self.stats:
            raise UserError(f"{self}: changed while it was read; start again when it is complete")


def _revision(path: Path, cache: DataCache) -> str:
    """The commit of a dataset on the Hub; the one of last time where the Hub cannot be reached."""
    key = digest(str(path))
    try:
        revision = hub.hub_revision(path)
        cache.keep("hub", key, {"revision": revision})
    except hub.UnreachableError:
        last = cache.find("hub", key, ["revision"])
        if last is None:
            raise
        log(f"{path}: the Hub cannot be reached; taking the text of last time")
        revision = last["revision"]
    return str(revision)


def nothing_to_learn(paths: Sequence[Path]) -> UserError:
    """The error for sources without any text."""
    return UserError(f"{', '.join(map(str, paths))}: empty: there is no text to learn from")


def read_documents(paths: Sequence[Path], reader: ReaderConfig | None = None) -> list[str]:
    """All documents of some sources, in memory. Raises `UserError` if there is no text at all."""
    documents, parts = [], list[str]()
    for piece in Sources(paths, reader or ReaderConfig()).stream():
        parts.append(piece.text)
        if piece.last:
            documents.append("".join(parts))
            parts = []
    if not documents:
        raise nothing_to_learn(paths)
    return documents
