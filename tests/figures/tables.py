"""A small table for every figure, by the figure's name."""

import numpy as np
import pandas as pd

from prlhf_kit.evaluation import context

RNG = np.random.default_rng(0)
INTERVALS = {"value": [0.6, 0.7, 0.5, 0.8], "low": [0.4, 0.5, 0.3, 0.6], "high": [0.8, 0.9, 0.7, 0.95]}
GAINS = {
    "gain": [0.0, 0.5, 1.2, 0.8],
    "low": [0.0, 0.1, 0.6, -0.2],
    "high": [0.0, 1.0, 1.9, 1.9],
    "logp": [-0.6, -0.7, -0.8, -1.1],
    "changed": [0.0, 0.1, 0.2, 0.4],
}
WORDS = {"split": "train", "user_id": list("aaaabbbb"), "chosen_words": [*range(8)], "rejected_words": [4] * 8}
COMMUNITIES = ["askculinary", "AskHistorians and historiography", "ExplainLikeImFive", "legaladvice (United Kingdom)"]


def frame(names, *columns, **more):
    """The columns of these names; a text is its letters."""
    return pd.DataFrame(dict(zip(names.split(), map(list, columns), strict=True)) | more)


def table(columns, *rows, width=0.06, **more):
    """Rows of the columns, the last of them a value with an interval."""
    found = pd.DataFrame(rows, columns=columns.split())
    value = found.iloc[:, -1]
    return found.assign(low=value - width, high=value + width, **more)


def four_ways(*datasets):
    methods = ["untrained", *reversed(context.FOUR_WAYS), "length rule per user"]
    rows = [(d, m, 0.7 - 0.05 * i + 0.03 * j) for j, d in enumerate(datasets) for i, m in enumerate(methods)]
    return table("dataset method value", *rows, n=342, users=5)


