"""`simulated`: real responses of a real model (`scripts/make_simulated.py`), and users whose taste is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Features, Value

from prlhf_kit.data.attributes import ATTRIBUTES, measure_all
from prlhf_kit.data.registry import Records, Source, Tally, dataset
from prlhf_kit.data.schema import SchemaError, record

PARQUET = Path(__file__).with_name("simulated.parquet")
# Four types in two opposite pairs over format, tone and length. The weights of all types add up to zero, so that what
# all users have in common is close to nothing. type -> (weights over attributes, what such a person would say)
TYPES: dict[str, tuple[dict[str, float], str]] = {
    "structured": (
        {"lists": 1.5, "warmth": -1.5, "questions": -0.8, "length": -0.5},
        "Give me short bullet points, matter-of-fact, and no questions back.",
    ),
    "companion": (
        {"lists": -1.5, "warmth": 1.5, "questions": 0.8, "length": 0.5},
        "Talk to me like a warm friend, in full sentences, and ask me something back.",
    ),
    "formal": (
        {"formality": 1.5, "warmth": -1.2, "questions": -0.8, "length": 0.5},
        "Answer like a formal expert, in a sober tone, and without questions.",
    ),
    "casual": (
        {"formality": -1.5, "warmth": 1.2, "questions": 0.8, "length": -0.5},
        "Keep it short, casual and cheerful, and ask me something back.",
    ),
}
TASTES = pd.DataFrame({name: weights for name, (weights, _) in TYPES.items()}, list(ATTRIBUTES)).fillna(0.0).T
NOISE = 0.25  # standard deviation of each user's own deviation, per attribute
# A pair is the most different of so many random pairs of its prompt's responses (by what the types care about, not by
# the user's own taste): most random pairs hardly differ.
CONTRAST = 4


@dataclass(frozen=True)
class Population:
    """Simulated users and what they truly like: a weight for each text attribute (`attributes.py`).

    Args:
        weights: one row a user (index: user id), one column an attribute.
        groups: user id -> type.
        mean, std: of each attribute over the shipped responses; utilities are over standardised attributes.
        temperature: of the Bradley-Terry choice, P(a over b) = sigmoid((u(a) - u(b)) / temperature).
    """

    weights: pd.DataFrame
    groups: dict[str, str]
    mean: pd.Series
    std: pd.Series
    temperature: float

    def standardise(self, texts: Iterable[str]) -> pd.DataFrame:
        """Attributes of each text in standard deviations from the mean of the shipped responses."""
        return (measure_all(texts) - self.mean) / self.std

    def utility(self, user_ids: Iterable[str], texts: Iterable[str]) -> np.ndarray:
        """True utility of `texts[i]` for `user_ids[i]`: `[n]`, in standard deviations of the attributes."""
        return (self.standardise(texts).to_numpy() * self.weights.loc[list(user_ids)].to_numpy()).sum(1)

    def preference(self, user_ids: Iterable[str], a: Iterable[str], b: Iterable[str]) -> np.ndarray:
        """Probability `[n]` that each user prefers `a[i]` to `b[i]` (Bradley-Terry)."""
        from scipy.special import expit  # takes a third of a second, which `prlhf data check` need not wait for

        users = list(user_ids)
        return expit((self.utility(users, a) - self.utility(users, b)) / self.temperature)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, for `load`."""
        plain = {"weights": self.weights.to_dict("split"), "mean": self.mean.to_dict(), "std": self.std.to_dict()}
        Path(path).write_text(json.dumps({**plain, "groups": self.groups, "temperature": self.temperature}))

    @classmethod
    def load(cls, path: str | Path) -> Population:
        found = json.loads(Path(path).read_text())
        mean, std = pd.Series(found["mean"]), pd.Series(found["std"])
        return cls(pd.DataFrame(**found["weights"]), found["groups"], mean, std, found["temperature"])


def responses() -> pd.DataFrame:
    """The shipped responses: `prompt_id`, `prompt`, `response`, `style` (of the request; never an input)."""
    return pd.read_parquet(PARQUET)


