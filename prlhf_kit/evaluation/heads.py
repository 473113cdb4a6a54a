"""Heads on frozen features beside each other and beside their controls, as notebook 02 shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from sklearn.model_selection import GroupKFold

from prlhf_kit import data as datasets_of_the_kit
from prlhf_kit.data.simulated import oracle_accuracy
from prlhf_kit.evaluation.accuracy import LENGTH, USER_LENGTH, length_rules, ranked_right, words
from prlhf_kit.evaluation.reward_models import prompts_of
from prlhf_kit.evaluation.statistics import cluster_bootstrap
from prlhf_kit.models.features import Embedder
from prlhf_kit.training.heads import STRENGTHS, Heads, fit_heads, fit_pooled


class Embedded(NamedTuple):
    """Features of both responses of some pairs, `[n, d]` each."""

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """f(x, chosen) - f(x, rejected)."""
        return self.chosen - self.rejected


def embed(data: DatasetDict, embedders: Sequence[Embedder], cache: Path | None = None) -> dict[str, Embedded]:
    """Features of every split's pairs; those of several embedders side by side."""

    prompts = [prompt for pairs in data.values() for prompt in pairs["prompt"]]
    texts = [response for c in ("chosen", "rejected") for pairs in data.values() for response in pairs[c]]
    # in one call, since a response that one user chose another may have rejected
    features = np.concatenate([embedder(prompts * 2, texts, cache) for embedder in embedders], axis=1)
    ends = np.cumsum([len(pairs) for pairs in data.values()])[:-1]
    parts = zip(*(np.split(half, ends) for half in np.split(features, 2)), strict=True)
    return {split: Embedded(*part) for split, part in zip(data, parts, strict=True)}


def embed_pairs(pairs: Dataset, embedders: Sequence[Embedder], cache: Path | None = None) -> Embedded:
    """`embed` of one set of pairs."""
    return embed(DatasetDict(pairs=pairs), embedders, cache)["pairs"]


def responses(pairs: Dataset, embedded: Embedded) -> tuple[np.ndarray, list[str]]:
    """Features and text of every different response of `pairs`, once."""
    texts = [" ".join(m["content"] for m in r) for c in ("chosen", "rejected") for r in pairs[c]]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    return np.concatenate(embedded)[list(first.values())], list(first)


def fit(kind: str, pairs: Dataset, embedded: Embedded) -> Heads:
    """`fit_heads` of the training pairs."""
    scale = np.concatenate(embedded).std(0)
    return fit_heads(kind, embedded.difference, pairs["user_id"], pairs["prompt"], scale)


def accuracy(
    heads: Heads, data: DatasetDict, embedded: dict[str, Embedded], by: str = "user_id", seed: int = 0
) -> pd.DataFrame:
    """Accuracy on each test split with a 95% interval: `split`, `accuracy`, `low`, `high`, `pairs`, `clusters`.

    Args:
        by: column by which the interval is clustered: "user_id", or "prompt" where users are a few fixed domains.
    """
    rows = []
    for split in _tests(data):
        odds = heads.reward(embedded[split].difference, data[split]["user_id"])
        rows.append(_row(split, ranked_right(odds, 0 * odds), data[split], by, seed))
    return pd.DataFrame(rows)


