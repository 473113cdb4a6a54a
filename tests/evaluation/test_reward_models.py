"""The trade-off of reward models, against values worked out by hand."""

import pandas as pd

from prlhf_kit.evaluation import reward_models


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
    lists = table[:2].assign(right=[0.0, 3.0], pairs=[1, 3])
    assert reward_models.trade_off(lists, []).value.tolist() == [0, 1, 1, 1]
