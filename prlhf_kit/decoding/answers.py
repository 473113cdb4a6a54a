"""Answers of guided decoding, and how they lie on disk: JSON lines."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from prlhf_kit.files import write_text


@dataclass(frozen=True)
class GuidedAnswer:
    """An answer and where it was steered. All lists have one entry a token; NaN where the guide was not asked.

    Args:
        base_tokens: what the base alone would have put there, after the same beginning (and by the same random number).
        logps: log-probability (nats) of the token under the base; `base_logps`: of the base's own.
        rewards: the guide's reward of the token, w not in it; `base_rewards`: of the base's own.
    """

    text: str
    tokens: list[int]
    base_tokens: list[int]
    logps: list[float] = field(default_factory=list)
    base_logps: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    base_rewards: list[float] = field(default_factory=list)

    @property
    def changed(self) -> list[bool]:
        """Where the reward overruled the base."""
        return [a != b for a, b in zip(self.tokens, self.base_tokens, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, which knows no NaN."""
        return asdict(self) | {name: [None if math.isnan(v) else v for v in getattr(self, name)] for name in MAY_BE_NAN}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        nan = {name: [math.nan if v is None else v for v in row[name]] for name in MAY_BE_NAN}
        return cls(**{name: row[name] for name in cls.__dataclass_fields__} | nan)


MAY_BE_NAN = ("rewards", "base_rewards")
BEGINNING = b'{"key": '


def read_lines(path: Path, parse: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
    """Key -> `parse(row)` of JSON lines that begin with their key; a last line that a crash cut off is removed. A line
    that is no `what` raises `ValueError`."""
    if not path.exists():
        return {}
    whole, _, torn = path.read_bytes().rpartition(b"\n")  # not as text: it may be cut within a letter
    if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
        whole, torn = b"%b\n%b" % (whole, torn), b""  # not ours: refused below
    found = {}
    for number, line in enumerate(filter(None, whole.split(b"\n")), 1):
        try:
            row = json.loads(line)
            found[row["key"]] = parse(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is no {what} ({type(error).__name__}: {error}). "
                "Choose another file, or delete this one to start anew."
            ) from error
    if torn:
        write_text(path, f"{whole.decode()}\n" if whole else "")
    return found


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it nobody else adds answers to `path`, whose last line may be half there while somebody does: `ValueError`
    if another call does."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"{path} is being written by another call. Wait until that has ended, or choose another file."
        ) from None


def add_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, of which `key` is the first field, to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
