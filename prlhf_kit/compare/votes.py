"""People's votes, kept as preference records: JSON lines that `kit.data.load("files", path=...)` reads."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from prlhf_kit.data.schema import record
from prlhf_kit.files import now, write_text


def records(
    voter: str,
    prompt: list[dict[str, str]],
    answers: Sequence[tuple[str, Mapping[str, Any]]],
    chosen: int,
    voter_text: str = "",
    **more: Any,
) -> list[dict[str, Any]]:
    """One preference record of `voter` for each of `answers` (text, and what made it) that number `chosen` was
    preferred to; none for those that are empty, or the same as it. `more` is kept in every record.

    Raises:
        ValueError: no name, or nothing to choose between.
    """
    best, best_by = answers[chosen][0].strip(), answers[chosen][1]
    others = [(text.strip(), made_by) for text, made_by in answers if text.strip() not in ("", best)]
    if not voter.strip():
        raise ValueError("Type your name (or any id of yours) first: a vote counts as that person's preference.")
    if not best or not others:
        raise ValueError("There is nothing to prefer: answers are empty, or the same to the letter.")
    more |= {"vote": f"vote-{uuid.uuid4().hex[:12]}", "time": now(), "chosen_from": best_by}
    about = voter_text.strip() or None
    return [
        record(f"{more['vote']}-{i}", voter.strip(), prompt, best, text, about, rejected_from=made_by, **more)
        for i, (text, made_by) in enumerate(others)
    ]


def append(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add `rows` to the JSON lines in `path`, all or none. Several processes may do so at once. Raises `OSError` where
    it can't be written, or is locked for half a minute."""
    path = Path(path).resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=30):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not before.endswith("\n"):  # edited by hand
            before += "\n"
        write_text(path, before + lines)
