"""Answers that were made elsewhere, as the answers table (`ANSWERS`), so that they are judged and measured here.

Formats, and what each row must have (further fields do no harm):

- "p-rlhf" (Li et al. 2024, arXiv 2402.05133), `generate.py`: one JSON object, prompt id -> `input_text`, `output_text`
  (all that was decoded: the input, the answer and special tokens). The prompt id is `<user>_...`; the prompt is in
  `truncated_history` (PRISM) or `prompt` (TL;DR, personalized soups).
- "pad" (Chen et al. 2025, arXiv 2410.04070) and ARGS, `collect_model_outs.py`: `prompt`, `response` (prompt and answer,
  or the answer alone), `method`; if there is a `result`, it is the answer. What llama-3's chat template leaves of the
  prompt in PAD's answers is removed.
- "compred" (Kumar et al. 2024, arXiv 2410.16027), `predict.py`: `title`, `post`, `domain` (the community, which is the
  user), `response`, which is `{beams: text}`.
- "alpaca_eval": `instruction` (and `input`, if any), `output`, `generator`.

Files are JSON or JSON lines, whatever their ending.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prlhf_kit.data.compred import community_of, post_text
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
    """Answers of another program as a table of `ANSWERS`, `user_id` None where there is none; empty answers are kept,
    white space around them is not.

    Args:
        format: one of `NEEDED`; None: found out from the first row's fields.
        system: the system's name; None: as the row says, else (P-RLHF, ComPreD) the file's name without its ending.

    Raises:
        ValueError: no JSON, an unclear format, or a row (by its number from 1) without a text where one is needed.
    """
    path = Path(path)
    rows = _rows(path)
    format = format or _format(rows[0], path)
    if format not in NEEDED:
        raise ValueError(f"format={format!r}: expected one of {', '.join(NEEDED)}, or None.")
    read = {"p-rlhf": _p_rlhf, "pad": _pad, "compred": _compred, "alpaca_eval": _alpaca_eval}[format]
    found = []
    for number, row in enumerate(rows, 1):
        where = f"row {number} of {path}"
        by = system or (_text(row, NAMED[format], where) if format in NAMED else path.stem)
        user, prompt, answer = read(row, where)
        found.append((by, None if user is None else str(user), prompt, answer.strip()))
    return pd.DataFrame(found, columns=list(ANSWERS), dtype=object)  # None stays None


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ValueError(f'{where} has {field} = {json.dumps(value)[:60]}, expected text; an empty answer is "".')
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            found = json.loads(text)
        except ValueError:  # a line separator within a text ends no line
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or JSON lines, in UTF-8 ({error}). Was it cut off?") from error
    if isinstance(found, dict):  # P-RLHF's, by prompt id; else JSON lines of one row
        by_id = all(isinstance(row, dict) for row in found.values())
        found = [{"prompt_id": name, **row} for name, row in found.items()] if by_id else [found]
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path} has no answers; expected a JSON array of objects, an object, or JSON lines.")
    for number, row in enumerate(found, 1):
        require_whole_characters(row, f"row {number} of {path}")
    return found


def _format(row: dict[str, Any], path: Path) -> str:
    fits = [name for name, fields in NEEDED.items() if all(f in row or f == NAMED.get(name) for f in fields)]
    if len(fits) != 1:
        needed = "Needed are, for " + "; ".join(f"{name}: {', '.join(fields)}" for name, fields in NEEDED.items())
        could = " or ".join(fits) or "none of the known formats"
        raise ValueError(f"{path} could be {could}: its first row has {', '.join(row)}. Pass `format`. {needed}.")
    return fits[0]


# Each returns the user (None: nobody in particular), the prompt and the answer.


def _p_rlhf(row: dict[str, Any], where: str) -> tuple[str, str, str]:
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
    return _text(row, "prompt_id", where).partition("_")[0], prompt, _ENDS.split(answer, maxsplit=1)[0]


def _pad(row: dict[str, Any], where: str) -> tuple[Any, str, str]:
    prompt = _text(row, "prompt", where)
    answer = _text(row, "result", where) if "result" in row else _text(row, "response", where).removeprefix(prompt)
    # PAD decodes the whole chat, role names and all
    chat = re.match(rf"(?:system\n\n.*?)?user\n\n{re.escape(prompt.strip())}\s*assistant\n\n", answer, re.DOTALL)
    return row.get("user_id"), prompt, answer[chat.end() :] if chat else answer


def _compred(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    community = community_of(_text(row, "domain", where))
    asked = post_text(_text(row, "title", where), _text(row, "post", where) if row.get("post") else None)
    response = row.get("response")
    response = response if isinstance(response, dict) else {"response": response}
    if len(response) != 1:
        raise ValueError(f"{where} has {len(response)} responses, expected one. Put each into a file of its own.")
    return community, asked, _text(response, next(iter(response)), where)


def _alpaca_eval(row: dict[str, Any], where: str) -> tuple[Any, str, str]:
    asked = _text(row, "instruction", where), _text(row, "input", where) if row.get("input") else ""
    return row.get("user_id"), "\n\n".join(filter(None, asked)), _text(row, "output", where)


def for_run(answers: pd.DataFrame, users: Sequence[str], prompts: Sequence[str]) -> pd.DataFrame:
    """Those of `answers` that were given to `users` and `prompts` (texts), columns `ANSWERS`. An answer to nobody in
    particular is given to every user. Raises `ValueError` where there is none."""
    everybody = answers[answers.user_id.isna()].drop(columns="user_id").merge(pd.DataFrame({"user_id": users}), "cross")
    found = pd.concat([answers[answers.user_id.isin(users)], everybody], ignore_index=True)
    # without white space around prompts: `read_answers` strips it, and TL;DR's prompts end in a space
    asked = pd.DataFrame({"own": prompts, "prompt": [text.strip() for text in prompts]})
    found = found.assign(prompt=found.prompt.str.strip()).merge(asked, on="prompt")
    found = found.assign(prompt=found.own)[list(ANSWERS)]
    if found.empty:
        first = answers.user_id.iloc[0], str(answers.prompt.iloc[0])[:60]
        raise ValueError(
            f"none of {len(answers)} answers is to one of the {len(users)} users and {len(prompts)} prompts of this "
            f"run (the first: {first}). Answer the prompts in its answers.parquet."
        )
    return found.reset_index(drop=True)
