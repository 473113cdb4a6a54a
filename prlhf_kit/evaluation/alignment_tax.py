"""Personalisation tax: what a personalised model loses on preferences that everybody shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from datasets import Dataset

from prlhf_kit.evaluation.statistics import cluster_bootstrap, detectable, holm, permutation_test


def alignment_tax(
    models: Mapping[str, Callable[[Dataset], np.ndarray]], sets: Mapping[str, Dataset], untrained: str, seed: int = 0
) -> pd.DataFrame:
    """Accuracy on general sets (helpful, harmless, WebGPT, RewardBench, ...) and its change, paired by pair.

    Args:
        models: name -> which pairs of a set it ranks right (1, 1/2, 0), `[n]`: a language model by `accuracy.likelier`
            of `score_pairs`, a reward model by `ranked_right` of its rewards. Compare like with like.
        sets: name -> preference pairs (`chosen`, `rejected`, `prompt`).
        untrained: the one of `models` that the others are compared with.

    Returns:
        For each set and other model: `set`, `model`, `accuracy` with `accuracy_low`, `accuracy_high`, `untrained` (its
        accuracy) with `untrained_low`, `untrained_high`, `change` with `low`, `high` (95%, clustered by prompt), `p`
        (permutation test), `p_holm` (corrected over the table), `detectable`, `n` (pairs), `prompts`.
    """
    if untrained not in models:
        raise ValueError(f"untrained={untrained!r} is none of the models: {', '.join(models)}.")
    rows = []
    for name, pairs in sets.items():
        if not len(pairs):
            raise ValueError(f"the general set {name!r} has no pair left. Raise the limit of its texts' length.")
        prompts = [str(prompt) for prompt in pairs["prompt"]]
        right = {model: np.asarray(ranks(pairs), float) for model, ranks in models.items()}
        base = cluster_bootstrap(right[untrained], prompts, seed=seed)
        for model in models:
            if model == untrained:
                continue
            own = cluster_bootstrap(right[model], prompts, seed=seed)
            gap = right[model] - right[untrained]
            i = cluster_bootstrap(gap, prompts, seed=seed)
            p = permutation_test(gap, prompts, seed=seed)
            rows.append((name, model, *own[:3], *base[:3], *i[:3], p, detectable(gap, prompts), i.n, i.clusters))
    columns = [
        "set",
        "model",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "untrained",
        "untrained_low",
        "untrained_high",
        "change",
        "low",
        "high",
        "p",
        "detectable",
        "n",
        "prompts",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(columns.index("p") + 1, "p_holm", holm(table.p.tolist()))
    return table
