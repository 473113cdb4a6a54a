"""The other figures look as they did, see `test_evaluation_figures.py`; what they show is tested elsewhere."""

import numpy as np
import pandas as pd
import pytest

from figures.test_evaluation import looks
from prlhf_kit.commands import FIGURES
from prlhf_kit.figures.context import FIGURES as CONTEXT
from prlhf_kit.figures.evaluation import FIGURES as EVALUATION

RNG = np.random.default_rng(0)
AROUND = {"low": [0.4, 0.5, 0.3, 0.6], "high": [0.8, 0.9, 0.7, 0.95]}
INTERVALS = {"value": [0.6, 0.7, 0.5, 0.8], **AROUND}
# strategies, points, and the accuracy on custom and on general pairs
TRADE_OFF = pd.DataFrame(
    [
        (strategy, point, of, value, 0.4, 0.8 if of == "custom" else 0.75)
        for strategy, point, *both in (
            ("GRFT, CRFT", 0.0, 0.5, 0.7),
            ("GRFT, CRFT", 1.0, 0.7, 0.6),
            ("base, CRFT", 0.0, 0.5, 0.5),
            ("base, CRFT", 1.0, 0.6, 0.45),
        )
        for of, value in zip(("custom", "general"), both, strict=True)
    ],
    columns=["strategy", "point", "of", "value", "low", "high"],
)
GAINS = {
    "gain": [0.0, 0.5, 1.2, 0.8], "low": [0.0, 0.1, 0.6, -0.2], "high": [0.0, 1.0, 1.9, 1.9],
    "logp": [-0.6, -0.7, -0.8, -1.1], "changed": [0.0, 0.1, 0.2, 0.4], "asked": [1.0, 0.5, 0.25, 0.1],
}  # fmt: skip
WORDS = {"split": ["train"] * 8, "user_id": list("aaaabbbb"), "chosen_words": [*range(8)], "rejected_words": [4] * 8}
TABLES = {
    "tastes": pd.DataFrame({"length": [1.0, -1.0], "lists": [0.0, 0.5]}, index=["a", "b"]),
    "users_and_pairs": pd.DataFrame(WORDS),
    "lengths": pd.DataFrame(WORDS),
    "agreement": pd.DataFrame({"user_a": list("aabb"), "user_b": list("abab"), "agreement": [1, 0.3, 0.3, 1],
                               "shared": [9, 4, 4, 8]}),
    "response_map": pd.DataFrame({"group": ["g", "h"] * 10, "x": RNG.normal(size=20), "y": RNG.normal(size=20)}),
    "word_clouds": pd.DataFrame({"group": ["g", "g", "h"], "word": ["tea", "rain", "wind"], "weight": [3.0, 1.0, 2.0]}),
    "learning_curves": pd.DataFrame({"step": [1, 2, 3] * 2, "method": ["P-DPO"] * 3 + ["vanilla DPO"] * 3,
                                     "loss": [0.7, 0.6, 0.4, 0.7, 0.69, 0.7], "accuracy": [0.5, 0.6, 0.8] * 2}),
    "similarity": pd.DataFrame([[1.0, -0.4], [-0.4, 1.0]], index=["a", "b"], columns=["a", "b"]),
    "swapped": pd.DataFrame({"judge": list("aabb"), "author": list("abab"), "utility": [3.0, 1.0, 0.0, 4.0]}),
    "pairs_learned": pd.DataFrame({"user_model": ["individual"] * 3 + ["oracle"], "k": [5, 10, 20, 20], **INTERVALS}),
    "user_map": pd.DataFrame({"user_model": "individual", "user_id": list("abcd"), "group": list("gghh"),
                              "x": [0.0, 0.2, 1.0, 1.1], "y": [0.0, 0.1, 1.0, 0.8]}),
    "adaptation": pd.DataFrame({"k": [0, 1, 2, 4], "method": ["generic row"] + ["nearest"] * 3, **INTERVALS}),
    "reward_stages": pd.DataFrame({"kind": ["domain", "domain", "general"], "name": ["academy", "poetry", "helpful"]}),
    "reward_new_users": pd.DataFrame({"method": ["pooled, x"] + ["low_rank, x"] * 3, "k": [0, 1, 2, 4], **INTERVALS}),
    "reward_word_clouds": pd.DataFrame({"group": ["g"], "word": ["tea"], "weight": [1.0]}),
    "reward_curves": pd.DataFrame({"model": ["grft"] * 2 + ["crft"] * 2, "set": "helpful", "step": [0, 9] * 2,
                                   "pairs": 24, **INTERVALS}),
    "domain_heatmap": pd.DataFrame({"model": list("aabb"), "pairs_of": list("abab"), "n": 24, **INTERVALS}),
    "trade_off": TRADE_OFF,
    "reliability": pd.DataFrame({"model": ["a"] * 4, "confidence": [0.55, 0.65, 0.75, 0.9], "pairs": 9, **INTERVALS}),
    "reward_heads": pd.DataFrame({"split": "test_seen", "features": ["x", "x", "y", ""],
                                  "method": ["pooled", "per_user", "pooled", "oracle"], **INTERVALS}),
    "visible": pd.DataFrame({"features": ["x", "x"], "attribute": ["length", "lists"], "r2": [0.5, -0.1]}),
    "head_trade_off": TRADE_OFF.assign(n=9, chosen=TRADE_OFF.point == 1),
    "reward_by_weight": pd.DataFrame({"guide": ["PAD"] * 4, "weight": [0.0, 0.5, 1.0, 3.0], **GAINS}),
    "steering_methods": pd.DataFrame({"method": ["base", "prompt", "PAD", "ARGS"], **GAINS}),
    "two_preferences": pd.DataFrame({"towards": ["a", "a", "both", "both"], "user_id": list("abab"), **GAINS}),
    "asked_seldom": pd.DataFrame({"asks": ["always", "every 2", "every 4", "unsure"], "slower": [1.7, 2.0, 1.8, 2.5],
                                  **GAINS}),
}  # fmt: skip


@looks
@pytest.mark.parametrize("name", list(TABLES))
def test_picture(name):
    _, _, draw = FIGURES[name]
    return draw(TABLES[name])


def test_every_figure_has_a_picture():
    assert set(TABLES) | set(EVALUATION) | set(CONTEXT) | {"accuracy_by_method", "accuracy_by_user"} == set(FIGURES)
