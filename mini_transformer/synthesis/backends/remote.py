"""A server that speaks the OpenAI protocol (vLLM, Ollama, llama.cpp, TGI...): many requests in flight at once."""

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Callable, Sequence

import httpx

from mini_transformer.errors import UserError
from mini_transformer.synthesis.backends import Output, Task
from mini_transformer.synthesis.settings import SynthesisConfig

KEY = "OPENAI_API_KEY"
TRIES = 8  # of one request, in a row: some minutes, which a server needs to come back
LONGEST_PAUSE, LONGEST_ASKED_PAUSE = 60.0, 600.0  # seconds: by our own judgement; because the server says so
BETWEEN_LINES = 10.0  # seconds: a server in trouble is not reported for each of a hundred requests
TIMEOUT = httpx.Timeout(connect=10.0, read=600.0, write=30.0, pool=None)


class Passing(Exception):
    """A failure that may go away by itself; `pause` is the wait that the server asked for, if it did."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
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
    ) -> None:
        """`say` prints a line for people; `first_pause` is the wait before the second try, in seconds."""
        assert config.base_url is not None
        self.room = config.batch
        self._config, self._say, self._first_pause = config, say, first_pause
        self._key = os.environ.get(KEY, "").strip()
        self._told = float("-inf")  # when a failure was last reported
        self._runner = asyncio.Runner()
        self._pending: set[asyncio.Task[Output]] = set()
        try:
            self._url = httpx.URL(config.base_url.rstrip("/") + "/chat/completions")
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url: no address of a server ({error})") from None
        self.place = f"{self._url.scheme}://{self._url.netloc.decode()}"  # what is said of it: no password, no query
        try:
            self._client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=timeout,
                limits=httpx.Limits(max_connections=config.batch, max_keepalive_connections=config.batch),
            )
        except UnicodeEncodeError:
            raise UserError(f"{KEY}: holds characters that no key has") from None

    def write(self, tasks: Sequence[Task]) -> list[Output]:
        """Send requests for the tasks, then wait until at least one of those in flight is answered."""
        return self._runner.run(self._write(tasks))

    def close(self) -> None:
        """Give up the requests in flight."""

        async def close() -> None:
            for task in self._pending:
                task.cancel()
            await asyncio.gather(*self._pending, return_exceptions=True)
            await self._client.aclose()

        self._runner.run(close())
        self._runner.close()

    async def _write(self, tasks: Sequence[Task]) -> list[Output]:
        self._pending |= {asyncio.create_task(self._ask(task)) for task in tasks}
        done, self._pending = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        failed = {task for task in done if task.exception() is not None}
        if failed == done:
            failed.pop().result()  # raises
        self._pending |= failed  # the next call raises; what was answered beside it is not lost
        return [task.result() for task in done - failed]

    async def _ask(self, task: Task) -> Output:
        for attempt in range(1, TRIES + 1):
            try:
                return await self._request(task)
            except Passing as failure:
                if attempt == TRIES:
                    raise UserError(
                        f"--base-url: {self.place} failed {TRIES} times in a row ({failure}); the samples so far are "
                        "kept, and the same command goes on"
                    ) from None
                # Twice as long each time, and not all requests at the same moment.
                pause = self._first_pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                pause = max(min(pause, LONGEST_PAUSE), min(failure.pause or 0.0, LONGEST_ASKED_PAUSE))
                if time.monotonic() - self._told >= BETWEEN_LINES:
                    self._told = time.monotonic()
                    self._say(f"{self.place}: {failure}; sample {task.prompt.number} is asked again in {pause:.1f} s")
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

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
        except httpx.RequestError as error:
            raise Passing(f"connection lost ({type(error).__name__})") from None
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise Passing(f"status {response.status_code}", _asked_pause(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise UserError(
                f"--base-url: {self.place} refuses with status {response.status_code}{self._hint(response)}"
            )
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text, tokens = choice["message"]["content"] or "", (answer.get("usage") or {}).get("completion_tokens")
            finished = choice.get("finish_reason") != "length"
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
        words = " ".join(response.text.split())[:200]
        if self._key:
            words = words.replace(self._key, "[key]")  # some servers repeat it in their complaint
        return hints.get(response.status_code, "") + (f" ({words})" if words else "")


def _asked_pause(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
