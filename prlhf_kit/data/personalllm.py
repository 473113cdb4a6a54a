"""`personalllm`: virtual users over the scores of ten reward models (Zollo et al. 2024, arXiv 2409.20296)."""

import re

import numpy as np
import pandas as pd

from prlhf_kit.data.registry import Records, Source, Tally, dataset, split_for
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import hub_rows, local_rows

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
    users="virtual: Dirichlet weights over ten reward models",
    quality="Tastes are those of reward models, not of people.",
    counts={"prompts, train": 9_402, "prompts, test": 1_000, "reward models": 10},
    rules={"prompt in train and test": "drop"},
    folder=True,
)
def read(
    tally: Tally,
    path: Source = None,
    *,
    users: int = 100,
    concentration: float = 0.1,
    pairs_per_user: int = 50,
    test_pairs_per_user: int = 20,
    unseen_share: float = 0.2,
    seed: int = 0,
) -> Records:
    """Records: every user compares two random responses to each of some random prompts.

    A user is a weight vector over the reward models, drawn from a Dirichlet distribution: small concentrations give
    users who follow one model each, large ones users who all want the mean. Departure: scores are standardised per
    reward model over the train split, so that a weight means the same for each.

    A row: `{"prompt": "How do I make tea?", "response_1": "Boil water.", ..., "response_8": "Ask a friend.",
    "response_1_gemma_2b": -1.3, "response_1_llama3_sfairx": 0.8, ...}`, a score of each response by each reward model.

    Args:
        users: how many.
        concentration: of the symmetric Dirichlet distribution.
        pairs_per_user: from the train prompts, for training (seen users) or adaptation (unseen ones).
        test_pairs_per_user: from the test prompts.
        unseen_share: share of the users that are not trained on (the last ones).
        seed: draws users, prompts and pairs.
    """
    sources = {
        part: hub_rows(HUB, part) if path is None else local_rows(path, f"data/{part}*", f"{part}*")
        for part in ("train", "test")
    }
    first = next(iter(sources["train"]), {})
    models = sorted(found[1] for name in first if (found := _SCORE.fullmatch(name)))
    if not models:
        raise SchemaError(f"no scores in a row of 'personalllm' with {sorted(first)}, expected response_1_<model>.")
    tally.count("reward models", len(models))
    scores = {  # [prompts, 8, models]; NaN where one is missing, which would make every user's utility meaningless
        part: np.array(
            [[[row[f"response_{i}_{m}"] for m in models] for i in range(1, RESPONSES + 1)] for row in rows], dtype=float
        )
        for part, rows in sources.items()
    }
    whole = {part: np.isfinite(found).all((1, 2)) for part, found in scores.items()}
    std = scores["train"][whole["train"]].std((0, 1))
    truth = weights(models, users, concentration, seed).to_numpy() / np.where(std > 0, std, 1.0)  # the mean cancels out
    rng = np.random.default_rng([seed, 2])
    unseen = {f"user-{i}" for i in range(users - round(unseen_share * users), users)}
    for part, source in sources.items():
        complete = np.flatnonzero(whole[part])
        if missing := len(whole[part]) - len(complete):
            tally.drop(part, "(all)", "prompt without all of its scores", missing)
        tally.count(f"prompts, {part}", len(complete))
        wanted = pairs_per_user if part == "train" else test_pairs_per_user
        if wanted > len(complete):
            raise SchemaError(f"{wanted} pairs a user, but the {part} split has {len(complete)} prompts: lower that.")
        asked: dict[int, list[int]] = {}  # row -> who is asked
        for user in range(users):
            for number in rng.choice(complete, wanted, replace=False).tolist():
                asked.setdefault(number, []).append(user)
        for number, row in enumerate(source):
            for user in asked.get(number, []):
                a, b = rng.choice(RESPONSES, 2, replace=False)
                if (scores[part][number, a] - scores[part][number, b]) @ truth[user] < 0:
                    a, b = b, a
                name = f"user-{user}"
                split = split_for(name in unseen, part == "test")
                answers = row[f"response_{a + 1}"], row[f"response_{b + 1}"]
                yield split, record(f"{part}-{number}-{user}", name, row["prompt"], *answers)
