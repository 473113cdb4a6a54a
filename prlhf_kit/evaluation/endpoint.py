"""Asks an OpenAI-compatible endpoint, several requests at a time, and keeps every answer the moment it arrives."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2  # what the openai client sends with
import openai
from tqdm.auto import tqdm

from prlhf_kit.evaluation.paid_answers import JudgeError, PaidAnswer, PaidAnswers
from prlhf_kit.files import now

OPENAI = "api.openai.com"
WAY_OUT = {
    400: "If the server does not know response_format, set structured=False; if temperature or seed, set that to None.",
    401: "Check the key in {key}.",
    403: "Check the key in {key}, and whether it may use this model.",
    404: "Check base_url (most end in /v1) and the model's name.",
}
WAY_OUT[422] = WAY_OUT[400]
TRANSIENT = (408, 409, 429)  # and 5xx: the client tries these again
GIVE_UP = 20  # unanswered requests one after the other: the server is gone


class _Stopped(Exception):
    """A request was not sent (again), since its call has ended."""


@dataclass
class Spent:
    """What a judge has sent and got since it was made.

    Args:
        requests: different ones that were sent, answered or not.
        retries: how often one of them was sent again.
        answers: that arrived; `uncounted` of them without the server's count of tokens.
        unreadable: different answers, new or from the cache, that gave no verdict.
        cost: of the counted tokens; None without prices.
    """

    requests: int = 0
    retries: int = 0
    answers: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreadable: int = 0
    cost: float | None = None


@dataclass
class Endpoint:
    """Asks an OpenAI-compatible server, several requests at a time; see `LLMJudge` for the arguments."""

    base_url: str
    api_key_env: str | None
    concurrency: int
    requests_per_minute: float | None
    timeout: float
    retries: int
    spent: Spent = field(default_factory=Spent)
    _next: float = 0.0  # when the next request may be sent
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self):
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise JudgeError(  # the address is not repeated: it may hold a password
                f"base_url (of the host {url.hostname!r}) is not of the form https://host/v1, without user, password, "
                "query and fragment. A key belongs into an environment variable, whose name is api_key_env."
            )
        if self.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise JudgeError(  # it is not repeated: it may be a key
                "api_key_env is no name of an environment variable; expected one in capitals, such as OPENAI_API_KEY. "
                "The key itself belongs into that variable."
            )
        self.base_url = self.base_url.rstrip("/")
        self.is_openai = url.hostname == OPENAI
        if self.is_openai and self.api_key_env is None:
            self.api_key_env = "OPENAI_API_KEY"

    def _key(self) -> str:
        """The key, read anew for every call and kept nowhere; a placeholder where the server needs none."""
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise JudgeError(
                f"the environment variable {self.api_key_env} is {'not set' if not key else 'no key'}; expected the "
                f"key of {self.base_url} there, plain characters without spaces."
            )
        return key

    def ask(self, wanted: Mapping[str, dict[str, Any]], kept: PaidAnswers) -> None:
        """Send the bodies of requests, `wanted` by their keys, and keep every answer under its key.

        Raises:
            JudgeError: some have no answer. The others are kept.
        """
        key, stop = self._key(), threading.Event()
        client = self._client(key, stop)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        asked = [pool.submit(self._ask, client, stop, kept, *item) for item in wanted.items()]

        def close() -> None:
            pool.shutdown()  # waits for what is under way
            client.close()

        closing = threading.Thread(target=close)
        errors: list[BaseException] = []
        in_a_row = 0
        try:
            for future in tqdm(as_completed(asked), total=len(asked), desc="judging", disable=None, leave=False):
                error = future.exception()
                if isinstance(error, _Stopped):
                    continue  # the error that stopped it comes, too
                in_a_row = in_a_row + 1 if error else 0
                if error:
                    errors.append(error)
                    if _final(error) or in_a_row >= GIVE_UP:
                        break
        finally:  # after Ctrl-C too: nothing more is sent, and what is under way is kept when it arrives
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            closing.start()
        closing.join(self.timeout)
        answered = len(kept.get(wanted))
        if errors and answered < len(wanted):  # another process may have asked the same
            raise self._error(errors[-1], key, len(wanted), answered, kept.path)

    def _client(self, key: str, stop: threading.Event) -> openai.OpenAI:
        """A client that retries incomplete answers as it does status 500, and sends nothing after `stop`."""

        def before(request: httpx2.Request) -> None:
            with self._lock:
                sent = max(self._next, time.monotonic())
                self._next = sent + 60 / self.requests_per_minute if self.requests_per_minute else sent
            if stop.wait(sent - time.monotonic()):
                raise _Stopped
            again = request.headers.get("x-stainless-retry-count", "0") != "0"
            with self._lock:
                self.spent.retries += again
                self.spent.requests += not again

        hooks: Any = {"request": [before], "response": [_complete]}
        client = openai.OpenAI(
            api_key=key,
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
            default_headers={"Authorization": f"Bearer {key}"},  # OPENAI_CUSTOM_HEADERS may hold another
        )
        if not self.is_openai:  # the client takes them from the environment, and they are nobody else's business
            client.organization = client.project = None
        return client

    def _ask(
        self, client: openai.OpenAI, stop: threading.Event, kept: PaidAnswers, key: str, body: dict[str, Any]
    ) -> None:
        if stop.is_set():
            raise _Stopped
        # as plain JSON: whatever else a server leaves out or adds, an answer that came is kept
        try:
            found = client.chat.completions.with_raw_response.create(**body).http_response.json()
        except Exception as error:
            if _final(error):
                stop.set()  # here, or this thread would send the next one before anybody hears of it
            raise
        choice, usage = found["choices"][0], found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        texts = (choice["message"].get("content"), choice.get("finish_reason"), found.get("model"), found.get("id"))
        text, reason, model, name = (t if isinstance(t, str) else None for t in texts)
        kept.keep(key, PaidAnswer(text, reason, model, name, usage, now()))
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        counted = [n if isinstance(n, int) else 0 for n in tokens]
        with self._lock:
            self.spent.answers += 1
            self.spent.uncounted += not all(isinstance(n, int) for n in tokens)
            self.spent.prompt_tokens += counted[0]
            self.spent.completion_tokens += counted[1]

    def _error(self, error: BaseException, key: str, asked: int, answered: int, path: Path) -> JudgeError:
        """What to tell the user. The key is replaced before the text is shortened, which could halve it."""
        status = getattr(error, "status_code", None)
        why = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
        said = f"{type(why).__name__}: {getattr(error, 'body', None) or why}"
        said = (said.replace(key, "***") if self.api_key_env else said)[:400]
        kept = f"{answered} answers are kept in {path}"
        if status and _final(error):
            way_out = WAY_OUT.get(status, "").format(key=self.api_key_env or "the variable that api_key_env names")
            return JudgeError(f"{self.base_url} refused a request with status {status}: {said} {way_out} {kept}.")
        return JudgeError(
            f"{asked - answered} of {asked} requests to {self.base_url} got no answer (the last error: {said}); "
            f"{kept}. Call again to ask only for the rest."
        )


def _final(error: BaseException) -> bool:
    """Whether asking again can't help: a refusal, or an error that is not the server's, such as a full disk."""
    status = getattr(error, "status_code", 500)
    return not isinstance(error, openai.APIError) or (status < 500 and status not in TRANSIENT)


def _complete(response: httpx2.Response) -> None:
    """Turns an answer without a message into an error of the connection, which the client retries."""
    if response.status_code != 200:
        return
    response.read()
    try:
        whole = isinstance(response.json()["choices"][0]["message"], dict)
    except (ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise httpx2.RemoteProtocolError(f"no choices[0].message in the answer {response.text!r}")
