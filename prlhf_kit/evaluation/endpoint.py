"""An OpenAI-compatible endpoint: several requests at a time, and every answer on disk the moment it arrives."""

import json
import os
import random
import re
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
from tqdm.auto import tqdm

from prlhf_kit.files import now

AGAIN = (408, 409, 429)  # statuses that may pass, and 5xx
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
GIVE_UP = 20  # unanswered requests one after the other: the server is gone
WAY_OUT = "Check base_url (most end in /v1), the key, the model's name and its parameters (None: not sent). "


class JudgeError(RuntimeError):
    """A judge can't be asked; the message says why, what is kept and what to do."""


class PaidAnswers:
    """An SQLite file of answers by the key of their request. Every call opens its own connection and commits: threads
    and processes can share a file, and a killed process loses nothing. Raises `JudgeError` for another kind of file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as db:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS judge_answers (key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, "
                    "model TEXT, id TEXT, usage TEXT NOT NULL, time TEXT NOT NULL)"
                )
        except sqlite3.DatabaseError as error:
            raise JudgeError(f"{path} can't be used as a judge's cache ({error}). Choose another path.") from error

    def _open(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.path, timeout=60, isolation_level=None))  # commits every statement

    def get(self, keys: Iterable[str]) -> dict[str, tuple[str | None, dict[str, Any]]]:
        """The answers that are there, by key: text (None where the model refused to say anything) and token counts."""
        query = "SELECT key, text, usage FROM judge_answers WHERE key = ?"
        with self._open() as db:
            rows = [db.execute(query, (key,)).fetchone() for key in keys]
        return {row[0]: (row[1], json.loads(row[2])) for row in rows if row}

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write a server's answer to disk. Where two processes asked the same at once, the first answer stays."""
        choice = answer["choices"][0]
        said = (choice["message"].get("content"), choice.get("finish_reason"), answer.get("model"), answer.get("id"))
        # half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes its escape
        row = [None if part is None else str(part).encode(errors="backslashreplace").decode() for part in said]
        usage = json.dumps(answer["usage"] if isinstance(answer.get("usage"), dict) else {})
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO judge_answers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *row, usage, now()))


class Endpoint:
    """An OpenAI-compatible server; see `LLMJudge` for the arguments. `sent`: the keys of all requests so far."""

    def __init__(self, base_url: str, api_key_env: str | None, concurrency: int, timeout: float, retries: int):
        # neither is repeated in a message: they may hold a password or a key
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", base_url):
            raise JudgeError("base_url is not of the form https://host/v1, without user, password, query and fragment.")
        self.base_url = base_url.rstrip("/")
        self.is_openai = self.base_url.split("/")[2] == "api.openai.com"
        self.api_key_env = "OPENAI_API_KEY" if api_key_env is None and self.is_openai else api_key_env
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env or "_"):
            raise JudgeError("api_key_env is no name, in capitals, of an environment variable that holds the key.")
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.sent: set[str] = set()

    def ask(self, wanted: Mapping[str, dict[str, Any]], kept: PaidAnswers) -> None:
        """Send `wanted` (key -> body), and keep every answer under its key. After Ctrl-C nothing more is sent, and what
        is under way is waited for and kept. Raises `JudgeError` where the server refuses a request, or some have no
        answer."""
        secret = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else "none"
        if not re.fullmatch("[!-~]+", secret):
            wrong = "no key, plain characters without spaces" if secret else "not set"
            raise JudgeError(f"the variable {self.api_key_env} is {wrong}; expected the key of {self.base_url} there.")
        headers = {"Authorization": f"Bearer {secret}"}
        stop, in_a_row, refused, last = threading.Event(), 0, False, ""
        with httpx.Client(headers=headers, timeout=self.timeout, follow_redirects=True) as client:
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
            asked = [pool.submit(self._ask, client, stop, kept, *item) for item in wanted.items()]
            try:
                for future in tqdm(as_completed(asked), total=len(asked), desc="judging", disable=None, leave=False):
                    refused, failed = future.result()
                    last, in_a_row = failed or last, in_a_row + 1 if failed else 0
                    if refused or in_a_row == GIVE_UP:
                        break
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        answered = len(kept.get(wanted))
        if answered < len(wanted):
            last = last.replace(secret, "***") if self.api_key_env else last  # a server may repeat the key
            left = f"{len(wanted) - answered} of {len(wanted)} requests to {self.base_url} got no answer"
            rest = f"{answered} answers are kept in {kept.path}; call again to ask only for the rest."
            raise JudgeError(f"{left}, the last one: {last[:400]}. {WAY_OUT if refused else ''}{rest}")

    def _ask(
        self, client: httpx.Client, stop: threading.Event, kept: PaidAnswers, key: str, body: dict[str, Any]
    ) -> tuple[bool, str]:
        """Send a request, again after what may pass, and keep its answer: (whether the server refuses it, why there is
        no answer). A refusal ends the whole call."""
        failed = ""
        for attempt in range(self.retries + 1):
            if stop.is_set():
                break
            self.sent.add(key)
            pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1)
            try:
                response = client.post(f"{self.base_url}/chat/completions", json=body)
                if response.status_code == 400 and "max_tokens" in body and "max_completion_tokens" in response.text:
                    # newer models have another name for it
                    body = {"max_completion_tokens" if k == "max_tokens" else k: v for k, v in body.items()}
                    response = client.post(f"{self.base_url}/chat/completions", json=body)
            except httpx.RequestError as error:
                failed = f"{type(error).__name__}: {error}"
            else:
                answer = _with_message(response)
                if answer is not None:
                    try:
                        kept.keep(key, answer)
                    except sqlite3.Error as error:
                        stop.set()  # nothing more is paid for that can't be kept
                        said = f"an answer could not be written to {kept.path}: {error}"
                        raise JudgeError(f"{said}. Make room there, and call again.") from error
                    return False, ""
                failed = f"status {response.status_code}, no choices[0].message: {response.text}"
                if response.status_code not in (200, *AGAIN) and not response.is_server_error:
                    stop.set()  # here, or this thread would send the next one before anybody hears of it
                    return True, failed
                after = response.headers.get("retry-after", "")
                if re.fullmatch(r"\d+(\.\d+)?", after):
                    pause = min(float(after), LONGEST_PAUSE)
            if attempt < self.retries:
                stop.wait(pause)
        return False, failed


def _with_message(response: httpx.Response) -> dict[str, Any] | None:
    """The server's answer, if there is a message in it: whatever else is left out or added, it is paid for."""
    try:
        answer = response.json()
        return answer if response.status_code == 200 and isinstance(answer["choices"][0]["message"], dict) else None
    except (ValueError, LookupError, TypeError):
        return None
