"""Answers of guided decoding, and how they lie on disk: the kit's JSON lines, and the formats of PAD and ARGS."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prlhf_kit.files import write_text


@dataclass(frozen=True)
class GuidedAnswer:
    """An answer and where it was steered. All lists have one entry a token; NaN where the guide was not asked.

    Args:
        base_tokens: what the base alone would have put there, after the same beginning (and by the same random number).
        logps: log-probability (nats) of the token under the base; `base_logps`: of the base's own.
        rewards: the guide's reward of the token, w not in it; `base_rewards`: of the base's own.
        divergence: KL (nats) of softmax(score) from the base over the candidates, at temperature 1.
        seconds: from the start of its batch to its last token.
    """

    text: str
    tokens: list[int]
    base_tokens: list[int]
    logps: list[float] = field(default_factory=list)
    base_logps: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    base_rewards: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def changed(self) -> list[bool]:
        """Where the reward overruled the base."""
        return [a != b for a, b in zip(self.tokens, self.base_tokens, strict=True)]

    @property
    def tokens_per_second(self) -> float:
        """Of this answer, in its batch."""
        return len(self.tokens) / self.seconds if self.seconds else math.nan


BEGINNING = b'{"key": '


def read_lines(path: Path, parse: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
    """Key -> `parse(row)` of JSON lines that begin with their key; a last line that a crash cut off is removed.

    Args:
        what: a line is, for the message of the `ValueError` that another file raises.
    """
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


def add_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, of which `key` is the first field, to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


class AnswerFile:
    """JSON lines to which answers are added as they come. A line that a crash cut off is dropped at the next start."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, GuidedAnswer] = read_lines(path, _guided, "answer of guided decoding")

    def add(self, rows: Iterable[tuple[str, Any, Any, GuidedAnswer]]) -> None:
        """Append (key, prompt, for whom, answer) of each."""
        lines = []
        for key, prompt, who, answer in rows:
            values = {name: _to_json(value) for name, value in asdict(answer).items()}
            speed = _to_json(answer.tokens_per_second)
            lines.append({"key": key, "prompt": prompt, "who": who, **values, "tokens_per_second": speed})
            self.found[key] = answer
        add_lines(self.path, lines)


def _guided(row: dict[str, Any]) -> GuidedAnswer:
    return GuidedAnswer(**{name: _from_json(row[name]) for name in GuidedAnswer.__dataclass_fields__})


def _to_json(value):
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_json(value):
    if isinstance(value, list):
        return [math.nan if v is None else v for v in value]
    return math.nan if value is None else value


def write_pad(path: str | Path, prompts: Sequence[str], answers: Sequence[GuidedAnswer], method: str) -> None:
    """Answers as PAD's and ARGS's own programs write theirs: one JSON array of `prompt`, `result` (the answer),
    `response` (prompt and answer), `elapsed` (seconds) and `method`."""
    rows = [
        {"prompt": p, "result": a.text, "response": p + a.text, "elapsed": a.seconds, "method": method}
        for p, a in zip(prompts, answers, strict=True)
    ]
    write_text(Path(path), json.dumps(rows, ensure_ascii=False))


def read_pad(path: str | Path) -> list[dict[str, Any]]:
    """Answers in PAD's and ARGS's format (see `write_pad`), from a JSON array or JSON lines.

    Raises:
        ValueError: it is neither, or a row lacks one of the five fields.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(t) for t in text.split("\n") if t.strip()]
        )
    except ValueError as error:
        raise ValueError(f"{path} is neither a JSON array nor JSON lines ({error}).") from error
    for number, row in enumerate(rows):
        missing = {"prompt", "result", "response", "elapsed", "method"} - set(row)
        if missing:
            raise ValueError(f"answer {number} of {path} lacks {', '.join(sorted(missing))}; it has {sorted(row)}.")
    return rows


def read_pad_config(path: str | Path) -> list[dict[str, Any]]:
    """Settings of `GuidedDecoder`, one dict a line of a `.config` file of PAD or ARGS.

    `rm_weight` is the weight, `topk` the candidates, `mode` "greedy" or "topk" (sampling, at `sample_temp`); ARGS's
    older files say so in `sampling`. Fields such as PAD's `perspective` come along under `extra`.

    Raises:
        ValueError: a field is missing, or a mode that is neither.
    """
    found = []
    for number, line in enumerate(filter(str.strip, Path(path).read_text(encoding="utf-8").split("\n")), 1):
        row = json.loads(line)
        missing = {"rm_weight", "topk", "mode", "sample_temp"} - set(row)
        if missing:
            raise ValueError(f"line {number} of {path} lacks {', '.join(sorted(missing))}; it has {sorted(row)}.")
        weight, top_k, temperature = row.pop("rm_weight"), row.pop("topk"), row.pop("sample_temp")
        mode = row.pop("mode")
        mode = row.pop("sampling", mode)
        if mode not in ("greedy", "topk"):
            raise ValueError(f"line {number} of {path} has the mode {mode!r}, expected 'greedy' or 'topk'.")
        found.append(
            {
                "weight": float(weight),
                "top_k": int(top_k),
                "do_sample": mode == "topk",
                "temperature": 1.0 if temperature is None else float(temperature),
                "extra": row,
            }
        )
    return found


def write_pad_config(path: str | Path, settings: Sequence[dict[str, Any]]) -> None:
    """The inverse of `read_pad_config`."""
    lines = [
        {
            "rm_weight": s["weight"],
            "topk": s["top_k"],
            "mode": "topk" if s["do_sample"] else "greedy",
            "sample_temp": s["temperature"] if s["do_sample"] else None,
            **s.get("extra", {}),
        }
        for s in settings
    ]
    write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))
