"""Do judges agree?"""

from __future__ import annotations

import krippendorff
import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from prlhf_kit.evaluation.statistics import around, drawn_weights


def judge_agreement(judgements: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far judges agree on the same pairs, beyond chance: Cohen's kappa (1960, scikit-learn) of every two judges and
    Krippendorff's alpha (nominal, by the library `krippendorff`) of all of them, over the verdicts a, b and tie.

    Returns:
        Columns `judges`, `measure`, `value` with `low`, `high` (95%, users drawn anew, and prompts that they share;
        NaN where there is only one verdict to agree on), `same` (share of equal verdicts), `n` (pairs that two judges
        at least have judged).
    """
    keys = ["user_id", "prompt", "system_a", "system_b"]
    table = judgements.pivot(index=keys, columns="judge", values="preference")
    codes = table.apply(lambda column: column.map({"a": 0, "tie": 1, "b": 2})).astype(float)
    asked = [(one, other) for i, one in enumerate(codes) for other in list(codes)[i + 1 :]]
    plans = [(f"{one} / {other}", "Cohen's kappa", _kappa, [one, other]) for one, other in asked]
    if len(asked):
        plans.append((" / ".join(map(str, codes)), "Krippendorff's alpha", _alpha, list(codes)))
    rows = []
    for name, label, measure, judges in plans:
        shared = codes[judges].dropna(thresh=2)
        if shared.empty:
            continue
        values = shared.to_numpy()
        draws, clusters = drawn_weights(
            shared.index.get_level_values("user_id"), shared.index.get_level_values("prompt"), resamples, seed
        )
        # a drawn pair counts as often as it was drawn
        found = [measure(values.repeat(weights.astype(int), axis=0)) for weights in draws]
        low, high = np.clip(around(measure(values), found, clusters), -1, 1)
        same = (shared.nunique(axis=1) == 1).mean()
        rows.append((name, label, measure(values), low, high, same, len(shared)))
    return pd.DataFrame(rows, columns=["judges", "measure", "value", "low", "high", "same", "n"])


def _kappa(codes: np.ndarray) -> float:
    return cohen_kappa_score(*codes.T) if len(np.unique(codes)) > 1 else np.nan


def _alpha(codes: np.ndarray) -> float:
    varied = len(np.unique(codes[~np.isnan(codes)])) > 1
    return krippendorff.alpha(codes.T, level_of_measurement="nominal") if varied else np.nan
