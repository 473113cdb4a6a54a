"""Answers to test prompts, with the reader in the prompt or in front of it: one for each prompt, and on disk at once.

The released script of ComPO (Kumar et al. 2024, arXiv 2410.16027) leaves some prompts without an answer. Here each has
one, be it empty; long posts are cut where a sentence ends.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.data.context import Contexts
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.decoding.answers import add_lines, read_lines
from prlhf_kit.decoding.generate import (
    DecodingError,
    check_context,
    generation_config,
    identity,
    in_batches,
    write_batch,
)
from prlhf_kit.decoding.shown import Question, read_jobs
from prlhf_kit.decoding.vllm_engine import VLLM, load_vllm, require_vllm, sampling_options
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import causal_lm, user_model_of
from prlhf_kit.models.user_index import UserIndex

BATCH = {"transformers": 16, "vllm": 512}  # vLLM makes its own batches of what is handed over between two writes
COLUMNS = (*ANSWERS, "context", "context_user", "shown", "shortened", "finished", "tokens", "engine", "key")


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
    engine: str | VLLM = "transformers",
    batch_size: int | None = None,
    seed: int = 0,
    **generation: Any,
) -> pd.DataFrame:
    """Answer every job, and keep the answers in a file of JSON lines.

    A call that was killed goes on where it was. Rows of other calls (another model, context, prompt, user, option, seed
    or engine) stay in the file and are not returned, so several systems may share one, one after the other. Greedy
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
            oldest turns, then the end of its last message (`decoding.sentences`), never the context. None: no limit
            but the model's own.
        engine: "transformers"; "vllm" (`decoding.vllm_engine`); or a model that `load_vllm` has loaded.
        batch_size: None: 16, with vLLM 512.
        generation: as of `generate`.

    Returns:
        A row for each job, in their order, columns `COLUMNS`; `judges.judged` takes it as it is where no user asks the
        same twice. `user_id` is who asked and `prompt` the text they asked, without context; `context_user` is whose
        context was put in, `shown` the messages that the model read, `shortened` whether the prompt was; `tokens` are
        those of the answer, and `finished` says that it ended by itself, not at max_new_tokens.

    Raises:
        DecodingError: before anything is generated: no jobs, rows without their columns, an empty prompt or one that
            can't be made to fit, an unknown engine or option, users that the model does not have.
        SchemaError: a context that can't be put in, or roles that the chat template refuses.
        ValueError: `path` is a file of something else.
    """
    config = generation_config(model, tokenizer, generation)
    name = _require(model, config, engine, index, system, max_prompt_tokens, batch_size)
    asked = read_jobs(tokenizer, jobs, contexts, index, max_prompt_tokens, {"system": system, "engine": name})
    check_context(model, max(len(job.ids) for job in asked), config.max_new_tokens, users=index is not None)
    weights = identity(model)
    if isinstance(engine, VLLM) and engine.weights != weights:
        raise DecodingError(
            f"vLLM has loaded the weights {engine.weights}, the model has {weights}. Load it again with load_vllm."
        )
    questions = _questions(asked, once=not config.do_sample)
    first = [asked[numbers[0]] for numbers in questions]
    batches = in_batches([len(job.ids) for job in first], batch_size or BATCH[name])
    made_by = [weights, _settings(config), _settings(causal_lm(model).generation_config)]
    keys = _keys(asked, questions, batches, made_by, seed if config.do_sample else None)
    path = Path(path)
    found = read_lines(path, lambda row: {column: row[column] for column in COLUMNS}, "answer of respond")
    left = {q for q, numbers in enumerate(questions) if any(keys[i] not in found for i in numbers)}
    if config.do_sample:  # whole batches, for the same draws
        todo = [(number, batch) for number, batch in enumerate(batches) if left & set(batch)]
    else:
        todo = list(enumerate(chosen for batch in batches if (chosen := [q for q in batch if q in left])))
    if name == "transformers":
        write = partial(_write, model, tokenizer)
    elif todo:
        write = partial((engine if isinstance(engine, VLLM) else load_vllm(model, tokenizer)).write, model, tokenizer)
    for number, batch in tqdm(todo, desc=f"answers of {system}", disable=None, leave=False):
        rows = None if index is None else [first[q].user for q in batch]
        written = write([first[q].row["shown"] for q in batch], rows, config, int(short_hash(seed, number)[:8], 16))
        new = {}
        for q, one in zip(batch, written, strict=True):
            for i in questions[q]:
                if keys[i] not in found:
                    said = {"answer": one.text, "finished": one.finished, "tokens": one.tokens}
                    new[keys[i]] = {"key": keys[i], **asked[i].row, **said}
        add_lines(path, new.values())
        found |= new
    return pd.DataFrame([found[key] for key in keys], columns=list(COLUMNS))


def _write(model, tokenizer, prompts, rows, config, seed):
    if config.do_sample:
        torch.manual_seed(seed)
    return write_batch(model, tokenizer, prompts, rows, config)


def _require(model, config: GenerationConfig, engine, index, system, max_prompt_tokens, batch_size) -> str:
    """Refuse settings that can't be meant. Returns the engine's name."""
    name = "vllm" if isinstance(engine, VLLM) else engine
    if name not in BATCH:
        raise DecodingError(f"engine={engine!r}: expected one of {', '.join(BATCH)}, or what load_vllm returns.")
    if not isinstance(system, str) or not system:
        raise DecodingError(f"system={system!r}: expected a name, by which judges tell answers apart.")
    sizes = {"max_prompt_tokens": max_prompt_tokens, "batch_size": batch_size}
    given = {option: value for option, value in sizes.items() if value is not None}
    for option, value in {**given, "max_new_tokens": config.max_new_tokens}.items():
        if not isinstance(value, int) or value < 1:
            raise DecodingError(f"{option}={value!r}: expected a whole number from 1 on.")
    for option, value in {"num_return_sequences": 1, "return_dict_in_generate": False}.items():
        if (getattr(config, option) or value) != value:
            raise DecodingError(
                f"{option}={getattr(config, option)!r}: each job gets one answer, as text. Leave it out."
            )
    if model.training:
        raise DecodingError("the model is in training mode, in which dropout changes its answers. Call model.eval().")
    if name == "vllm":
        require_vllm()
        sampling_options(model, config, users=index is not None)
    if index is not None:
        known = getattr(user_model_of(model), "num_rows", len(index))
        if len(index) > known:
            raise DecodingError(f"the index has {len(index)} rows, the model {known}. Take the index saved with it.")
    return name


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
