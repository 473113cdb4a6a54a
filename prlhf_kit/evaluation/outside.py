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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.files import require_whole_characters, write_text

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
    format = format or _format(rows[0].fields, path)
    if format not in NEEDED:
        raise ValueError(f"format={format!r}: expected one of {', '.join(NEEDED)}, or None.")
    read = {"p-rlhf": _p_rlhf, "pad": _pad, "compred": _compred, "alpaca_eval": _alpaca_eval}[format]
    name = None if system else NAMED.get(format)
    found = []
    for row in rows:
        user = row.fields.get("user_id")
        by = row.text(name) if name else system or path.stem
        found.append({"system": by, "user_id": None if user is None else str(user)} | read(row))
    whole = [row for row in rows if format == "pad" and "result" not in row.fields]
    begin = {row.text("response").startswith(row.text("prompt")) for row in whole}
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


def write_alpaca_eval(path: str | Path, answers: pd.DataFrame) -> None:
    """Answers as AlpacaEval's model outputs, with `user_id` besides, which it does not read."""
    names = {"prompt": "instruction", "answer": "output", "system": "generator"}
    rows = answers[list(ANSWERS)].rename(columns=names).to_dict("records")
    write_text(Path(path), json.dumps(rows, ensure_ascii=False, indent=1))


@dataclass
class _Row:
    """A row of a file, and where it is."""

    fields: dict[str, Any]
    where: str

    def text(self, field: str) -> str:
        value = self.fields.get(field)
        if not isinstance(value, str):
            found = f"{field} = {json.dumps(value)[:60]}" if field in self.fields else f"no {field!r}"
            hint = " Or pass `system`." if field in NAMED.values() else ""
            raise ValueError(
                f"{self.where} has {found}, expected text; its fields are {', '.join(self.fields)}. Leave the row out "
                f'if nothing was generated; an empty answer is "".{hint}'
            )
        return value


def _rows(path: Path) -> list[_Row]:
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
    return [_Row(row, f"row {number} of {path}") for number, row in enumerate(found, 1)]


def _format(row: dict[str, Any], path: Path) -> str:
    fits = [name for name, fields in NEEDED.items() if all(f in row or f == NAMED.get(name) for f in fields)]
    if len(fits) != 1:
        formats = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in NEEDED.items())
        raise ValueError(
            f"{path} could be {' or '.join(fits) or 'none of the known formats'}: its first row has {', '.join(row)}. "
            f"Needed are, for {formats}. Pass `format`, or rename the fields."
        )
    return fits[0]


def _p_rlhf(row: _Row) -> dict[str, Any]:
    field = next(f for f in ("truncated_history", "prompt", "input_text") if f in row.fields)
    prompt = _TAGS.sub("", re.sub(r"<\|eot_id\|>\n?", "\n\n", row.text(field))).strip()
    shown, output = row.text("input_text"), row.text("output_text")
    _, as_given, answer = output.partition(shown)
    if not as_given:  # decoding may change white space, so the answer is what follows the prompt's last tag
        turns = len(_ASSISTANT.findall(shown))
        parts = _ASSISTANT.split(output, maxsplit=turns)
        if not turns or len(parts) <= turns:
            raise ValueError(f"{row.where} has an output_text that does not begin with its input_text, expected both.")
        answer = parts[-1]
    user = row.text("prompt_id").partition("_")[0]
    return {"user_id": user, "prompt": prompt, "answer": _ENDS.split(answer, maxsplit=1)[0]}


def _pad(row: _Row) -> dict[str, Any]:
    prompt = row.text("prompt")
    answer = row.text("result") if "result" in row.fields else row.text("response").removeprefix(prompt)
    # PAD decodes the whole chat, role names and all
    chat = re.match(rf"(?:system\n\n.*?)?user\n\n{re.escape(prompt.strip())}\s*assistant\n\n", answer, re.DOTALL)
    seconds = {"seconds": row.fields["elapsed"]} if "elapsed" in row.fields else {}
    return {"prompt": prompt, "answer": answer[chat.end() :] if chat else answer, **seconds}


def _compred(row: _Row) -> dict[str, Any]:
    community = re.sub(r"_(train|validation|test)$", "", row.text("domain"))  # as in data/compred.py
    post = "" if row.fields.get("post", "?") in ("", None) else row.text("post")  # may be empty, but not missing
    response = row.fields.get("response")
    response = response if isinstance(response, dict) else {"response": response}
    if len(response) != 1:
        raise ValueError(
            f"{row.where} has {len(response)} responses ({', '.join(response)}), expected one. Put each into a file of "
            "its own."
        )
    return {
        "user_id": community,
        "user_text": f"r/{community}",
        "prompt": "\n\n".join(filter(None, (row.text("title").strip(), post.strip()))),
        "answer": _Row(response, row.where).text(next(iter(response))),
    }


def _alpaca_eval(row: _Row) -> dict[str, Any]:
    asked = row.text("instruction"), row.text("input") if row.fields.get("input") else ""
    extra = {"dataset": row.fields["dataset"]} if "dataset" in row.fields else {}
    return {"prompt": "\n\n".join(filter(None, asked)), "answer": row.text("output"), **extra}


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