OF_CONTEXTS = [
    (method, context, 0.5 + 0.1 * i - 0.05 * j)
    for i, method in enumerate(["SFT", "DPO", "P-DPO"])
    for j, context in enumerate(("true", "none", "random", "shuffled"))
]
TRADE_OFF = table(
    "strategy point of value",
    *[("GRFT, CRFT", 0.0, "custom", 0.5), ("GRFT, CRFT", 0.0, "general", 0.7)],
    *[("GRFT, CRFT", 1.0, "custom", 0.7), ("GRFT, CRFT", 1.0, "general", 0.6)],
    *[("base, CRFT", 0.0, "custom", 0.55), ("base, CRFT", 0.0, "general", 0.52)],
    *[("base, CRFT", 1.0, "custom", 0.62), ("base, CRFT", 1.0, "general", 0.45)],
    n=9,
)
WIN_RATES = table(
    "judge system_a system_b p_holm win_rate",
    *[("oracle", "P-DPO, user", "vanilla DPO", 0.01, 0.8), ("oracle", "P-DPO, user", "untrained", 0.3, 0.6)],
    ("longer", "P-DPO, user", "vanilla DPO", np.nan, 0.3),
)
BY_COMMUNITY = [
    ("oracle", *pair, c, 0.01 if i < 2 else 0.4, 0.9 - 0.12 * i - 0.1 * j)
    for j, pair in enumerate([("contextual", "plain"), ("right context", "random context")])
    for i, c in enumerate([*COMMUNITIES, "all"])
]
TABLES = {
    "tastes": pd.DataFrame({"length": [1.0, -1.0], "lists": [0.0, 0.5]}, index=["a", "b"]),
    "users_and_pairs": pd.DataFrame(WORDS),
    "lengths": pd.DataFrame(WORDS),
    "agreement": frame("user_a user_b agreement shared", "aabb", "abab", [1, 0.3, 0.3, 1], [9, 4, 4, 8]),
    "response_map": pd.DataFrame({"group": ["g", "h"] * 10, "x": RNG.normal(size=20), "y": RNG.normal(size=20)}),
    "word_clouds": frame("group word weight", "ggh", ["tea", "rain", "wind"], [3.0, 1.0, 2.0]),
    "learning_curves": frame(
        "step loss accuracy",
        [1, 2, 3] * 2,
        [0.7, 0.6, 0.4, 0.7, 0.69, 0.7],
        [0.5, 0.6, 0.8] * 2,
        method=["P-DPO"] * 3 + ["vanilla DPO"] * 3,
    ),
    "similarity": pd.DataFrame([[1.0, -0.4], [-0.4, 1.0]], index=["a", "b"], columns=["a", "b"]),
    "swapped": frame("judge author utility", "aabb", "abab", [3.0, 1.0, 0.0, 4.0]),
    "accuracy_by_method": table(
        "method value", ("P-DPO, user", 0.8), ("vanilla DPO", 0.55), ("oracle", 0.9), split="test_seen"
    ),
    "accuracy_by_user": table("user_id value", ("b", 0.2), ("a", 0.6), method="m"),
    "adaptation": frame("k method", [0, 1, 2, 4], ["generic row"] + ["nearest"] * 3, **INTERVALS),
    "pairs_learned": frame("k user_model", [5, 10, 20, np.nan], ["individual"] * 3 + ["oracle"], **INTERVALS),
    "user_map": frame("user_id group x y", "abcd", "gghh", [0, 0.2, 1, 1.1], [0, 0.1, 1, 0.8], user_model="individual"),
    "reward_new_users": frame("k method", [0, 1, 2, 4], ["pooled, x"] + ["low_rank, x"] * 3, **INTERVALS),
    "questions_asked": frame("k method", [0, 1] * 2, ["random, x"] * 2 + ["most informative, x"] * 2, **INTERVALS),
    "domain_heatmap": frame("model pairs_of", "aabb", "abab", n=24, **INTERVALS),
    "trade_off": TRADE_OFF,
    "reward_heads": frame(
        "features method", [*"xxy", ""], ["pooled", "per_user", "pooled", "oracle"], split="s", **INTERVALS
    ),
    "head_trade_off": TRADE_OFF.assign(chosen=TRADE_OFF.point == 1),
    "reward_by_weight": frame("weight", [0.0, 0.5, 1.0, 3.0], guide="PAD", **GAINS),
    "persrm_by_weight": frame("weight", [0.0, 0.5, 1.0, 3.0], guide="PAD", **GAINS),
    "steering_methods": frame("method", ["base", "prompt", "PAD", "ARGS"], **GAINS),
    "two_preferences": frame("towards user_id", ["a", "a", "both", "both"], "abab", **GAINS),
    "win_matrix": WIN_RATES,
    "policy_accuracy": table(
        "weight of value",
        *[(0.0, "steered model", 0.5), (1.0, "steered model", 0.6)],
        *[(0.0, "reward alone", 0.9), (1.0, "reward alone", 0.9)],
        method="PAD",
    ),
    "four_way": four_ways("dsp", "hh_relabelled", "prefeval"),
    "by_context": table("method context value", *OF_CONTEXTS, n=171),
    "community_win_rates": table("judge system_a system_b community p_holm win_rate", *BY_COMMUNITY, width=0.1),
    "bench": table(
        "dataset split method k value",
        *[(d, "test_seen", m, np.nan, 0.5 + 0.1 * i) for d in "ab" for i, m in enumerate(("length rule", "head"))],
        *[("a", "test_unseen", "head", k, 0.5 + 0.02 * k) for k in (0, 2, 8)],
        *[(d, "test_unseen", "untrained", 0, 0.47) for d in "ac"],
    ),
    "people": frame("user_id vanilla P-DPO group", "abcd", [0.5, 0.5, 0.4, 1], [0.7, 0.9, 0.6, 0], "gghh"),
}
TABLES["people"] = TABLES["people"].rename(columns={"vanilla": "vanilla DPO", "P-DPO": "P-DPO, user"})
TABLES |= {"people_map": TABLES["user_map"], "new_people": TABLES["adaptation"]}
