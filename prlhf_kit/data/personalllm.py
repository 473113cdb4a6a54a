"""`personalllm`: virtual users over the scores of ten reward models (Zollo et al. 2024, arXiv 2409.20296).

Hub: `namkoong-lab/PersonalLLM` (CC BY 4.0), splits `train` (9,402 prompts) and `test` (1,000). Rows: `prompt`,
`response_1` ... `response_8`, `response_i_model`, and `response_i_<reward model>`, the score of response i by each of
ten reward models. Local: a folder with `data/{train,test}*.parquet`, as the hub's.

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
from scipy.special import expit

from prlhf_kit.data.collect import Card, Tally
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import Rows, hub_rows, local_rows, require_columns, require_folder

HUB = "namkoong-lab/PersonalLLM"
RESPONSES = 8
_SCORE = re.compile(r"response_1_(?!model$)(.+)")
CARD = Card(
    title="PersonalLLM (Zollo et al. 2024, arXiv 2409.20296)",
    source=f"hub: {HUB}",
    licence="CC BY 4.0",
    users="virtual, as many as wanted: Dirichlet weights over ten reward models",
    pairs="9,402 train and 1,000 test prompts with 8 responses each",
    quality="Tastes are those of reward models, not of people.",
    counts={"prompts, train": 9_402, "prompts, test": 1_000, "reward models": 10},
    rules={"prompt in train and test": "drop"},
    extra=Features({"p_chosen": Value("float64")}),
)


def weights(models: list[str], users: int = 100, concentration: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """The truth: one row a user (`user-0` ...), one column a reward model, rows add up to 1."""
    drawn = np.random.default_rng([seed, 1]).dirichlet(np.full(len(models), concentration), users)
    return pd.DataFrame(drawn, columns=models, index=[f"user-{i}" for i in range(users)])


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

    Args:
        users: how many.
        concentration: of the symmetric Dirichlet distribution.
        pairs_per_user: from the train prompts, for training (seen users) or adaptation (unseen ones).
        test_pairs_per_user: from the test prompts.
        unseen_share: share of the users that are not trained on (the last ones).
        temperature: of the Bradley-Terry draw; 0 always prefers the higher utility.
        seed: draws users, prompts, pairs and preferences.
    """
    if temperature < 0 or concentration <= 0:
        raise SchemaError(f"temperature={temperature}, concentration={concentration}: expected at least 0, above 0.")
    require_folder(path, "personalllm")
    sources = {split: _part(path, split) for split in ("train", "test")}
    models, mean, std = _scores(sources["train"], tally)
    truth = weights(models, users, concentration, seed).to_numpy() / std
    rng = np.random.default_rng([seed, 2])
    first_unseen = users - round(unseen_share * users)
    for split, source in sources.items():
        rows = _complete(source, models)
        prompts = sum(1 for _ in rows())
        for _ in range(sum(1 for _ in source()) - prompts):
            tally.drop(split, "(all)", "prompt without all of its scores")
        tally.count(f"prompts, {split}", prompts)
        wanted = pairs_per_user if split == "train" else test_pairs_per_user
        if wanted > prompts:
            raise SchemaError(
                f"{wanted} pairs a user were asked for, but the {split} split has {prompts} prompts only."
            )
        asked: dict[int, list[int]] = {}  # prompt -> who is asked
        for user in range(users):
            for prompt in rng.choice(prompts, wanted, replace=False):
                asked.setdefault(int(prompt), []).append(user)
        for number, row in enumerate(rows()):
            if number not in asked:
                continue
            scores = _matrix(row, models) - mean
            for user in asked[number]:
                a, b = rng.choice(RESPONSES, 2, replace=False)
                gap = float((scores[a] - scores[b]) @ truth[user])
                p = float(expit(gap / temperature)) if temperature else float(np.heaviside(gap, 0.5))
                if rng.random() >= p:
                    a, b, p = b, a, 1 - p
                seen = user < first_unseen
                where = {"train": ("adapt_unseen", "train"), "test": ("test_unseen", "test_seen")}[split][seen]
                yield (
                    where,
                    record(
                        f"{split}-{number}-{user}",
                        f"user-{user}",
                        row["prompt"],
                        row[f"response_{a + 1}"],
                        row[f"response_{b + 1}"],
                        p_chosen=p,
                    ),
                )


def _part(path: str | Path | None, split: str) -> Rows:
    if path is None:
        return hub_rows(HUB, split)
    return local_rows(path, f"data/{split}*", f"{split}*")


def _complete(rows: Rows, models: list[str]) -> Rows:
    """Rows in which no score is missing: one that is would make every user's utilities meaningless."""
    return lambda: (row for row in rows() if np.isfinite(_matrix(row, models)).all())


def _scores(rows: Rows, tally: Tally) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the reward models, and mean and standard deviation of their scores."""
    first = next(rows(), None)
    if first is None:
        raise SchemaError("the train split of 'personalllm' is empty.")
    models = sorted(found[1] for name in first if (found := _SCORE.fullmatch(name)))
    if not models:
        raise SchemaError(
            f"no scores in a row of 'personalllm' with {sorted(first)}, expected response_1_<reward model>."
        )
    tally.count("reward models", len(models))
    columns = ["prompt", *(f"response_{i}" for i in range(1, RESPONSES + 1))]
    total = squares = np.zeros(len(models))
    n = 0
    for row in rows():
        require_columns(row, columns, "personalllm")
        scores = _matrix(row, models)
        if not np.isfinite(scores).all():
            continue
        total, squares, n = total + scores.sum(0), squares + (scores**2).sum(0), n + len(scores)
    if not n:
        raise SchemaError("no prompt of 'personalllm' has all of its scores.")
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return models, mean, np.where(std > 0, std, 1.0)


def _matrix(row: dict, models: list[str]) -> np.ndarray:
    """Scores `[8, models]`."""
    names = [[f"response_{i}_{model}" for model in models] for i in range(1, RESPONSES + 1)]
    require_columns(row, [name for line in names for name in line], "personalllm")
    return np.array([[row[name] for name in line] for line in names], dtype=float)
