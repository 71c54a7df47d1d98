"""A server that speaks the OpenAI protocol (vLLM, Ollama, llama.cpp, TGI...): many requests in flight at once.

The `openai` client asks again twice by itself, with growing pauses or the one that the server asks for (`Retry-After`).
What still fails is asked again here, for as long as the server answers anything within `PATIENCE`.
"""

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import openai
from anyio.from_thread import start_blocking_portal

from mini_transformer.errors import UserError
from mini_transformer.files import parse_json
from mini_transformer.synthesis.backends import Output, Task
from mini_transformer.synthesis.config import SynthesisConfig

KEY = "OPENAI_API_KEY"
TIMEOUT = 600.0  # seconds for one request, the client's own retries included
PATIENCE = 600.0  # seconds without any answer: enough for a server to start again and load its model
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before asking again; twice as long each time
LARGEST_ANSWER = 4_000_000  # bytes: far more than the longest sample takes
HINTS = dict.fromkeys((401, 403), f": is {KEY} set to the right key?")
HINTS |= {404: ": does it know the model {model}, and does the address end in /v1?"}
BETWEEN_LINES = 10.0  # seconds: a server in trouble is not reported for each of a hundred requests
TRUNCATED = ("length", "content_filter", "abort", "error")  # reasons to finish that are not the end of the text


class ServerEngine:
    """An `Engine` behind an address. The key comes from the environment and goes nowhere but to the server."""

    def __init__(self, config: SynthesisConfig, log: Callable[[str], None]) -> None:
        """`log` prints a line for people. Raises `UserError` for an address or a key that cannot be one."""
        self.concurrency = config.batch
        self._config, self._log, self._key = config, log, os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(f"{KEY}: holds a space, a line break or a letter that no key has; set it to the key alone")
        address = urlsplit(config.base_url or "")
        self.place = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"  # what is shown of it: no password
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._check_status]})
        connecting = openai.Timeout(None, connect=10.0)  # the rest is limited where it is asked
        try:
            self._client = openai.AsyncOpenAI(
                api_key=self._key or "none", base_url=config.base_url, timeout=connecting, http_client=http
            )
        except Exception as error:  # whatever the URL class of the client's HTTP library raises
            raise UserError(f"`base_url`: no address of a server ({error})") from None
        self._headers = {} if self._key else {"Authorization": openai.Omit()}
        self._last_line = float("-inf")  # when a failure was last reported
        self._failing_since: float | None = None  # the first failure after the last answer
        self._in_flight: set[Future[Output]] = set()
        # In a thread of its own, as Ctrl-C inside of a loop leaves it unusable, and the requests could not be ended.
        self._thread = ExitStack()
        self._portal = self._thread.enter_context(start_blocking_portal())

    def generate(self, tasks: Sequence[Task]) -> list[Output]:
        """Send requests for the tasks, then wait until at least one of those in flight is answered."""
        self._in_flight |= {self._portal.start_task_soon(self._ask_until_answered, task) for task in tasks}
        done = set[Future[Output]]()
        while not done:  # on Windows, Ctrl-C is only heard between two waits
            done, _ = wait(self._in_flight, timeout=0.5, return_when=FIRST_COMPLETED)
        answered = {future for future in done if future.exception() is None}
        self._in_flight -= answered  # the next call raises what failed beside them: no answer is lost
        return [future.result() for future in answered or done]

    def close(self) -> None:
        """Cancel the requests in flight."""
        for future in self._in_flight:
            future.cancel()
        self._portal.call(self._client.close)
        self._thread.close()

    async def _ask_until_answered(self, task: Task) -> Output:
        """A request may fail as often as it likes while others are answered, as with a server that limits its rate."""
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(TIMEOUT):
                    output = await self._ask(task)
                self._failing_since = None
                return output
            except (ConnectionError, openai.APIError, TimeoutError) as error:
                cause = isinstance(error, openai.APIConnectionError) and error.__cause__
                failure = str(error).rstrip(".") + (f" ({cause})" if cause else "") or "no answer in time"
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since >= PATIENCE:
                silent = f"has answered nothing for {PATIENCE / 60:.3g} minutes ({failure})"
                goes_on = "the samples so far are kept, and the same command goes on"
                raise UserError(f"`base_url`: {self.place} {silent}; {goes_on}")
            seconds = pause * random.uniform(0.5, 1.0)  # not all requests at the same moment
            pause = min(2 * pause, LONGEST_PAUSE)
            if now - self._last_line >= BETWEEN_LINES:
                self._last_line = now
                self._log(f"{self.place}: {failure}; sample {task.prompt.number} is asked again in {seconds:.1f} s")
            await asyncio.sleep(seconds)

    async def _ask(self, task: Task) -> Output:
        """Raises `ConnectionError` for an answer that breaks off, is too large or no chat completion."""
        prompt, config = task.prompt, self._config
        request = self._client.chat.completions.with_streaming_response.create(
            model=config.model,
            messages=[{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.text}],
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_new_tokens,
            seed=task.seed,
            extra_headers=self._headers,
        )
        async with request as response:
            try:
                body = await _read(response.iter_bytes(), LARGEST_ANSWER + 1)
            except Exception as error:  # whatever the client's HTTP library raises when an answer breaks off
                raise ConnectionError(f"connection lost ({type(error).__name__})") from None
        if len(body) > LARGEST_ANSWER:
            raise ConnectionError(f"an answer of more than {LARGEST_ANSWER:,} bytes")
        try:
            answer = parse_json(body)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, tokens = choice["message"]["content"] or "", usage.get("completion_tokens")
            finished = choice.get("finish_reason") not in TRUNCATED
            if isinstance(text, str):
                return Output(task, text, tokens if type(tokens) is int and 0 <= tokens < 2**31 else 0, finished)
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        raise ConnectionError("an answer that is no chat completion")

    async def _check_status(self, response: Any) -> None:
        """Called before the body is read: that of an error is not read to its end, which may never come.

        Raises `UserError` for a status that asking again would not change; the client handles the others.
        """
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            await response.aclose()
        elif status != 200:
            words = self._safe((await _read(response.aiter_bytes(), 10_000)).decode(errors="replace"))
            hint = HINTS.get(status, "").format(model=self._config.model)
            if response.has_redirect_location:
                to = self._safe(response.headers["location"])
                hint = f", a redirect to {to}; give that as `base_url`, without /chat/completions"
            reason = words or "no reason given"
            raise UserError(f"`base_url`: {self.place} refuses with status {status}{hint} ({reason})")

    def _safe(self, text: str) -> str:
        """A server's first words, in one line: no key, which some repeat; no backticks, which mark our settings."""
        line = " ".join(text.replace("`", "'").split())
        return (line.replace(self._key, "[key]") if self._key else line)[:200]


async def _read(chunks: Any, most: int) -> bytes:
    """The bytes of a response, up to the chunk with which they are `most` or more."""
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) >= most:
            break
    return body
