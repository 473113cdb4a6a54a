"""The trade-off of reward models and of heads, against values worked out by hand."""

import numpy as np
import pandas as pd
from datasets import Dataset

from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import heads, reward_models
from prlhf_kit.models.features import Embedded


def test_trade_off_by_hand():
    """Two domains' models, trained for 2 and 4 steps; at the end all is right, at the start half of it."""
    rows = [
        (step, name, f"prompt {row}", float(row < 2 or step > 0), 1, domain)
        for domain, steps in (("own", (0, 2)), ("other", (0, 4)))
        for step in steps
        for name in (domain, "general")
        for row in range(4)
    ]
    table = pd.DataFrame(rows, columns=["step", "set", "prompt", "right", "pairs", "domain"]).assign(strategy="s")
    found = reward_models.trade_off(table, ["general"]).groupby(["point", "of"]).value.agg(["mean", "size"])
    assert found.to_numpy().tolist() == [[0.5, 8], [0.5, 8], [1, 8], [1, 8]]
    lists = pd.DataFrame({"set": "s", "step": 0, "prompt": ["a", "b"], "right": [0.0, 3.0], "pairs": [1, 3]})
    assert reward_models.pair_by_pair(lists).value.tolist() == [0, 1, 1, 1]


def two_tastes(seed=0):
    """Everybody likes the first feature; a domain has less than 20 pairs, likes the first and not the second."""
    rng = np.random.default_rng(seed)

    def pairs(n, weights):
        difference = rng.normal(size=(n, 3))
        difference[difference @ weights < 0] *= -1
        rows = [record(f"p{i}", "a", f"Prompt {i}?", "Yes.", "No.") for i in range(n)]
        return Dataset.from_list(rows), Embedded(difference, np.zeros((n, 3)))

    everybody, own = np.array([1.0, 0, 0]), np.array([1.0, -1, 0])
    return pairs(200, everybody), {"own": pairs(16, own)}, pairs(150, everybody), {"own": pairs(150, own)}


def test_a_head_that_starts_from_the_general_one_keeps_more_of_it():
    table = heads.trade_off(*two_tastes(), strengths=(0.01, 10.0))
    assert set(table.n) == {150}
    wide = table.pivot(index=["strategy", "strength", "chosen"], columns="of", values="value").reset_index()
    wide = wide.sort_values("strength", ascending=False).set_index("strategy")
    alone, after, mixed = (wide.loc[path] for path in heads.PATHS)
    assert after.general.iloc[0] > 0.9 > after.custom.iloc[0]  # the general head itself
    assert alone.general.iloc[0] == alone.custom.iloc[0] == 0.5  # all rewards 0
    assert after.custom.iloc[-1] > after.custom.iloc[0]
    assert after.general[after.chosen].item() > alone.general[alone.chosen].item()
    assert mixed.general.iloc[-1] >= after.general.iloc[-1]
    assert wide.chosen.sum() == 3
