"""Multiple choice by likelihood: a stated preference, a question, and options of which one respects the preference
(PrefEval, Zhao et al. 2025, arXiv 2502.09597). Options are scored as answers and not shown, so none has a place; what
could give the right one away is its length, so the rules "shortest" and "longest" stand beside every accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.context import RECORDED
from prlhf_kit.data.schema import FEATURES, SchemaError
from prlhf_kit.models.logprobs import as_read, completion_logps

LIKELIHOOD, SUMMED = "likelihood a token", "summed likelihood"
SHORTEST, LONGEST = "shortest option", "longest option"
RULES = {LIKELIHOOD: "right", SUMMED: "right_sum", SHORTEST: "right_shortest", LONGEST: "right_longest"}


def questions(pairs: Dataset) -> Dataset:
    """The questions behind preference pairs that set one right option against each of the others, as `prefeval`'s do.

    Returns:
        One row for each user, prompt and chosen response: `question_id` (of its first pair), `user_id`, `user_text`,
        `group`, `prompt`, `options` (`[k]` responses, the right one first), `right_option` (0), and `RECORDED`.
    """
    kept = [n for n in ("user_id", "user_text", "group", "prompt", *RECORDED) if n in pairs.column_names]
    found: dict[str, dict] = {}
    for pair in pairs:
        new = {"question_id": pair["pair_id"], **{name: pair[name] for name in kept}, "options": [pair["chosen"]]}
        options = found.setdefault(str([pair["user_id"], pair["prompt"], pair["chosen"]]), new)["options"]
        if pair["rejected"] not in options:
            options.append(pair["rejected"])
    few = [row["question_id"] for row in found.values() if len(row["options"]) < 2]
    if few:
        raise SchemaError(
            f"{len(few)} questions have one option only, first the pair {few[0]!r}; expected a rejected response that "
            "is not the chosen one."
        )
    types = {"question_id": Value("string"), **{name: pairs.features[name] for name in kept}}
    types |= {"options": List(FEATURES["chosen"]), "right_option": Value("int64")}
    return Dataset.from_list([row | {"right_option": 0} for row in found.values()], features=Features(types))


def choose(
    model,
    tokenizer: PreTrainedTokenizerBase,
    questions: Dataset,
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Which option of each question a model finds likeliest as its answer; `user_rows` as in `score_pairs`.

    Returns:
        One row a question: `question_id`, `user_id`, `prompt` (its text), `options` (k), `logps` (`[k]` nats a token),
        `right` (1 if the likeliest is the right one, 1/m of m at the top, else 0), and the same by `right_sum` (summed
        log-prob), `right_shortest` and `right_longest` (tokens).
    """
    rows = questions if user_rows is None else as_read(model, questions)
    number = [len(options) for options in rows["options"]]
    place = np.repeat(np.arange(len(number)), number).tolist()  # of the question, for each option
    prompts = rows["prompt"][:]
    users = None if user_rows is None else [user_rows[i] for i in place]
    answers = [option for options in rows["options"] for option in options]
    scored = completion_logps(model, tokenizer, [prompts[i] for i in place], answers, users, batch_size)
    found = []
    logps, tokens = (np.split(numbers, np.cumsum(number)[:-1]) for numbers in scored)
    for summed, length, right in zip(logps, tokens, rows["right_option"], strict=True):
        mean = summed / length
        rules = {"right": mean, "right_sum": summed, "right_shortest": -length, "right_longest": length}
        found.append({"logps": mean.tolist()} | {name: _right(values, right) for name, values in rules.items()})
    asked = {
        "question_id": rows["question_id"],
        "user_id": rows["user_id"],
        "prompt": [prompt_text(prompt) for prompt in prompts],
        "options": number,
    }
    return pd.concat([pd.DataFrame(asked), pd.DataFrame(found)], axis=1)


def _right(values: np.ndarray, right: int) -> float:
    """1 where the option `right` alone has the greatest value, 1/m where m share it, else 0.

    >>> _right(np.array([2.0, 2.0, 1.0]), 1)
    0.5
    """
    top = values == values.max()
    return float(top[right] / top.sum())
