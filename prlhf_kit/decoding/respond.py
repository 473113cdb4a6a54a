"""Answers to test prompts, with the reader in the prompt or in front of it: one for each prompt, and on disk at once.

The released script of ComPO (Kumar et al. 2024, arXiv 2410.16027) leaves some prompts without an answer. Here each has
one, be it empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from prlhf_kit.decoding.answers import add_lines, locked, read_lines
from prlhf_kit.decoding.generate import (
    DecodingError,
    check_context,
    generation_config,
    identity,
    ids_of,
    in_batches,
    require_prompt,
    write_batch,
)
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import causal_lm, user_model_of
from prlhf_kit.models.tokenize import require_tokenizer
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
        A row for each job, in their order, columns `COLUMNS`, as `judges.judged` takes it. `prompt` is the text without
        context; `context_user` is whose context was put in, `shown` the messages that the model read, `shortened`
        whether turns were left out; `finished`: the answer ended by itself, not at max_new_tokens.

    Raises:
        DecodingError: before anything is generated: no jobs, rows without their columns, an empty prompt or one that
            can't be made to fit, an unknown option, users that the model does not have.
        SchemaError: a context that can't be put in, or roles that the chat template refuses.
        ValueError: `path` is a file of something else, or another call is writing it.
    """
    require_tokenizer(model, tokenizer)
    config = generation_config(model, tokenizer, generation)
    limits = {"max_prompt_tokens": 1 if max_prompt_tokens is None else max_prompt_tokens, "batch_size": batch_size}
    for option, value in {**limits, "max_new_tokens": config.max_new_tokens}.items():
        if not isinstance(value, int) or value < 1:
            raise DecodingError(f"{option}={value!r}: expected a whole number from 1 on.")
    if (config.num_return_sequences or 1) != 1:
        raise DecodingError(f"num_return_sequences={config.num_return_sequences}: each job gets one answer.")
    if model.training:
        raise DecodingError("the model is in training mode, in which dropout changes its answers. Call model.eval().")
    if index is not None and len(index) > (known := getattr(user_model_of(model), "num_rows", len(index))):
        raise DecodingError(f"the index has {len(index)} rows, the model {known}. Take the index saved with it.")
    asked = _questions(tokenizer, jobs, contexts, index, max_prompt_tokens, system)
    check_context(model, index is not None, max(len(job.ids) for job in asked), config.max_new_tokens)

    # numbers of the jobs that get the same answer, and batches of such groups
    groups = defaultdict(list)
    for i, job in enumerate(asked):
        groups[i if config.do_sample else (job.ids, job.user)].append(i)
    same = list(groups.values())
    batches = in_batches([len(asked[numbers[0]].ids) for numbers in same], batch_size)

    # what tells each job's answer from all others
    made_by = [identity(model), _settings(config), _settings(causal_lm(model).generation_config)]
    keys, copies = [""] * len(asked), Counter[str]()
    for number, batch in enumerate(batches):
        drawn = None  # a sampled answer depends on its whole batch
        if config.do_sample:
            drawn = [seed, number, [[asked[i].ids, asked[i].user] for q in batch for i in same[q]]]
        beginning = short_hash(made_by, drawn)
        for i in (i for q in batch for i in same[q]):
            key = short_hash(beginning, asked[i].row, asked[i].ids, asked[i].user)
            copies[key] += 1
            keys[i] = short_hash(key, copies[key])

    path = Path(path)
    with locked(path):
        found = read_lines(path, lambda row: {column: row[column] for column in COLUMNS}, "answer of respond")
        left = {q for q, numbers in enumerate(same) if any(keys[i] not in found for i in numbers)}
        for number, whole in enumerate(tqdm(batches, desc=f"answers of {system}", disable=None, leave=False)):
            # sampling makes whole batches, for the same draws
            batch = [q for q in whole if q in left or (config.do_sample and left & set(whole))]
            if not batch:
                continue
            if config.do_sample:
                torch.manual_seed(int(short_hash(seed, number)[:8], 16))
            first = [asked[same[q][0]] for q in batch]
            rows: Any = None if index is None else [job.user for job in first]
            new = {}
            written = write_batch(model, tokenizer, [job.ids for job in first], rows, config)
            for q, one in zip(batch, written, strict=True):
                for i in same[q]:
                    if keys[i] not in found:
                        said = {"answer": one.text, "finished": one.finished, "tokens": one.tokens}
                        new[keys[i]] = {"key": keys[i], **asked[i].row, **said}
            add_lines(path, new.values())
            found |= new
    return pd.DataFrame([found[key] for key in keys], columns=list(COLUMNS))


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: str(value) for name, value in config.to_diff_dict().items() if name != "transformers_version"}


@dataclass(frozen=True)
class Question:
    """What is asked: its row of the table, but for the answer, and what the model reads."""

    row: dict[str, Any]
    ids: tuple[int, ...]
    user: int | None


def _questions(tokenizer, jobs, contexts, index, limit: int | None, system: str) -> list[Question]:
    """Every job with its prompt as it is shown, of at most `limit` tokens."""
    asked = []
    for number, row in enumerate(jobs):
        at = f"job {number}"
        if not isinstance(row, Mapping) or not {"user_id", "prompt"} <= set(row):
            raise DecodingError(f"{at} is {str(row)[:100]}. Expected rows with user_id and prompt.")
        if set(RECORDED) & set(row):
            raise DecodingError(
                f"{at} has a context in its prompt already (columns {', '.join(RECORDED)}), which judges would see. "
                "Pass rows without, and contexts=Contexts(...)."
            )
        user, prompt = row["user_id"], row["prompt"]
        if user is not None and not (isinstance(user, str) and user):
            raise DecodingError(f"{at} has the user_id {user!r}; expected text, or None for nobody known.")
        require_prompt(prompt)
        prompt = [{"role": m["role"], "content": m["content"]} for m in prompt]
        if prompt[-1]["role"] != "user":
            raise DecodingError(f"{at} ends with a message of {prompt[-1]['role']!r}; expected one of the user's.")
        whose = None if contexts is None else contexts.whose(user, prompt)

        def shown(own: Messages, whose=whose) -> Messages:
            return own if contexts is None or whose is None else contexts.say(own, user_id=whose)

        def fits(own: Messages, shown=shown) -> bool:
            return limit is None or len(ids_of(tokenizer, shown(own))) <= limit

        kept = prompt if fits(prompt) else shorten(prompt, fits)
        if kept is None:
            raise DecodingError(
                f"{at} has more than max_prompt_tokens={limit} tokens as it is laid out, context and system message "
                "included, even without its oldest turns. Raise the limit, or shorten its last message."
            )
        record = {
            "user_id": user,
            "prompt": prompt_text(prompt),
            "context": "none" if contexts is None else contexts.context,
            "context_user": whose,
            "shown": shown(kept),
            "shortened": kept != prompt,
            "system": system,
        }
        number_of = None if index is None else index.row(user, unknown="generic")
        asked.append(Question(record, ids_of(tokenizer, shown(kept)), number_of))
    if not asked:
        raise DecodingError("there are no jobs to answer. Expected rows with user_id and prompt.")
    return asked
