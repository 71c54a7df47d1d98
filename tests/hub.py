"""A small Hugging Face Hub on this machine: what its clients ask for when they read a dataset or a tokenizer."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.+)?)?")
FILE = re.compile(r"(/datasets|)/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def files_of(folder: Path) -> list[Path]:
    """All files of a repository."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def revision_of(folder: Path) -> str:
    """The commit that a repository stands at: another one whenever a file is."""
    return hashlib.sha1(b"".join(str(p).encode() + p.read_bytes() for p in files_of(folder))).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Hub"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.asked.append(path)
        if (found := API.fullmatch(path)) and not found[5]:
            self._about(self.server.folder / found[1] / found[2], found[2], found[3], found[4])
        elif found and found[5]:  # none of our repositories has folders
            self._answer(404, b"{}", X_Error_Code="EntryNotFound")
        elif found := FILE.fullmatch(path):
            self._file(self.server.folder / (found[1][1:] or "models") / found[2], found[4])
        else:
            self._answer(404, b"{}")

    def _about(self, folder: Path, name: str, what: str | None, revision: str | None) -> None:
        if not folder.is_dir() or revision not in (None, "main", revision_of(folder)):
            return self._answer(404, b"{}", X_Error_Code="RepoNotFound")
        names = [str(p.relative_to(folder)) for p in files_of(folder)]
        if what == "tree":
            entries = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": name} for name in names
            ]
            return self._answer(200, json.dumps(entries).encode())
        facts = {"id": name, "sha": revision_of(folder), "siblings": [{"rfilename": name} for name in names]}
        return self._answer(200, json.dumps(facts).encode())

    def _file(self, folder: Path, name: str) -> None:
        if not folder.is_dir():
            return self._answer(404, b"", X_Error_Code="RepoNotFound")
        if not (folder / name).is_file():
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        content = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": revision_of(folder)}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], **headers)
        return self._answer(200, content, Accept_Ranges="bytes", **headers)

    def _answer(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Hub(ThreadingHTTPServer):
    """Serves the folders `datasets/USER/NAME` and `models/USER/NAME` below one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []


@contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    """A Hub while the block lasts."""
    with Hub(folder) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
