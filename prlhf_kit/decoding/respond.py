"""Answers to test prompts, with the reader in the prompt or in front of it: one for each prompt, and on disk at once.

The released script of ComPO (Kumar et al. 2024, arXiv 2410.16027) leaves some prompts without an answer. Here each has
one, be it empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text, shorten
from prlhf_kit.data.context import RECORDED, Contexts, Messages
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.decoding.answers import add_lines, read_lines
from prlhf_kit.decoding.generate import (
    DecodingError,
    check_context,
    generation_config,
    identity,
    ids_of,
    in_batches,
    write_batch,
)
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import causal_lm, user_model_of
from prlhf_kit.models.user_index import UserIndex

COLUMNS = (*ANSWERS, "context", "context_user", "shown", "shortened", "finished", "tokens", "key")


def respond(
    model,
    tokenizer: PreTrainedTokenizerBase,
    jobs: Dataset | Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    system: str,
    contexts: Contexts | None = None,
    index: UserIndex | None = None,
    max_prompt_tokens: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **generation: Any,
) -> pd.DataFrame:
    """Answer every job, and keep the answers in a file of JSON lines.

    A call that was killed goes on where it was. Rows of other calls (another model, context, prompt, user, option or
    seed) stay in the file and are not returned, so several systems may share one, one after the other. Greedy
    decoding asks equal questions once. Sampling draws for each job, and its batches follow from all jobs and are seeded
    each: an interrupted call gets the answers of an uninterrupted one, and other jobs or another batch size get others.

    Args:
        model: causal LM; personalised for `index`. Without an index, soft user tokens are left out.
        jobs: rows with `user_id` (None: nobody in particular) and `prompt`, messages without any context; pairs of a
            data set, for instance. Further columns are ignored.
        system: its name in the table.
        contexts: puts readers into the prompts (`data.context`); None: nothing of them.
        index: users whose soft tokens stand in front; others get the generic row.
        max_prompt_tokens: longest prompt as laid out, the context included and soft tokens not. A longer one loses its
            oldest turns, never the context. None: no limit but the model's own.
        batch_size: answers at once.
        generation: as of `generate`.

    Returns:
        A row for each job, in their order, columns `COLUMNS`; `judges.judged` takes it as it is where no user asks the
        same twice. `user_id` is who asked and `prompt` the text they asked, without context; `context_user` is whose
        context was put in, `shown` the messages that the model read, `shortened` whether the prompt was; `tokens` are
        those of the answer, and `finished` says that it ended by itself, not at max_new_tokens.

    Raises:
        DecodingError: before anything is generated: no jobs, rows without their columns, an empty prompt or one that
            can't be made to fit, an unknown option, users that the model does not have.
        SchemaError: a context that can't be put in, or roles that the chat template refuses.
        ValueError: `path` is a file of something else.
    """
    config = generation_config(model, tokenizer, generation)
    _require(model, config, index, system, max_prompt_tokens, batch_size)
    asked = _read_jobs(tokenizer, jobs, contexts, index, max_prompt_tokens, system)
    check_context(model, index is not None, max(len(job.ids) for job in asked), config.max_new_tokens)
    weights = identity(model)
    questions = _questions(asked, once=not config.do_sample)
    first = [asked[numbers[0]] for numbers in questions]
    batches = in_batches([len(job.ids) for job in first], batch_size)
    made_by = [weights, _settings(config), _settings(causal_lm(model).generation_config)]
    keys = _keys(asked, questions, batches, made_by, seed if config.do_sample else None)
    path = Path(path)
    found = read_lines(path, lambda row: {column: row[column] for column in COLUMNS}, "answer of respond")
    left = {q for q, numbers in enumerate(questions) if any(keys[i] not in found for i in numbers)}
    if config.do_sample:  # whole batches, for the same draws
        todo = [(number, batch) for number, batch in enumerate(batches) if left & set(batch)]
    else:
        todo = list(enumerate(chosen for batch in batches if (chosen := [q for q in batch if q in left])))
    for number, batch in tqdm(todo, desc=f"answers of {system}", disable=None, leave=False):
        rows = None if index is None else [first[q].user for q in batch]
        if config.do_sample:
            torch.manual_seed(int(short_hash(seed, number)[:8], 16))
        written = write_batch(model, tokenizer, [first[q].ids for q in batch], rows, config)
        new = {}
        for q, one in zip(batch, written, strict=True):
            for i in questions[q]:
                if keys[i] not in found:
                    said = {"answer": one.text, "finished": one.finished, "tokens": one.tokens}
                    new[keys[i]] = {"key": keys[i], **asked[i].row, **said}
        add_lines(path, new.values())
        found |= new
    return pd.DataFrame([found[key] for key in keys], columns=list(COLUMNS))


def _require(model, config: GenerationConfig, index, system, max_prompt_tokens, batch_size) -> None:
    """Refuse settings that can't be meant."""
    if not isinstance(system, str) or not system:
        raise DecodingError(f"system={system!r}: expected a name, by which judges tell answers apart.")
    limits = {} if max_prompt_tokens is None else {"max_prompt_tokens": max_prompt_tokens}
    for option, value in {**limits, "batch_size": batch_size, "max_new_tokens": config.max_new_tokens}.items():
        if not isinstance(value, int) or value < 1:
            raise DecodingError(f"{option}={value!r}: expected a whole number from 1 on.")
    for option, value in {"num_return_sequences": 1, "return_dict_in_generate": False}.items():
        if (getattr(config, option) or value) != value:
            raise DecodingError(
                f"{option}={getattr(config, option)!r}: each job gets one answer, as text. Leave it out."
            )
    if model.training:
        raise DecodingError("the model is in training mode, in which dropout changes its answers. Call model.eval().")
    if index is not None:
        known = getattr(user_model_of(model), "num_rows", len(index))
        if len(index) > known:
            raise DecodingError(f"the index has {len(index)} rows, the model {known}. Take the index saved with it.")