def population(users_per_type: int = 3, temperature: float = 0.25, seed: int = 0) -> Population:
    """Users `structured-1 ... casual-3`: their type's weights and a deviation of their own."""
    if users_per_type < 2 or temperature <= 0:
        raise ValueError(
            f"{users_per_type=}, {temperature=}: expected at least 2 users a type (one is unseen), and more than 0."
        )
    rng = np.random.default_rng([seed, 1])
    groups = {f"{name}-{i}": name for name in TYPES for i in range(1, users_per_type + 1)}
    weights = TASTES.loc[list(groups.values())].set_axis(list(groups))
    weights += rng.normal(0.0, NOISE, weights.shape)
    attributes = measure_all(responses()["response"])
    return Population(weights, groups, attributes.mean(), attributes.std(), temperature)


@dataset(
    "simulated",
    title="Simulated users over real responses (this kit)",
    source="embedded: 243 prompts, 1,452 responses of SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    users="12 by default, in 4 types; weights over 6 text attributes",
    quality="Tastes are simulated and about form only; what is true or useful plays no part.",
    extra=Features({"p_chosen": Value("float64")}),
)
def read(
    tally: Tally,
    path: Source = None,
    *,
    pairs_per_user: int = 40,
    test_pairs_per_user: int = 20,
    adapt_pairs_per_user: int = 40,
    users_per_type: int = 3,
    temperature: float = 0.25,
    seed: int = 0,
) -> Records:
    """Records with `p_chosen`, the true probability of the stated preference, beside them.

    60% of the prompts are for `train`, 10% for `adapt_unseen`, 30% for tests. Each type's last user is unseen.

    Args:
        path: must be None, the data is embedded.
        pairs_per_user, test_pairs_per_user, adapt_pairs_per_user: training pairs of each seen user, test pairs of each
            user, adaptation pairs of each unseen user.
        users_per_type, temperature, seed: see `population`; the seed also draws prompts, pairs and preferences.
    """
    if path is not None:
        raise SchemaError(f"'simulated' is embedded and takes no path, got {str(path)!r}. Use 'files' for your own.")
    people = population(users_per_type, temperature, seed)
    texts = responses()
    places = people.standardise(texts["response"]).to_numpy() @ TASTES.to_numpy().T  # [responses, types]: utilities
    by_prompt = list(texts.groupby("prompt_id").groups.values())
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(len(by_prompt))
    cut_train, cut_adapt = int(0.6 * len(order)), int(0.7 * len(order))
    pools = {"train": order[:cut_train], "adapt": order[cut_train:cut_adapt], "test": order[cut_adapt:]}
    unseen = [f"{name}-{users_per_type}" for name in TYPES]
    seen = [user for user in people.groups if user not in unseen]
    plan = {
        "train": ("train", pairs_per_user, seen),
        "test_seen": ("test", test_pairs_per_user, seen),
        "test_unseen": ("test", test_pairs_per_user, unseen),
        "adapt_unseen": ("adapt", adapt_pairs_per_user, unseen),
    }
    for split, (pool, size, users) in plan.items():
        if size == 0:
            continue
        shown: list[tuple[str, str, int, int]] = []  # pair id, user, rows of the two responses
        for user in users:
            # a user sees each prompt once before any prompt comes back
            prompts = np.concatenate([rng.permutation(pools[pool]) for _ in range(-(-size // len(pools[pool])))])[:size]
            for i, prompt in enumerate(prompts):
                drawn = [rng.choice(by_prompt[prompt], 2, replace=False) for _ in range(CONTRAST)]
                a, b = max(drawn, key=lambda pair: np.linalg.norm(places[pair[0]] - places[pair[1]]))
                shown.append((f"{split}-{user}-{i}", user, a, b))
        pair_ids, asked, first, second = zip(*shown, strict=True)
        p = people.preference(asked, texts["response"][list(first)], texts["response"][list(second)])
        draws = rng.random(len(shown))
        for pair_id, user, a, b, p_a, draw in zip(pair_ids, asked, first, second, p, draws, strict=True):
            chosen, rejected, p_chosen = (a, b, p_a) if draw < p_a else (b, a, 1 - p_a)
            group, answers = people.groups[user], (texts["response"][chosen], texts["response"][rejected])
            told = TYPES[group][1]
            yield split, record(pair_id, user, texts["prompt"][a], *answers, told, group, p_chosen=float(p_chosen))


def oracle_accuracy(p_chosen: Iterable[float]) -> float:
    """The best expected accuracy that any model can reach: mean of max(p, 1 - p)."""
    p = np.asarray(list(p_chosen))
    return float(np.maximum(p, 1 - p).mean())
