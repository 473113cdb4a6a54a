"""Every figure of the notebooks: file name -> (stage, its table, the function that draws it). `prlhf figures` makes
them again from the tables, without a model. A figure is named as its table, where `TABLES` does not say otherwise."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from prlhf_kit.figures import data, decoding, evaluation, rewards, users

STAGES: dict[str, dict[str, Callable[[pd.DataFrame], Figure]]] = {
    "01_data_preparation": {
        "tastes": data.tastes,
        "users_and_pairs": data.users_and_pairs,
        "lengths": data.lengths,
        "agreement": data.agreement,
        "response_map": data.response_map,
        "word_clouds": data.word_clouds,
    },
    "02_reward_models": {"domain_heatmap": rewards.domain_heatmap, "trade_off": rewards.trade_off},
    "02b_feature_heads": {
        "reward_heads": rewards.heads,
        "reward_new_users": rewards.new_users,
        "questions_asked": users.adaptation,
        "head_trade_off": rewards.trade_off,
    },
    "03_pdpo_training": {"learning_curves": users.learning_curves, "similarity": users.similarity},
    "04_pad_decoding": {
        "reward_by_weight": decoding.reward_by_weight,
        "steering_methods": decoding.steering_methods,
    },
    "04b_persrm": {"persrm_by_weight": decoding.reward_by_weight, "two_preferences": decoding.two_preferences},
    "05_evaluation": {
        "accuracy_by_method": users.accuracy_by_method,
        "accuracy_by_user": users.accuracy_by_user,
        "policy_accuracy": evaluation.policy_accuracy,
    },
    "05b_answers_and_judges": {"swapped": users.swapped_utility, "win_matrix": evaluation.win_matrix},
    "06_new_users": {"adaptation": users.adaptation},
    "08_community_context": {"four_way": evaluation.four_way, "by_context": evaluation.by_context},
    "08b_context_answers": {"community_win_rates": evaluation.community_win_rates},
    "09_user_models": {"pairs_learned": users.pairs_learned, "user_map": users.user_map},
    "bench": {"bench": evaluation.bench},
    "10_real_people": {"people_map": users.user_map, "people": users.people, "new_people": users.adaptation},
}
TABLES = {"users_and_pairs": "lengths", "bench": "table"}
FIGURES = {
    name: (stage, TABLES.get(name, name), draw) for stage, drawn in STAGES.items() for name, draw in drawn.items()
}