def _questions(asked: list[Question], once: bool) -> list[list[int]]:
    """Numbers of the jobs that get the same answer; each job alone unless `once`."""
    found = defaultdict(list)
    for i, job in enumerate(asked):
        found[(job.ids, job.user) if once else i].append(i)
    return list(found.values())


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: str(value) for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def _keys(asked, questions, batches, made_by, seed: int | None) -> list[str]:
    """What tells each job's answer from all others. `seed`: of sampling, where an answer depends on all its batch."""
    keys, copies = [""] * len(asked), Counter[str]()
    for number, batch in enumerate(batches):
        drawn = None
        if seed is not None:
            drawn = [seed, number, [[asked[questions[q][0]].ids, asked[questions[q][0]].user] for q in batch]]
        beginning = short_hash(made_by, drawn)
        for i in (i for q in batch for i in questions[q]):
            key = short_hash(beginning, asked[i].row, asked[i].ids, asked[i].user)
            copies[key] += 1
            keys[i] = short_hash(key, copies[key])
    return keys


@dataclass(frozen=True)
class Question:
    """What is asked: its row of the table, but for the answer, and what the model reads."""

    row: dict[str, Any]
    ids: tuple[int, ...]
    user: int | None


def _read_jobs(
    tokenizer: PreTrainedTokenizerBase,
    jobs: Iterable,
    contexts: Contexts | None,
    index: UserIndex | None,
    limit: int | None,
    system: str,
) -> list[Question]:
    """Every job with its prompt as it is shown; arguments as of `respond`.

    Args:
        limit: longest prompt as laid out, in tokens; None: no limit.
        system: its name in the table.

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
            "system": system,
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
    if found[-1]["role"] != "user":
        raise DecodingError(f"{at} ends with a message of {found[-1]['role']!r}; expected one of the user's to answer.")
    return found


def _fitting(
    tokenizer, prompt: Messages, say: Callable[[Messages], Messages], limit: int | None, at: str
) -> tuple[Messages, tuple[int, ...], bool]:
    """`prompt` with its context (which stays whole), its token ids, and whether it was shortened to `limit` of them."""

    def ids(own: Messages) -> tuple[int, ...]:
        return ids_of(tokenizer, say(own))

    def fits(own: Messages) -> bool:
        return limit is None or len(ids(own)) <= limit

    kept = prompt if fits(prompt) else shorten(prompt, fits)
    if kept is None:
        raise DecodingError(
            f"{at} has more than max_prompt_tokens={limit} tokens as it is laid out, context and system message "
            "included, even without its oldest turns. Raise the limit, or shorten its last message."
        )
    return say(kept), ids(kept), kept != prompt
