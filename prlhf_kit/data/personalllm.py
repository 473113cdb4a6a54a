"""`personalllm`: virtual users over the scores of ten reward models (Zollo et al. 2024, arXiv 2409.20296).

Hub: `namkoong-lab/PersonalLLM` (CC BY 4.0), splits `train` (9,402 prompts) and `test` (1,000). Local: a folder with
`data/{train,test}*.parquet`, as the hub's.

A user is a weight vector over the reward models, drawn from a Dirichlet distribution: small concentrations give users
who follow one model each, large ones users who all want the mean. So the truth is known (`weights`), as in PersonalLLM
and LoRe (arXiv 2504.14439).

Departures: scores are standardised per reward model over the train split, so that a weight means the same for each;
and the preference between two responses may be drawn by Bradley-Terry (`temperature`) in place of always being the
higher utility.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Features, Value

from prlhf_kit.data.cards import Tally, dataset, split_of
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import Rows, hub_rows, local_rows

HUB = "namkoong-lab/PersonalLLM"
RESPONSES = 8
_SCORE = re.compile(r"response_1_(?!model$)(.+)")


def weights(models: list[str], users: int = 100, concentration: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """The truth: one row a user (`user-0` ...), one column a reward model, rows add up to 1."""
    drawn = np.random.default_rng([seed, 1]).dirichlet(np.full(len(models), concentration), users)
    return pd.DataFrame(drawn, columns=models, index=[f"user-{i}" for i in range(users)])


@dataset(
    "personalllm",
    title="PersonalLLM (Zollo et al. 2024, arXiv 2409.20296)",
    source=f"hub: {HUB}",
    licence="CC BY 4.0",
    users="virtual, as many as wanted: Dirichlet weights over ten reward models",
    pairs="9,402 train and 1,000 test prompts with 8 responses each",
    quality="Tastes are those of reward models, not of people.",
    counts={"prompts, train": 9_402, "prompts, test": 1_000, "reward models": 10},
    rules={"prompt in train and test": "drop"},
    extra=Features({"p_chosen": Value("float64")}),
    folder=True,
)
def read(
    tally: Tally,
    path: str | Path | None = None,
    *,
    users: int = 100,
    concentration: float = 0.1,
    pairs_per_user: int = 50,
    test_pairs_per_user: int = 20,
    unseen_share: float = 0.2,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[str, dict]]:
    """Records: every user compares two random responses to each of some random prompts.

    A row: `{"prompt": "How do I make tea?", "response_1": "Boil water.", ..., "response_8": "Ask a friend.",
    "response_1_gemma_2b": -1.3, "response_1_llama3_sfairx": 0.8, ...}`, a score of each response by each reward model.

    Args:
        users: how many.
        concentration: of the symmetric Dirichlet distribution.
        pairs_per_user: from the train prompts, for training (seen users) or adaptation (unseen ones).
        test_pairs_per_user: from the test prompts.
        unseen_share: share of the users that are not trained on (the last ones).
        temperature: of the Bradley-Terry draw; 0 always prefers the higher utility.
        seed: draws users, prompts, pairs and preferences.
    """
    from scipy.special import expit

    if temperature < 0 or concentration <= 0:
        raise SchemaError(f"temperature={temperature}, concentration={concentration}: expected at least 0, above 0.")
    sources = {
        part: hub_rows(HUB, part) if path is None else local_rows(path, f"data/{part}*", f"{part}*")
        for part in ("train", "test")
    }
    first = next(iter(sources["train"]), {})
    models = sorted(found[1] for name in first if (found := _SCORE.fullmatch(name)))
    if not models:
        raise SchemaError(f"no scores in a row of 'personalllm' with {sorted(first)}, expected response_1_<model>.")
    tally.count("reward models", len(models))
    mean, std = _moments(sources["train"], models)
    truth = weights(models, users, concentration, seed).to_numpy() / std
    rng = np.random.default_rng([seed, 2])
    unseen = {f"user-{i}" for i in range(users - round(unseen_share * users), users)}
    for part, source in sources.items():
        complete = [bool(np.isfinite(_scores(row, models)).all()) for row in source]
        prompts = sum(complete)
        if prompts < len(complete):
            tally.drop(part, "(all)", "prompt without all of its scores", len(complete) - prompts)
        tally.count(f"prompts, {part}", prompts)
        wanted = pairs_per_user if part == "train" else test_pairs_per_user
        if wanted > prompts:
            raise SchemaError(f"{wanted} pairs a user were asked for, but the {part} split has {prompts} prompts only.")
        asked: dict[int, list[int]] = {}  # prompt -> who is asked
        for user in range(users):
            for prompt in rng.choice(prompts, wanted, replace=False):
                asked.setdefault(int(prompt), []).append(user)
        for number, row in enumerate(row for row, whole in zip(source, complete, strict=True) if whole):
            scores = _scores(row, models) - mean if number in asked else np.zeros(0)
            for user in asked.get(number, []):
                a, b = rng.choice(RESPONSES, 2, replace=False)
                gap = float((scores[a] - scores[b]) @ truth[user])
                p = float(expit(gap / temperature)) if temperature else float(np.heaviside(gap, 0.5))
                if rng.random() >= p:
                    a, b, p = b, a, 1 - p
                name = f"user-{user}"
                answers = row[f"response_{a + 1}"], row[f"response_{b + 1}"]
                split = split_of(name, "", unseen, 0, seed, part)
                yield split, record(f"{part}-{number}-{user}", name, row["prompt"], *answers, p_chosen=p)


def _moments(rows: Rows, models: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[models]` of the scores of rows that have all of them."""
    total = squares = np.zeros(len(models))
    n = 0
    for row in rows:
        scores = _scores(row, models)
        if np.isfinite(scores).all():
            total, squares, n = total + scores.sum(0), squares + (scores**2).sum(0), n + len(scores)
    if not n:
        raise SchemaError("no prompt of 'personalllm' has all of its scores.")
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return mean, np.where(std > 0, std, 1.0)


def _scores(row: dict, models: list[str]) -> np.ndarray:
    """`[8, models]`; NaN where one is missing: that would make every user's utilities meaningless."""
    return np.array([[row[f"response_{i}_{m}"] for m in models] for i in range(1, RESPONSES + 1)], dtype=float)
