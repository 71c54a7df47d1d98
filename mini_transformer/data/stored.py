"""The sources of one body of text: where they lie, what they hold, and whether they are still the same."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mini_transformer.data.cache import Cache, digest
from mini_transformer.data.records import Unreachable, hub_revision, is_hub, is_remote
from mini_transformer.data.sources import Reading, is_packed, stored_files, stream_source
from mini_transformer.errors import UserError
from mini_transformer.text.documents import Piece


class Sources:
    """Some sources whose documents follow each other."""

    def __init__(self, paths: Sequence[Path], reading: Reading, store: Cache) -> None:
        """Raises `UserError` if a file is not there."""
        self.paths, self.reading, self.store = paths, reading, store
        self.remote = any(map(is_remote, paths))
        self._files = self._list()
        self._stamps = [Cache.stamp(file) for file in self._files]
        self.size = sum(stamp[0] for stamp in self._stamps)  # bytes, as they are packed

    def _list(self) -> list[Path]:
        return list(chain(*map(stored_files, self.paths)))

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    @property
    def text_size(self) -> int | None:
        """The bytes of text to come, if that is known."""
        return None if any(map(is_packed, self.paths)) else self.size

    def stream(self) -> Iterator[Piece]:
        """All documents, piece by piece. Raises `UserError` for what cannot be read."""
        for path in self.paths:
            yield from stream_source(path, self.reading)

    def content(self, remember: bool) -> str:
        """What stands for the text: the same for the same files, wherever they lie.

        With `remember`, the hashes of files are kept in the cache. Raises `UserError` for what cannot be read.
        """
        parts = []
        for path in self.paths:
            files = stored_files(path)
            # how a file is read follows from the end of its name
            formats = ["".join(file.suffixes[-2:]).lower() for file in files]
            what = _revision(path, self.store) if is_remote(path) else self.store.content(files, remember)
            parts.append([what, formats, str(path) if is_hub(path) else ""])
        return digest(parts, self.reading.encoding, self.reading.text_field)

    def check_unchanged(self) -> None:
        """Raises `UserError` if a file is no longer what it was at the start."""
        for file, stamp in zip(self._files, self._stamps, strict=True):
            if Cache.stamp(file) != stamp:
                raise UserError(f"{file}: changed while it was read; start again when it is complete")
        if self._list() != self._files:
            raise UserError(f"{self}: files came or went while it was read; start again when it is complete")


def _revision(path: Path, store: Cache) -> str:
    """The revision of a dataset on the Hub; the one of last time where the Hub cannot be reached."""
    key = digest(str(path))
    try:
        return str(store.keep("hub", key, {"revision": hub_revision(path)})["revision"])
    except Unreachable:
        if (last := store.find("hub", key, {"revision": str})) is None:
            raise
    print(f"{path}: the Hub cannot be reached; taking the text of last time", flush=True)
    return str(last["revision"])
