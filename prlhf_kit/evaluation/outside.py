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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.files import write_text

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

At = Callable[[int], str]  # where a row is, for messages


def read_answers(path: str | Path, format: str | None = None, system: str | None = None) -> pd.DataFrame:
    """Answers of another program, see above.

    Empty answers are kept: they are outcomes. White space around answers is not.

    Args:
        format: one of `NEEDED`; None: found out from the first row's fields.
        system: the system's name; None: as the row says, else (P-RLHF, ComPreD) the file's name without its ending.

    Returns:
        `system`, `user_id` (None where the format has no users and the row no `user_id`), `prompt`, `answer`, and what
        else the format has: `user_text`, `dataset`, `seconds`.

    Raises:
        ValueError: the file is not JSON, its format is unclear, a row lacks a field or has no text in it, or a system
            has two answers for the same user and prompt. The message has the row's number, from 1.
    """
    path = Path(path)
    rows = _rows(path)
    format = format or _format(rows[0], path)
    if format not in NEEDED:
        raise ValueError(f"format={format!r}: expected one of {', '.join(NEEDED)}, or None.")
    needed = [field for field in NEEDED[format] if system is None or field != NAMED.get(format)]

    def at(number: int) -> str:
        return f"row {number + 1} of {path}"

    for number, row in enumerate(rows):
        missing = [field for field in needed if field not in row]
        if missing:
            hint = " Or pass `system`." if missing == [NAMED.get(format)] else ""
            raise ValueError(
                f"{at(number)} lacks {', '.join(missing)}; it has {', '.join(row)}. {format!r} needs "
                f"{', '.join(needed)}.{hint}"
            )
    read = {"p-rlhf": _p_rlhf, "pad": _pad, "compred": _compred, "alpaca_eval": _alpaca_eval}[format]
    answers = pd.DataFrame(read(rows, at))
    name = NAMED.get(format)
    named = [_text(row, name, at(i)) for i, row in enumerate(rows)] if name and system is None else system or path.stem
    answers.insert(0, "system", named)
    answers["answer"] = answers.answer.str.strip()
    if "user_id" not in answers:
        users = [None if row.get("user_id") is None else str(row["user_id"]) for row in rows]
        answers["user_id"] = pd.Series(users, dtype=object)
    _once_each(answers, path)
    return answers[[*ANSWERS, *(column for column in answers if column not in ANSWERS)]]


def write_alpaca_eval(path: str | Path, answers: pd.DataFrame) -> None:
    """Answers as AlpacaEval's model outputs, with `user_id` besides, which it does not read."""
    names = {"prompt": "instruction", "answer": "output", "system": "generator"}
    rows = answers[list(ANSWERS)].rename(columns=names).to_dict("records")
    write_text(Path(path), json.dumps(rows, ensure_ascii=False, indent=1))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    try:
        found = json.loads(text)
    except ValueError as error:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or text.lstrip().startswith("["):
            raise ValueError(
                f"{path} is not JSON ({error}); expected a JSON array or object, or JSON lines."
            ) from error
        found = [_line(line, i, path) for i, line in lines]
    if isinstance(found, dict):  # P-RLHF's, by prompt id; else JSON lines of one row
        by_id = bool(found) and all(isinstance(row, dict) for row in found.values())
        found = [{"prompt_id": name, **row} for name, row in found.items()] if by_id else [found]
    if not isinstance(found, list) or not found or found == [{}]:
        raise ValueError(f"{path} has no answers; expected a JSON array or object, or JSON lines.")
    for i, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} of {path} is {str(row)[:60]!r}, expected a JSON object.")
    return found


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is not JSON ({error}). The file may have been cut off.") from error


def _format(row: dict[str, Any], path: Path) -> str:
    fits = [name for name, fields in NEEDED.items() if all(f in row or f == NAMED.get(name) for f in fields)]
    if len(fits) != 1:
        formats = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in NEEDED.items())
        raise ValueError(
            f"{path} could be {' or '.join(fits) or 'none of the known formats'}: its first row has {', '.join(row)}. "
            f"Needed are, for {formats}. Pass `format`, or rename the fields."
        )
    return fits[0]


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(row[field], str):
        raise ValueError(
            f"{where} has {field} = {json.dumps(row[field])[:60]}, expected text. Leave the row out if nothing was "
            'generated; an empty answer is "".'
        )
    return row[field]


