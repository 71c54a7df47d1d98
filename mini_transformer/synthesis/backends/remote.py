"""A server that speaks the OpenAI protocol (vLLM, Ollama, llama.cpp, TGI...): many requests in flight at once."""

import asyncio
import email.utils
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import httpx

from mini_transformer.errors import UserError
from mini_transformer.synthesis.backends import Output, Task
from mini_transformer.synthesis.settings import SynthesisConfig

KEY = "OPENAI_API_KEY"
PATIENCE = 600.0  # seconds without any answer: enough for a server to start again and load its model
LONGEST_PAUSE, LONGEST_ASKED_PAUSE = 60.0, 600.0  # seconds: by our own judgement; because the server says so
BETWEEN_LINES = 10.0  # seconds: a server in trouble is not reported for each of a hundred requests
CUT_SHORT = ("length", "content_filter", "abort", "error")  # reasons to finish that are not the end of the text
TIMEOUT = httpx.Timeout(connect=10.0, read=600.0, write=30.0, pool=None)

Result = TypeVar("Result")


class Passing(Exception):
    """A failure that may go away by itself; `pause` is the wait that the server asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class RemoteEngine:
    """An `Engine` behind an address. The key comes from the environment and goes nowhere but to the server."""

    def __init__(
        self,
        config: SynthesisConfig,
        say: Callable[[str], None],
        first_pause: float = 1.0,
        timeout: httpx.Timeout = TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        """`say` prints a line for people; `first_pause` is the wait before the second try, in seconds.

        Raises `UserError` for an address or a key that cannot be one.
        """
        assert config.base_url is not None
        self.room = config.batch
        self._config, self._say, self._first_pause, self._patience = config, say, first_pause, patience
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(f"{KEY}: holds a space, a line break or a letter that no key has; set it to the key alone")
        self._told = float("-inf")  # when a failure was last reported
        self._failing_since: float | None = None  # the first failure after the last answer
        self._pending: set[asyncio.Task[Output]] = set()
        if "?" in config.base_url or "#" in config.base_url:
            raise UserError("--base-url: ends in a query (?...) or a fragment (#...); give the address up to /v1 alone")
        try:
            self._url = httpx.URL(config.base_url.rstrip("/") + "/chat/completions")
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url: no address of a server ({error})") from None
        self.place = f"{self._url.scheme}://{self._url.netloc.decode()}"  # what is said of it: no password, no query
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=config.batch, max_keepalive_connections=config.batch),
        )
        # In a thread of its own, as Ctrl-C inside of a loop leaves it unusable, and the requests could not be ended.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def write(self, tasks: Sequence[Task]) -> list[Output]:
        """Send requests for the tasks, then wait until at least one of those in flight is answered."""
        return self._run(self._write(tasks))

    def close(self) -> None:
        """Give up the requests in flight."""

        async def close() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.aclose()

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return waiting.result(timeout=0.5)  # on Windows, Ctrl-C is only heard between two waits
            except TimeoutError:
                if waiting.done():  # the work itself raised it, or ended just now
                    return waiting.result()

    async def _write(self, tasks: Sequence[Task]) -> list[Output]:
        self._pending |= {asyncio.create_task(self._ask(task)) for task in tasks}
        done, self._pending = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        failed = {task for task in done if task.exception() is not None}
        if failed == done:
            failed.pop().result()  # raises
        self._pending |= failed  # the next call raises; what was answered beside it is not lost
        return [task.result() for task in done - failed]

    async def _ask(self, task: Task) -> Output:
        pause = self._first_pause
        while True:
            try:
                output = await self._request(task)
            except Passing as failure:
                self._give_up_if_all_fail(failure)
                # Twice as long each time, and not all requests at the same moment.
                wait = min(failure.pause, LONGEST_ASKED_PAUSE) + pause * random.uniform(0.5, 1.0)
                pause = min(2 * pause, LONGEST_PAUSE)
                if time.monotonic() - self._told >= BETWEEN_LINES:
                    self._told = time.monotonic()
                    self._say(f"{self.place}: {failure}; sample {task.prompt.number} is asked again in {wait:.1f} s")
                await asyncio.sleep(wait)
            else:
                self._failing_since = None
                return output

    def _give_up_if_all_fail(self, failure: Passing) -> None:
        """A request may fail as often as it likes while others are answered, as with a server that limits its rate."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= self._patience:
            raise UserError(
                f"--base-url: {self.place} has answered nothing for {self._patience / 60:.3g} minutes ({failure}); the "
                "samples so far are kept, and the same command goes on"
            )

    async def _request(self, task: Task) -> Output:
        question = {
            "model": self._config.model,
            "messages": [
                {"role": "system", "content": task.prompt.system},
                {"role": "user", "content": task.prompt.text},
            ],
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "max_tokens": self._config.max_new_tokens,
            "seed": task.seed,
        }
        try:
            response = await self._client.post(self._url, json=question)
        except httpx.TimeoutException:
            raise Passing("no answer in time") from None
        except httpx.ConnectError as error:
            raise Passing(f"cannot connect: {error}") from None
        except httpx.RequestError as error:
            raise Passing(f"connection lost ({type(error).__name__})") from None
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise Passing(f"status {response.status_code}", _asked_pause(response.headers.get("retry-after", "")))
        if response.status_code != 200:
            raise UserError(
                f"--base-url: {self.place} refuses with status {response.status_code}{self._hint(response)}"
            )
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text, tokens = choice["message"]["content"] or "", (answer.get("usage") or {}).get("completion_tokens")
            finished = choice.get("finish_reason") not in CUT_SHORT
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            raise Passing("an answer that is no chat completion") from None
        if not isinstance(text, str):
            raise Passing("an answer that is no chat completion")
        return Output(task, text, tokens if isinstance(tokens, int) else 0, finished)

    def _hint(self, response: httpx.Response) -> str:
        hints = {
            401: f": is {KEY} set to the right key?",
            403: f": is {KEY} set to the right key?",
            404: f": does it know the model {self._config.model}, and does the address end in /v1?",
        }
        if response.has_redirect_location:
            location = self._safe(response.headers["location"])
            return f", a redirect to {location}; give that as --base-url, without /chat/completions"
        words = self._safe(response.text)
        return hints.get(response.status_code, "") + (f" ({words})" if words else "")

    def _safe(self, text: str) -> str:
        """The beginning of what a server says, in one line; without the key, which some repeat in their complaint."""
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:200]


def _asked_pause(header: str) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date; 0 for anything else."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
