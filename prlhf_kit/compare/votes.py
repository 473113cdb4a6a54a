"""People's votes, kept as preference records: JSON lines that `kit.data.load("files", path=...)` reads."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from prlhf_kit.data.schema import record
from prlhf_kit.files import now

TORN = ".torn"


class VoteError(ValueError):
    """The vote can't be taken; the message says why."""


def records(
    voter: str,
    prompt: list[dict[str, str]],
    answers: Iterable[tuple[str, Mapping[str, Any]]],
    chosen: int,
    voter_text: str | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """One preference record for each answer that `chosen` was preferred to.

    Answers that are empty, or the same as the chosen one, are no alternatives and give no record.

    Args:
        voter: becomes `user_id`.
        answers: text, and what made it (plain values), of each answer in the order in which they were shown.
        chosen: number of the chosen one.
        voter_text: what the voter says of themselves.
        more: what else is kept in every record.

    Raises:
        VoteError: no name, or nothing to choose between.
    """
    if not voter.strip():
        raise VoteError("Type your name (or any id of yours) first: a vote counts as that person's preference.")
    shown = [(text.strip(), made_by) for text, made_by in answers]
    best, best_by = shown[chosen]
    if not best:
        raise VoteError("An empty answer can't be preferred.")
    others = [(text, made_by) for text, made_by in shown if text and text != best]
    if not others:
        raise VoteError("There is no other answer than this one: the others are empty, or the same to the letter.")
    vote = f"vote-{uuid.uuid4().hex[:12]}"
    return [
        record(
            f"{vote}-{i}",
            voter.strip(),
            prompt,
            best,
            text,
            (voter_text or "").strip() or None,
            vote=vote,
            chosen_from=dict(best_by),
            rejected_from=dict(made_by),
            time=now(),
            **more,
        )
        for i, (text, made_by) in enumerate(others)
    ]


def append(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Add `rows` to the JSON lines in `path`, all or none, and wait until they are on the disk.

    Several processes may do so at once. Returns what `mend` had to say, or "".

    Raises:
        OSError: it can't be written; the file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    with _lock(path), path.open("ab", buffering=0) as file:
        told = _mend(path)
        before = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(lines):
                written += file.write(lines[written:]) or 0
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise
    return told


def mend(path: str | Path) -> str:
    """Move a last line that a crash cut off to `<path>.torn`, so that the file can be read.

    Returns what was done, or "".
    """
    path = Path(path)
    if not path.exists():
        return ""
    with _lock(path):
        return _mend(path)


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=30)


def _mend(path: Path) -> str:
    content = path.read_bytes()
    last = content.rpartition(b"\n")[2]
    if not last:
        return ""
    with path.open("r+b") as file:
        try:
            json.loads(last)  # whole: only its line break is missing
        except ValueError:
            torn = path.with_name(path.name + TORN)
            with torn.open("ab") as aside:
                aside.write(last + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            file.truncate(len(content) - len(last))
            told = f"The last line of {path} was cut off by a crash; its {len(last)} bytes were moved to {torn}."
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            told = ""
        file.flush()
        os.fsync(file.fileno())
    return told