def _p_rlhf(rows: list[dict[str, Any]], at: At) -> list[dict[str, Any]]:
    found = []
    for i, row in enumerate(rows):
        field = "truncated_history" if "truncated_history" in row else "prompt" if "prompt" in row else "input_text"
        prompt = _TAGS.sub("", re.sub(r"<\|eot_id\|>\n?", "\n\n", _text(row, field, at(i)))).strip()
        shown, output = _text(row, "input_text", at(i)), _text(row, "output_text", at(i))
        turns = len(_ASSISTANT.findall(shown))
        _, as_given, answer = output.partition(shown)
        if not as_given:  # decoding may change white space, so the answer is what follows the prompt's last tag
            parts = _ASSISTANT.split(output, maxsplit=turns)
            if not turns or len(parts) <= turns:
                raise ValueError(f"{at(i)} has an output_text that does not begin with its input_text, expected both.")
            answer = parts[-1]
        user = str(row["prompt_id"]).partition("_")[0]
        found.append({"user_id": user, "prompt": prompt, "answer": _ENDS.split(answer, maxsplit=1)[0]})
    return found


def _pad(rows: list[dict[str, Any]], at: At) -> list[dict[str, Any]]:
    found, begins = [], {}
    for i, row in enumerate(rows):
        prompt, answer = _text(row, "prompt", at(i)), _text(row, "result" if "result" in row else "response", at(i))
        if "result" not in row:
            begins[i] = answer.startswith(prompt)
            answer = answer.removeprefix(prompt)
        # PAD decodes the whole chat, role names and all
        chat = re.match(rf"(?:system\n\n.*?)?user\n\n{re.escape(prompt.strip())}\s*assistant\n\n", answer, re.DOTALL)
        seconds = {"seconds": row["elapsed"]} if "elapsed" in row else {}
        found.append({"prompt": prompt, "answer": answer[chat.end() :] if chat else answer, **seconds})
    if len(set(begins.values())) == 2:
        odd = next(i for i, begin in begins.items() if begin != begins[next(iter(begins))])
        raise ValueError(
            f"{sum(begins.values())} of {len(begins)} responses begin with their prompt, expected all or none (the "
            f"answer alone); {at(odd)} is not as those before it. Give the answer alone as `result`."
        )
    return found


def _compred(rows: list[dict[str, Any]], at: At) -> list[dict[str, Any]]:
    found = []
    for i, row in enumerate(rows):
        # as in data/compred.py
        community = re.sub(r"_(train|validation|test)$", "", _text(row, "domain", at(i)))
        title, post = _text(row, "title", at(i)).strip(), _text(row, "post", at(i)).strip() if row["post"] else ""
        response = row["response"] if isinstance(row["response"], dict) else {"response": row["response"]}
        if len(response) != 1:
            raise ValueError(
                f"{at(i)} has {len(response)} responses ({', '.join(response)}), expected one. Put each into a file "
                "of its own."
            )
        answer = _text(response, next(iter(response)), at(i))
        found.append(
            {
                "user_id": community,
                "user_text": f"r/{community}",
                "prompt": "\n\n".join(filter(None, (title, post))),
                "answer": answer,
            }
        )
    return found


def _alpaca_eval(rows: list[dict[str, Any]], at: At) -> list[dict[str, Any]]:
    found = []
    for i, row in enumerate(rows):
        parts = [_text(row, "instruction", at(i)), _text(row, "input", at(i)) if row.get("input") else ""]
        extra = {"dataset": row["dataset"]} if "dataset" in row else {}
        found.append({"prompt": "\n\n".join(filter(None, parts)), "answer": _text(row, "output", at(i)), **extra})
    return found


def _once_each(answers: pd.DataFrame, path: Path) -> None:
    twice = answers.duplicated(["system", "user_id", "prompt"])
    if twice.any():
        row = answers[twice].iloc[0]
        raise ValueError(
            f"{twice.sum()} of {len(answers)} answers in {path} have the system, user and prompt of an earlier one, "
            f"first row {twice.tolist().index(True) + 1} ({row.system!r}, {row.user_id!r}, {str(row.prompt)[:60]!r}); "
            "expected one each. Keep one of them in the file, or give samples different systems' names."
        )


def for_run(answers: pd.DataFrame, users: Sequence[str], prompts: Sequence[str]) -> pd.DataFrame:
    """Those of `answers` that were given to `users` and `prompts` (texts), columns `judges.ANSWERS`. An answer to
    nobody in particular is given to every user.

    Raises:
        ValueError: there is none.
    """
    everybody = answers[answers.user_id.isna()].drop(columns="user_id").merge(pd.DataFrame({"user_id": users}), "cross")
    found = pd.concat([answers[answers.user_id.isin(users)], everybody], ignore_index=True)
    found = found[found.prompt.isin(prompts)][list(ANSWERS)]
    if found.empty:
        raise ValueError(
            f"none of {len(answers)} answers is to one of the {len(users)} users and {len(prompts)} prompts of this "
            f"run (the first: user {answers.user_id.iloc[0]!r}, prompt {str(answers.prompt.iloc[0])[:60]!r}). Answer "
            "the prompts in the run's answers.parquet."
        )
    return found.reset_index(drop=True)
