"""Answers that were made elsewhere, as the answers table (`judges.ANSWERS`), so that they are judged and measured here.

Formats, and what each row must have (further fields do no harm):

- "p-rlhf" (Li et al. 2024, arXiv 2402.05133), `generate.py`: one JSON object, prompt id -> `input_text`, `output_text`
  (all that was decoded: the input, the answer and special tokens). The prompt id is `<user>_...`; the prompt is in
  `truncated_history` (PRISM) or `prompt` (TL;DR, personalized soups).
- "pad" (Chen et al. 2025, arXiv 2410.04070) and ARGS, `collect_model_outs.py`: `prompt`, `response` (prompt and answer,
  or the answer alone), `method`; if there is a `result`, it is the answer. What llama-3's chat template leaves of the
  prompt in PAD's answers is removed. `elapsed` becomes `seconds`.
- "compred" (Kumar et al. 2024, arXiv 2410.16027), `predict.py`: `title`, `post`, `domain` (the community, which is the
  user), `response`, which is `{beams: text}`.
- "alpaca_eval": `instruction` (and `input`, if any), `output`, `generator`. `dataset` comes along.

Files are JSON or JSON lines, whatever their ending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.files import require_whole_characters

NEEDED = {
    "p-rlhf": ("prompt_id", "input_text", "output_text"),
    "pad": ("prompt", "response", "method"),
    "compred": ("title", "post", "domain", "response"),
    "alpaca_eval": ("instruction", "output", "generator"),
}
NAMED = {"pad": "method", "alpaca_eval": "generator"}  # the field that names the system
# P-RLHF's chat templates: llama-3's (PRISM), and its own (personalized soups)
_ASSISTANT = re.compile(r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<\|assistant\|>\n")
_TAGS = re.compile(r"<\|start_header_id\|>\w+<\|end_header_id\|>\n\n|<\|(?:user|assistant)\|>\n")
_ENDS = re.compile(r"<\|eot_id\|>|<\|end_of_text\|>|<\|endoftext\|>|</s>")


def read_answers(path: str | Path, format: str | None = None, system: str | None = None) -> pd.DataFrame:
    """Answers of another program, see above; empty ones are kept, white space around them is not.

    Args:
        format: one of `NEEDED`; None: found out from the first row's fields.
        system: the system's name; None: as the row says, else (P-RLHF, ComPreD) the file's name without its ending.

    Returns:
        `ANSWERS` (`user_id` None where there is none), and what else the format has: `user_text`, `dataset`, `seconds`.

    Raises:
        ValueError: no JSON, an unclear format, a row without a text where one is needed, or two answers of a system for
            the same user and prompt, with the row's number from 1.
    """
    path = Path(path)
    rows = _rows(path)
    format = format or _format(rows[0], path)
    if format not in NEEDED:
        raise ValueError(f"format={format!r}: expected one of {', '.join(NEEDED)}, or None.")
    read = {"p-rlhf": _p_rlhf, "pad": _pad, "compred": _compred, "alpaca_eval": _alpaca_eval}[format]
    found, begin = [], set()
    for number, row in enumerate(rows, 1):
        where, user = f"row {number} of {path}", row.get("user_id")
        named = not system and format in NAMED
        by = _text(row, NAMED[format], where) if named else system or path.stem
        found.append({"system": by, "user_id": None if user is None else str(user)} | read(row, where))
        if format == "pad" and "result" not in row:
            begin.add(row["response"].startswith(row["prompt"]))
    if len(begin) == 2:
        raise ValueError(
            f"some responses in {path} begin with their prompt and some do not, expected all or none (the answer "
            "alone). Give the answer alone as `result`."
        )
    answers = pd.DataFrame(found)
    answers["user_id"] = pd.Series([row["user_id"] for row in found], dtype=object)  # None stays None
    answers["answer"] = answers.answer.str.strip()
    twice = answers.duplicated(["system", "user_id", "prompt"])
    if twice.any():
        again = answers[twice].iloc[0]
        raise ValueError(
            f"{twice.sum()} of {len(answers)} answers in {path} have the system, user and prompt of an earlier one, "
            f"first row {twice.tolist().index(True) + 1} ({again.system!r}, {again.user_id!r}, "
            f"{str(again.prompt)[:60]!r}); expected one each. Keep one of them in the file, or give samples different "
            "systems' names."
        )
    return answers[[*ANSWERS, *(column for column in answers if column not in ANSWERS)]]


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = f"{field} = {json.dumps(value)[:60]}" if field in row else f"no {field!r}"
        hint = " Or pass `system`." if field in NAMED.values() else ""
        raise ValueError(
            f"{where} has {found}, expected text; its fields are {', '.join(row)}. Leave the row out if nothing was "
            f'generated; an empty answer is "".{hint}'
        )
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    try:
        found = json.loads(text)
    except ValueError:
        found = []
        for number, line in enumerate(text.split("\n"), 1):  # a line separator within a text ends no line
            try:
                found += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ValueError(
                    f"line {number} of {path} is not JSON ({error}); expected a JSON array or object, or JSON lines. "
                    "The file may have been cut off."
                ) from error
    if isinstance(found, dict):  # P-RLHF's, by prompt id; else JSON lines of one row
        by_id = bool(found) and all(isinstance(row, dict) for row in found.values())
        found = [{"prompt_id": name, **row} for name, row in found.items()] if by_id else [found]
    if not isinstance(found, list) or not found or found == [{}]:
        raise ValueError(f"{path} has no answers; expected a JSON array or object, or JSON lines.")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path} is {str(row)[:60]!r}, expected a JSON object.")
        require_whole_characters(row, f"row {number} of {path}")
    return found


def _format(row: dict[str, Any], path: Path) -> str:
    fits = [name for name, fields in NEEDED.items() if all(f in row or f == NAMED.get(name) for f in fields)]
    if len(fits) != 1:
        formats = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in NEEDED.items())
        raise ValueError(
            f"{path} could be {' or '.join(fits) or 'none of the known formats'}: its first row has {', '.join(row)}. "
            f"Needed are, for {formats}. Pass `format`, or rename the fields."
        )
    return fits[0]


def _p_rlhf(row: dict[str, Any], where: str) -> dict[str, Any]:
    field = next(f for f in ("truncated_history", "prompt", "input_text") if f in row)
    prompt = _TAGS.sub("", re.sub(r"<\|eot_id\|>\n?", "\n\n", _text(row, field, where))).strip()
    shown, output = _text(row, "input_text", where), _text(row, "output_text", where)
    _, as_given, answer = output.partition(shown)
    if not as_given:  # decoding may change white space, so the answer is what follows the prompt's last tag
        turns = len(_ASSISTANT.findall(shown))
        parts = _ASSISTANT.split(output, maxsplit=turns)
        if not turns or len(parts) <= turns:
            raise ValueError(f"{where} has an output_text that does not begin with its input_text, expected both.")
        answer = parts[-1]
    user = _text(row, "prompt_id", where).partition("_")[0]
    return {"user_id": user, "prompt": prompt, "answer": _ENDS.split(answer, maxsplit=1)[0]}


def _pad(row: dict[str, Any], where: str) -> dict[str, Any]:
    prompt = _text(row, "prompt", where)
    answer = _text(row, "result" if "result" in row else "response", where)
    answer = answer if "result" in row else answer.removeprefix(prompt)
    # PAD decodes the whole chat, role names and all
    chat = re.match(rf"(?:system\n\n.*?)?user\n\n{re.escape(prompt.strip())}\s*assistant\n\n", answer, re.DOTALL)
    seconds = {"seconds": row["elapsed"]} if "elapsed" in row else {}
    return {"prompt": prompt, "answer": answer[chat.end() :] if chat else answer, **seconds}


def _compred(row: dict[str, Any], where: str) -> dict[str, Any]:
    community = re.sub(r"_(train|validation|test)$", "", _text(row, "domain", where))  # as in data/compred.py
    post = "" if row.get("post", "?") in ("", None) else _text(row, "post", where)  # may be empty, but not missing
    response = row.get("response")
    response = response if isinstance(response, dict) else {"response": response}
    if len(response) != 1:
        raise ValueError(
            f"{where} has {len(response)} responses ({', '.join(response)}), expected one. Put each into a file of its "
            "own."
        )
    asked = _text(row, "title", where).strip(), post.strip()
    answer = _text(response, next(iter(response)), where)
    about = {"user_id": community, "user_text": f"r/{community}"}
    return about | {"prompt": "\n\n".join(filter(None, asked)), "answer": answer}


def _alpaca_eval(row: dict[str, Any], where: str) -> dict[str, Any]:
    asked = _text(row, "instruction", where), _text(row, "input", where) if row.get("input") else ""
    extra = {"dataset": row["dataset"]} if "dataset" in row else {}
    return {"prompt": "\n\n".join(filter(None, asked)), "answer": _text(row, "output", where), **extra}


def for_run(answers: pd.DataFrame, users: Sequence[str], prompts: Sequence[str]) -> pd.DataFrame:
    """Those of `answers` that were given to `users` and `prompts` (texts), columns `ANSWERS`. An answer to nobody in
    particular is given to every user. Raises `ValueError` where there is none."""
    everybody = answers[answers.user_id.isna()].drop(columns="user_id").merge(pd.DataFrame({"user_id": users}), "cross")
    found = pd.concat([answers[answers.user_id.isin(users)], everybody], ignore_index=True)
    # white space around a prompt is nobody's: `read_answers` takes it off, and TL;DR's own prompts end in a space
    asked = pd.DataFrame({"own": prompts, "prompt": [text.strip() for text in prompts]})
    found = found.assign(prompt=found.prompt.str.strip()).merge(asked, on="prompt")
    found = found.assign(prompt=found.own)[list(ANSWERS)]
    if found.empty:
        raise ValueError(
            f"none of {len(answers)} answers is to one of the {len(users)} users and {len(prompts)} prompts of this "
            f"run (the first: user {answers.user_id.iloc[0]!r}, prompt {str(answers.prompt.iloc[0])[:60]!r}). Answer "
            "the prompts in the run's answers.parquet."
        )
    return found.reset_index(drop=True)
