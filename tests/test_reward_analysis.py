"""Calibration, length controls, curves and figures of reward models, against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from matplotlib.figure import Figure

from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import heads, reward_models
from prlhf_kit.evaluation.heads import Embedded
from prlhf_kit.figures import rewards as reward_figures


def log_odds(p):
    return math.log(p / (1 - p))


def test_calibration_by_hand():
    odds = [log_odds(0.8)] * 4 + [-log_odds(0.8), 0.0]
    table, error = reward_models.calibration(odds, bins=5)
    assert table.confidence.tolist() == pytest.approx([0.5, 0.8])
    assert table.accuracy.tolist() == pytest.approx([0.5, 0.8])  # a tie is right by half
    assert table.pairs.tolist() == [1, 5]
    assert error == pytest.approx(0)
    sure, error = reward_models.calibration([50.0, -50.0])
    assert sure.accuracy.tolist() == [0.5]
    assert error == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one pair"):
        reward_models.calibration([])


def test_length_matched_and_length_control_by_hand():
    def pairs(*lengths):
        return Dataset.from_list([record(f"p{i}", "a", "Q?", "w " * c, "w " * r) for i, (c, r) in enumerate(lengths)])

    test = pairs((10, 9), (10, 8), (5, 20), (6, 6))
    assert reward_models.length_matched(test).tolist() == [True, False, False, True]
    scored = pd.DataFrame({"model": "m", "right": [0.0, 1.0, 1.0, 1.0], "matched": [True, False, False, True]})
    found = reward_models.length_control(scored, {"m": pairs((9, 3), (8, 2))}, {"m": test}).set_index(
        ["pairs_used", "method"]
    )
    assert found.accuracy.to_dict() == {
        ("all", "reward model"): 0.75, ("all", "length rule"): 0.625,
        ("length-matched", "reward model"): 0.5, ("length-matched", "length rule"): 0.75,
    }  # fmt: skip
    assert found.pairs.tolist() == [4, 4, 2, 2]


def evaluations():
    """Two domains' models, trained for 2 and 4 steps; at the end all is right, at the start half of it."""
    rows = [
        (step, name, row, f"prompt {row}", float(row < 2 or step > 0), 1, domain)
        for domain, steps in (("own", (0, 2)), ("other", (0, 4)))
        for step in steps
        for name in (domain, "general")
        for row in range(4)
    ]
    table = pd.DataFrame(rows, columns=["step", "set", "row", "prompt", "right", "pairs", "domain"])
    return table.assign(model=table.domain, strategy="s")


def test_curves_and_trade_off_by_hand():
    curve = reward_models.curves(evaluations(), by=["model"])
    assert curve.accuracy.tolist() == [0.5, 0.5, 1.0, 1.0] * 2
    assert (curve.low <= curve.accuracy).all()
    assert (curve.accuracy <= curve.high).all()
    trade = reward_models.trade_off(evaluations(), ["general"])
    assert trade[["point", "custom", "general", "pairs"]].to_numpy().tolist() == [[0, 0.5, 0.5, 16], [1, 1.0, 1.0, 16]]
    lists = pd.DataFrame({"set": "s", "step": 0, "prompt": ["a", "b"], "right": [0.0, 3.0], "pairs": [1, 3]})
    assert reward_models.curves(lists)[["accuracy", "pairs"]].to_numpy().tolist() == [[0.75, 4]]


def test_what_features_can_see():
    rng = np.random.default_rng(0)
    texts = [("word " * rng.integers(1, 60)).strip() + "?" * rng.integers(0, 4) for _ in range(120)]
    length = np.log1p([[len(t.split())] for t in texts])
    found = reward_models.visible(np.hstack([length, rng.normal(size=(120, 3))]), texts).set_index("attribute").r2
    assert found["length"] > 0.99
    assert found["questions"] < 0.2
    assert np.isnan(found["lists"])  # no text has any: nothing to be seen


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
    table = heads.trade_off(*two_tastes(), strengths=(0.01, 0.1, 1.0, 10.0)).set_index("strategy")
    alone, after, mixed = (table.loc[path] for path in heads.PATHS)
    assert after.general.iloc[0] > 0.9 > after.custom.iloc[0]  # the general head itself
    assert alone.general.iloc[0] == alone.custom.iloc[0] == 0.5  # all rewards 0
    assert after.custom.iloc[-1] > after.custom.iloc[0]
    assert after.general[after.chosen].item() > alone.general[alone.chosen].item()
    assert mixed.general.iloc[-1] >= after.general.iloc[-1]
    assert table.chosen.sum() == 3
    assert set(table.custom_pairs) == set(table.general_pairs) == {150}


def test_every_figure_is_drawn():
    reliability, _ = reward_models.calibration(np.linspace(-2, 3, 40), 4)
    tables = {
        "curves": reward_models.curves(evaluations(), by=["model"]),
        "domain_heatmap": pd.DataFrame(
            {"model": list("aabb"), "pairs_of": list("abab"), "accuracy": 0.5, "low": 0.2, "high": 0.8, "pairs": 4}
        ),
        "trade_off": reward_models.trade_off(evaluations(), ["general"]),
        "reliability": reliability.assign(model="m"),
        "reward_heads": pd.DataFrame(
            {"split": "test_seen", "features": ["x", ""], "head": ["pooled", "oracle"], "accuracy": [0.5, 1.0],
             "low": [0.4, 1.0], "high": [0.6, 1.0]}
        ),
        "head_trade_off": heads.trade_off(*two_tastes(), strengths=(0.1, 10.0)),
        "visible": pd.DataFrame({"features": "x", "attribute": ["length", "lists"], "r2": [0.5, -0.1]}),
        "new_users": pd.DataFrame(
            {"method": ["pooled, x", "low_rank, x", "mixture, x"], "k": 1, "accuracy": 0.5, "low": 0.4, "high": 0.6}
        ),
        "typical_words": pd.DataFrame({"group": ["g", "g"], "word": ["tea", "rain"], "weight": [2.0, 1.0]}),
        "reward_stages": pd.DataFrame(
            {"kind": ["domain"] * 9 + ["general"] * 2,
             "name": [*(f"domain {i}" for i in range(9)), "helpful", "harmless"]}
        ),
    }  # fmt: skip
    assert {table for _, table, _ in reward_figures.FIGURES.values()} == set(tables)
    drawn = {table: draw(tables[table]) for _, table, draw in reward_figures.FIGURES.values()}
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    assert all(drawn[name].axes[0].get_xlabel() for name in set(drawn) - {"typical_words", "reward_stages"})
    assert {line.get_label() for line in drawn["new_users"].axes[0].containers} == {"pooled, x", "low_rank, x"}
    assert "... 9 in all" in {text.get_text() for text in drawn["reward_stages"].axes[0].texts}
