"""A server on this machine that speaks the OpenAI protocol, and fails in all the ways that servers fail."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BROKEN = {
    "garbage": b'{"choices": []}',
    "no text": b'{"choices": [{"message": {"content": 3}}]}',
    "torn": b'{"choices": [{"message": ',
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "digits": b'{"choices": [], "usage": ' + b"9" * 5000 + b"}",
    "huge": b'{"choices": [{"message": {"content": "' + b"x" * 4_000_000 + b'"}}]}',
}


class Server(ThreadingHTTPServer):
    """Answers each chat with a text that names its seed. `plan` tells what goes wrong with a seed's n-th request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: Callable[[int, int], str] = lambda seed, nth: "answer"
        self.counts: Counter[int] = Counter()
        self.requests: list[tuple[float, dict[str, Any], str]] = []
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.delay = 0.0
        self.long_complaint = 0
        self.text: Callable[[int], str] = lambda seed: f"Texte numéro {seed}."

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            nth = server.counts[question["seed"]]
            server.counts[question["seed"]] += 1
            server.requests.append((time.monotonic(), question, self.headers.get("Authorization", "")))
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        time.sleep(server.delay)
        with server.lock:
            server.now -= 1
        self.answer(server.plan(question["seed"], nth), question)

    def answer(self, what: str, question: dict[str, Any]) -> None:
        name, _, value = (what, "", "") if what in BROKEN else what.partition(" ")
        server = self.server
        if name == "status":
            status, _, wait = value.partition(" ")
            error = f"no,{' not' * server.long_complaint} not with {self.headers.get('Authorization')}"
            return self.send(int(status), json.dumps({"error": error}).encode(), {"Retry-After": wait} if wait else {})
        if name == "redirect":
            return self.send(307, b"", {"Location": value})
        if name == "hang":
            time.sleep(1.5)
            return None
        if name == "drop":
            return self.connection.close()
        if name in BROKEN:
            return self.send(200, BROKEN[name], {})
        if name == "drip":  # an answer that never ends, or an error
            self.send_response(int(value or 200))
            self.end_headers()
            while True:
                self.wfile.write(b" ")
                time.sleep(0.02)
        message = {"role": "assistant", "content": server.text(question["seed"])}
        end = value if name == "finish" else "stop"
        tokens = json.loads(value) if name == "tokens" else 7
        answer = {"choices": [{"message": message, "finish_reason": end}], "usage": {"completion_tokens": tokens}}
        body = json.dumps(answer).encode()
        if name == "cut":  # in the middle of the answer
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:40])
            self.wfile.flush()
            return self.connection.close()
        return self.send(200, body, {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
