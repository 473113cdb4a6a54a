"""Answers that cost money, on disk from the moment they arrive."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

TABLE = """CREATE TABLE IF NOT EXISTS judge_answers (
    key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, model TEXT, id TEXT, usage TEXT NOT NULL, time TEXT NOT NULL
)"""
PATIENCE = 60  # seconds to wait for another process that is writing


class JudgeError(RuntimeError):
    """A judge can't be asked; the message says why, what is kept and what to do."""


class PaidAnswer(NamedTuple):
    """An answer as the server gave it.

    `text` is None for a refusal; `model` and `id` are the server's own; `usage` is empty where the server counts no
    tokens; `time` is in UTC.
    """

    text: str | None
    finish_reason: str | None
    model: str | None
    id: str | None
    usage: dict[str, Any]
    time: str


class PaidAnswers:
    """An SQLite file of answers by the key of their request.

    Every call opens its own connection and commits before it returns, so threads and processes can share a file and a
    killed process loses nothing that had arrived. SQLite's default journal is kept, since write-ahead logging fails on
    network file systems.

    Args:
        path: created where there is none.

    Raises:
        JudgeError: the file can't be opened, or is no such file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as db:
                db.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise JudgeError(
                f"{path} can't be used as a judge's cache ({error}); expected an SQLite file, or none yet. Choose "
                "another path."
            ) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=PATIENCE)

    def get(self, keys: Iterable[str]) -> dict[str, PaidAnswer]:
        """The answers that are there, by key."""
        found = {}
        with closing(self._connect()) as db:
            query = "SELECT text, finish_reason, model, id, usage, time FROM judge_answers WHERE key = ?"
            for key in keys:
                row = db.execute(query, (key,)).fetchone()
                if row is not None:
                    found[key] = PaidAnswer(*row)._replace(usage=json.loads(row[4]))
        return found

    def keep(self, key: str, answer: PaidAnswer) -> None:
        """Write an answer to disk. Where two processes asked the same at once, the first answer stays."""
        row = (*answer[:4], json.dumps(answer.usage), answer.time)
        with closing(self._connect()) as db, db:
            db.execute("INSERT OR IGNORE INTO judge_answers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *map(_storable, row)))


def _storable(text: str | None) -> str | None:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes its escape: no answer is lost for it."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Estimate:
    """What a call would send.

    Args:
        requests: different ones in all; `cached` of them are answered already, `to_send` are not.
        input_tokens: of those to send, estimated at 4 characters a token.
        output_tokens: at most.
        cost: of these tokens; None without prices.
        example: the first request's messages; none where nothing is asked.
    """

    requests: int
    cached: int
    to_send: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    example: list[dict[str, str]]

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests: {self.cached:,} answered already, {self.to_send:,} to send with about "
            f"{self.input_tokens:,} input tokens (4 characters a token), at most {self.output_tokens:,} output tokens"
            + ("" if self.cost is None else f", cost about {self.cost:,.4f}")
        )
