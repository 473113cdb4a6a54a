"""Answers to test prompts, with the reader in the prompt or in front of it: one for each prompt, be it empty (ComPO's
released script, arXiv 2410.16027, leaves some out), and on disk at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text, shorten
from prlhf_kit.data.context import RECORDED, Contexts
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.decoding.answers import add_lines, locked, read_lines
from prlhf_kit.decoding.generate import (
    DecodingError,
    Prompt,
    Written,
    batches_of,
    generation_config,
    identity,
    ids_of,
    require_prompt,
    write_batch,
)
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import causal_lm, check_length
from prlhf_kit.models.tokenize import require_tokenizer
from prlhf_kit.models.user_index import UserIndex

COLUMNS = (*ANSWERS, *RECORDED, "shown", "shortened", "finished", "tokens")


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

    A call that was killed goes on where it was. Answers of other calls (another model, shown prompt, user, option or
    seed) stay in the file. Greedy decoding asks equal questions once. Sampling draws batch by batch: an interrupted
    call gets the answers of an uninterrupted one, other jobs or another batch size get others.

    Args:
        model: causal LM; personalised for `index`. Without an index, soft user tokens are left out.
        jobs: rows with `user_id` (None: nobody in particular) and `prompt`, messages without any context.
        system: its name in the table.
        contexts: puts readers into the prompts (`data.context`); None: nothing of them.
        index: users whose soft tokens stand in front; others get the generic row.
        max_prompt_tokens: longest prompt as laid out, the context included and soft tokens not. A longer one loses its
            oldest turns, never the context.
        generation: as of `generate`.

    Returns:
        A row for each job, columns `COLUMNS`, as `judges.judged` takes it: `prompt` is the text without context,
        `RECORDED` what was put in, `shown` the messages that the model read, `shortened` whether turns were left out,
        `finished` whether the answer ended by itself, not at max_new_tokens.

    Raises:
        DecodingError: before anything is generated: no jobs, a context in a prompt, an empty prompt or one that can't
            be made to fit, an unknown option.
        SchemaError: a context that can't be put in, or roles that the chat template refuses.
        ValueError: `path` is a file of something else, or another call is writing it.
    """
    require_tokenizer(model, tokenizer)
    config = generation_config(model, tokenizer, generation)
    if model.training:
        raise DecodingError("the model is in training mode, in which dropout changes its answers. Call model.eval().")
    rows = [_shown(tokenizer, number, job, contexts, max_prompt_tokens) for number, job in enumerate(jobs)]
    if not rows:
        raise DecodingError("there are no jobs to answer. Expected rows with user_id and prompt.")
    users = [0 if index is None else index.row(row["user_id"], unknown="generic") for row in rows]
    asked = [(ids_of(tokenizer, row["shown"]), user) for row, user in zip(rows, users, strict=True)]
    check_length(model, max(len(ids) for ids, _ in asked) + config.max_new_tokens, users=index is not None)

    # what tells each answer from all others; a sampled one depends on all that is asked
    made_by = [identity(model), _settings(config), _settings(causal_lm(model).generation_config), index is None]
    drawn = [seed, batch_size, asked] if config.do_sample else []
    began = short_hash(made_by, drawn)
    keys = [short_hash(began, question, i if drawn else 0) for i, question in enumerate(asked)]
    questions = dict(zip(keys, zip(asked, rows, strict=True), strict=True))  # equal ones once
    order = list(questions)
    batches = batches_of([len(ids) for (ids, _), _ in questions.values()], batch_size)

    path = Path(path)
    with locked(path):
        found = read_lines(path, lambda row: {name: row[name] for name in Written._fields}, "answer of respond")
        for number, places in enumerate(tqdm(batches, desc=f"answers of {system}", disable=None, leave=False)):
            batch = [order[place] for place in places]
            left = [key for key in batch if key not in found]
            if not left:
                continue
            if drawn:  # the whole batch again, for the same draws
                torch.manual_seed(int(short_hash(seed, number)[:8], 16))
            else:
                batch = left
            texts, who = zip(*(questions[key][0] for key in batch), strict=True)
            written = write_batch(model, tokenizer, texts, None if index is None else who, config)
            new = {key: one._asdict() for key, one in zip(batch, written, strict=True) if key in left}
            add_lines(path, [{"key": key, "shown": questions[key][1]["shown"], **new[key]} for key in new])
            found |= new
    table = [{"system": system, **row, **found[key]} for row, key in zip(rows, keys, strict=True)]
    return pd.DataFrame(table, columns=list(COLUMNS))


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: str(value) for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def _shown(tokenizer, number: int, job: Mapping[str, Any], contexts: Contexts | None, limit: int | None) -> dict:
    """A job's row of the table, but for its answer: its prompt as it is shown, in at most `limit` tokens."""
    if set(RECORDED) & set(job):
        raise DecodingError(f"job {number} has a context in its prompt already. Pass it by contexts=Contexts(...).")
    require_prompt(job["prompt"])
    prompt = [{"role": m["role"], "content": m["content"]} for m in job["prompt"]]
    none = dict.fromkeys(RECORDED) | {"context": "none"}
    recorded = none if contexts is None else contexts.record(prompt, job["user_id"])
    whose = recorded["context_user"]

    def shown(own: Prompt) -> Prompt:
        return own if contexts is None or whose is None else contexts.say(own, whose, prompt)

    def fits(own: Prompt) -> bool:
        return limit is None or len(ids_of(tokenizer, shown(own))) <= limit

    kept = prompt if fits(prompt) else shorten(prompt, fits)
    if kept is None:
        said = f"job {number} has more than max_prompt_tokens={limit} tokens with its context"
        raise DecodingError(f"{said}, even without its oldest turns. Raise it, or shorten the last message.")
    told = {"shown": shown(kept), "shortened": kept != prompt}
    return {"user_id": job["user_id"], "prompt": prompt_text(prompt), **recorded, **told}