def few_shot_accuracy(
    heads: Heads,
    data: DatasetDict,
    embedded: dict[str, Embedded],
    shots: Sequence[int],
    by: str = "user_id",
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy on `test_unseen` after fitting each new user's own numbers to k of their pairs: as `accuracy`, with `k`.

    Empty where no user is unseen; a k that some user has not is left out.
    """
    rows = []
    if {"test_unseen", "adapt_unseen"} <= set(data):
        place = {pair: i for i, pair in enumerate(data["adapt_unseen"]["pair_id"])}
        given = pd.Series(data["adapt_unseen"]["user_id"]).value_counts()
        fewest = given.reindex(sorted(set(data["test_unseen"]["user_id"])), fill_value=0).min()
        for k in (k for k in shots if k <= fewest):
            adapted = heads
            if k:
                few = datasets_of_the_kit.few_shot(data, k, seed)
                chosen = [place[pair] for pair in few["pair_id"]]
                adapted = heads.adapt(embedded["adapt_unseen"].difference[chosen], few["user_id"])
            odds = adapted.reward(embedded["test_unseen"].difference, data["test_unseen"]["user_id"])
            rows.append({"k": k} | _row("test_unseen", ranked_right(odds, 0 * odds), data["test_unseen"], by, seed))
    return pd.DataFrame(rows)


def controls(data: DatasetDict, by: str = "user_id", seed: int = 0) -> pd.DataFrame:
    """Length rules and, where it is known, the oracle: as `accuracy`, with `head`, and `features` empty."""
    learned = words(data["train"]["chosen"]) - words(data["train"]["rejected"])
    rows = []
    for split in _tests(data):
        pairs = data[split]
        gap = words(pairs["chosen"]) - words(pairs["rejected"])
        rules = length_rules(data["train"]["user_id"], learned, pairs["user_id"], gap)
        for name, right in zip((LENGTH, USER_LENGTH), rules, strict=True):
            rows.append(_row(split, right, pairs, by, seed) | {"features": "", "head": name})
        if "p_chosen" in pairs.column_names:
            best = oracle_accuracy(pairs["p_chosen"])
            known = {"accuracy": best, "low": best, "high": best}
            rows.append(_row(split, rules[0], pairs, by, seed) | known | {"features": "", "head": "oracle"})
    return pd.DataFrame(rows)


def _tests(data: DatasetDict) -> list[str]:
    return [split for split in ("test_seen", "test_unseen") if split in data]


def _row(split: str, right: np.ndarray, pairs: Dataset, by: str, seed: int) -> dict[str, object]:
    i = cluster_bootstrap(right, [str(value) for value in pairs[by]], seed=seed)
    return {"split": split, "accuracy": i.estimate, "low": i.low, "high": i.high, "pairs": i.n, "clusters": i.clusters}


PATHS = ("customised alone", "general, then customised", "the same with general pairs mixed in")


def trade_off(
    general: tuple[Dataset, Embedded],
    domains: Mapping[str, tuple[Dataset, Embedded]],
    general_test: tuple[Dataset, Embedded],
    domain_tests: Mapping[str, tuple[Dataset, Embedded]],
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy on the domains' own and on general held-out pairs, along each of `PATHS`.

    Args:
        general, general_test: pairs that speak for everybody, with their features.
        domains, domain_tests: each domain's pairs.
        strengths: of the penalty, from far to near.
        seed: of the general pairs that are mixed in (as many as the domain has, or all) and of the intervals.

    Returns:
        Columns `strategy`, `strength` (infinite: the general head, or all rewards 0), `chosen` (whether 5-fold
        cross-validation by prompt on the domains' training pairs prefers it), `custom`, `custom_low`, `custom_high`,
        `general`, `general_low`, `general_high` (95%, clustered by prompt), `custom_pairs`, `general_pairs`. Domains
        have a head each; their pairs are counted together.
    """
    everything = np.concatenate([*general[1], *(part for _, e in domains.values() for part in e)])
    prompts = prompts_of(general[0])
    first = fit_heads("pooled", general[1].difference, ["general"] * len(prompts), prompts, everything.std(0))
    start = torch.tensor(first.pooled)

    def z(features: Embedded) -> torch.Tensor:
        return torch.tensor(features.difference / first.scale, dtype=torch.float64)

    own = {name: z(features) for name, (_, features) in domains.items()}
    drawn = np.random.default_rng(seed).permutation(len(prompts))
    rows = []
    for path in PATHS:
        towards = torch.zeros_like(start) if path == PATHS[0] else start
        for strength in (np.inf, *sorted(strengths, reverse=True)):
            heads, held_out = {}, 0.0
            for name, pairs in own.items():
                more = z(general[1])[drawn[: len(pairs)]] if path == PATHS[2] else pairs[:0]
                heads[name] = _fit(torch.cat([pairs, more]), strength, towards)
                groups = pd.factorize(pd.Series(prompts_of(domains[name][0])))[0]
                for train, held in GroupKFold(5).split(groups, groups=groups):
                    fitted = _fit(torch.cat([pairs[train], more]), strength, towards)
                    held_out += torch.nn.functional.softplus(-pairs[held] @ fitted).sum().item()
            rows.append(
                {"strategy": path, "strength": strength, "nll": held_out}
                | _accuracy("custom", heads, {n: (d, z(e)) for n, (d, e) in domain_tests.items()}, seed)
                | _accuracy("general", heads, dict.fromkeys(heads, (general_test[0], z(general_test[1]))), seed)
            )
    table = pd.DataFrame(rows)
    table["custom_pairs"] = sum(len(pairs) for pairs, _ in domain_tests.values())
    table["general_pairs"] = len(general_test[0])
    table["chosen"] = table.nll == table.groupby("strategy").nll.transform("min")
    return table.drop(columns="nll")


def _fit(z: torch.Tensor, strength: float, towards: torch.Tensor) -> torch.Tensor:
    return towards if np.isinf(strength) else fit_pooled(z, strength, towards)


def _accuracy(kind: str, heads: Mapping, tests: Mapping, seed: int) -> dict[str, float]:
    right, clusters = [], []
    for name, (pairs, z) in tests.items():
        odds = (z @ heads[name]).numpy()
        right.append(ranked_right(odds, 0 * odds))
        clusters += prompts_of(pairs)
    i = cluster_bootstrap(np.concatenate(right), clusters, seed=seed)
    return {kind: i.estimate, f"{kind}_low": i.low, f"{kind}_high": i.high}
