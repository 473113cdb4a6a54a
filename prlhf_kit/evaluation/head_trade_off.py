"""DSP's question on frozen features: how much general ability does customising cost, with all pairs there are?

A general head is fitted first. A domain's head is then fitted to its own pairs and held to the general one (or to 0) by
a penalty; the weaker the penalty, the farther it goes, as with more training. Bradley-Terry, linear in the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.model_selection import GroupKFold

from prlhf_kit.evaluation.head_comparison import Embedded
from prlhf_kit.evaluation.metrics import ranked_right
from prlhf_kit.evaluation.reward_analysis import prompts_of
from prlhf_kit.evaluation.statistics import cluster_bootstrap
from prlhf_kit.training.heads import STRENGTHS, fit_heads, fit_pooled

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
