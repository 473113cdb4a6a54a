"""Test prompts as a model is shown them: with the reader, and no longer than they may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text, prompt_texts
from prlhf_kit.data.context import RECORDED, Contexts, Messages
from prlhf_kit.decoding.generate import DecodingError, require_text
from prlhf_kit.decoding.sentences import cut_prompt
from prlhf_kit.models.user_index import UserIndex


@dataclass(frozen=True)
class Question:
    """What is asked: its row of the table, but for the answer, and what the model reads."""

    row: dict[str, Any]
    ids: tuple[int, ...]
    user: int | None


def read_jobs(
    tokenizer: PreTrainedTokenizerBase,
    jobs: Iterable,
    contexts: Contexts | None,
    index: UserIndex | None,
    limit: int | None,
    same: dict[str, Any],
) -> list[Question]:
    """Every job with its prompt as it is shown; arguments as of `respond`.

    Args:
        limit: longest prompt as laid out, in tokens; None: no limit.
        same: fields of all rows.

    Raises:
        DecodingError: no jobs, a row that can't be asked or made to fit.
        SchemaError: a context that can't be put in, or roles that the chat template refuses.
    """
    if contexts is not None and not isinstance(contexts, Contexts):
        raise DecodingError(
            f"contexts={contexts!r}: expected Contexts(...), which knows the readers and how they are named, or None."
        )
    asked = []
    for number, row in enumerate(jobs):
        at = f"job {number}"
        missing = {"user_id", "prompt"} - set(row) if isinstance(row, Mapping) else {"user_id", "prompt"}
        if missing:
            raise DecodingError(f"{at} lacks {', '.join(sorted(missing))}: {str(row)[:100]}. Expected rows with both.")
        if set(RECORDED) & set(row):
            raise DecodingError(
                f"{at} has a context in its prompt already (columns {', '.join(RECORDED)}), which judges would see. "
                "Pass rows without, and contexts=Contexts(...)."
            )
        if row["user_id"] is not None and not (isinstance(row["user_id"], str) and row["user_id"]):
            raise DecodingError(f"{at} has the user_id {row['user_id']!r}; expected text, or None for nobody known.")
        user: Any = row["user_id"]
        prompt = _messages(row["prompt"], at)
        whose = None if contexts is None else contexts.whose(user, prompt)
        say = (lambda p: p) if contexts is None or whose is None else partial(contexts.say, user_id=whose)
        shown, ids, shortened = _fitting(tokenizer, prompt, say, limit, at)
        told = {
            "user_id": user,
            "prompt": prompt_text(prompt),
            "context": "none" if contexts is None else contexts.context,
            "context_user": whose,
            "shown": shown,
            "shortened": shortened,
            **same,
        }
        asked.append(Question(told, ids, None if index is None else index.row(user, unknown="generic")))
    if not asked:
        raise DecodingError("there are no jobs to answer. Expected rows with user_id and prompt.")
    return asked


def _messages(prompt: Any, at: str) -> Messages:
    listed = isinstance(prompt, Iterable) and not isinstance(prompt, str)
    if not listed or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in prompt):
        raise DecodingError(f"{at} has the prompt {str(prompt)[:100]!r}, expected messages with role and content.")
    found = [{"role": str(m.get("role")), "content": m["content"]} for m in prompt]
    require_text([found])
    if found[-1]["role"] != "user":
        raise DecodingError(f"{at} ends with a message of {found[-1]['role']!r}; expected one of the user's to answer.")
    return found


def _fitting(
    tokenizer, prompt: Messages, say: Callable[[Messages], Messages], limit: int | None, at: str
) -> tuple[Messages, tuple[int, ...], bool]:
    """`prompt` with its context (which stays whole), its token ids, and whether it was shortened to `limit` of them."""

    def ids(own: Messages) -> tuple[int, ...]:
        [text] = prompt_texts(tokenizer, [say(own)], answered=False)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    kept = prompt if limit is None else cut_prompt(prompt, lambda own: len(ids(own)) <= limit)
    if not kept[-1]["content"].strip():
        raise DecodingError(
            f"{at} can't be cut to max_prompt_tokens={limit}: without any of the user's text, its layout (context and "
            f"system message included) has {len(ids(kept))} tokens already. Raise it."
        )
    return say(kept), ids(kept), kept != prompt
