"""prlhf_kit: train, steer and measure language models that answer each person as that person prefers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prlhf_kit import data
    from prlhf_kit.conditioning import ConditioningError, condition
    from prlhf_kit.data import SchemaError
    from prlhf_kit.data.context import Contexts, with_context
    from prlhf_kit.decoding.answers import GuidedAnswer
    from prlhf_kit.decoding.generate import DecodingError, generate
    from prlhf_kit.decoding.guided import GuidedDecoder
    from prlhf_kit.decoding.guides import ARGS, PAD, Vocabulary
    from prlhf_kit.decoding.respond import respond
    from prlhf_kit.decoding.vllm_engine import load_vllm
    from prlhf_kit.evaluation.judges import Oracle, RewardJudge, judged
    from prlhf_kit.evaluation.llm_judge import LLMJudge
    from prlhf_kit.evaluation.outside import read_answers
    from prlhf_kit.models.embedded import EMBEDDED, ModelError
    from prlhf_kit.models.hub import load_model, load_tokenizer
    from prlhf_kit.reward_model import load_reward_model, new_reward_model
    from prlhf_kit.rewards import best_of_n, load_reward, preference
    from prlhf_kit.saving import load_personalized, reference_of, save_personalized
    from prlhf_kit.training.adapt import Adapted, adapt, add_users, forget_users, merge_users
    from prlhf_kit.training.config import PersonalizedDPOConfig
    from prlhf_kit.training.fit import fit, last_checkpoint
    from prlhf_kit.training.pdpo import FROZEN_BASE, PersonalizedDPOTrainer
    from prlhf_kit.training.persrm import PersRMRecipe, load_persrm, train_persrm
    from prlhf_kit.training.reward import PersonalizedRewardTrainer
    from prlhf_kit.training.reward_config import PersonalizedRewardConfig
    from prlhf_kit.training.sft import SFTRecipe, train_sft
    from prlhf_kit.users import (
        GENERIC,
        ClusterUserModel,
        IndividualUserModel,
        LowRankUserModel,
        UserIndex,
        UserModel,
    )

# Loaded on first use: torch and TRL take seconds to import, which `prlhf --help` should not.
_WHERE = {
    "conditioning": ("ConditioningError", "condition"),
    "data": ("SchemaError",),
    "data.context": ("Contexts", "with_context"),
    "decoding.generate": ("DecodingError", "generate"),
    "decoding.answers": ("GuidedAnswer",),
    "decoding.guided": ("GuidedDecoder",),
    "decoding.guides": ("ARGS", "PAD", "Vocabulary"),
    "decoding.respond": ("respond",),
    "decoding.vllm_engine": ("load_vllm",),
    "evaluation.judges": ("Oracle", "RewardJudge", "judged"),
    "evaluation.llm_judge": ("LLMJudge",),
    "evaluation.outside": ("read_answers",),
    "models.embedded": ("EMBEDDED", "ModelError"),
    "models.hub": ("load_model", "load_tokenizer"),
    "reward_model": ("load_reward_model", "new_reward_model"),
    "rewards": ("best_of_n", "load_reward", "preference"),
    "saving": ("load_personalized", "reference_of", "save_personalized"),
    "training.adapt": ("Adapted", "adapt", "add_users", "forget_users", "merge_users"),
    "training.fit": ("fit", "last_checkpoint"),
    "training.config": ("PersonalizedDPOConfig",),
    "training.pdpo": ("FROZEN_BASE", "PersonalizedDPOTrainer"),
    "training.persrm": ("PersRMRecipe", "load_persrm", "train_persrm"),
    "training.reward": ("PersonalizedRewardTrainer",),
    "training.reward_config": ("PersonalizedRewardConfig",),
    "training.sft": ("SFTRecipe", "train_sft"),
    "users": (
        "GENERIC",
        "ClusterUserModel",
        "IndividualUserModel",
        "LowRankUserModel",
        "UserIndex",
        "UserModel",
    ),
}

__all__ = [
    "ARGS",
    "EMBEDDED",
    "FROZEN_BASE",
    "GENERIC",
    "PAD",
    "Adapted",
    "ClusterUserModel",
    "ConditioningError",
    "Contexts",
    "DecodingError",
    "GuidedAnswer",
    "GuidedDecoder",
    "IndividualUserModel",
    "LLMJudge",
    "LowRankUserModel",
    "ModelError",
    "Oracle",
    "PersRMRecipe",
    "PersonalizedDPOConfig",
    "PersonalizedDPOTrainer",
    "PersonalizedRewardConfig",
    "PersonalizedRewardTrainer",
    "RewardJudge",
    "SFTRecipe",
    "SchemaError",
    "UserIndex",
    "UserModel",
    "Vocabulary",
    "adapt",
    "add_users",
    "best_of_n",
    "condition",
    "data",
    "fit",
    "forget_users",
    "generate",
    "judged",
    "last_checkpoint",
    "load_model",
    "load_personalized",
    "load_persrm",
    "load_reward",
    "load_reward_model",
    "load_tokenizer",
    "load_vllm",
    "merge_users",
    "new_reward_model",
    "preference",
    "read_answers",
    "reference_of",
    "respond",
    "save_personalized",
    "train_persrm",
    "train_sft",
    "with_context",
]


def __getattr__(name: str):
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"prlhf_kit.{module}"), name)
    if name in ("conditioning", "data", "models", "users", "votes", "widgets"):
        return importlib.import_module(f"prlhf_kit.{name}")
    raise AttributeError(f"module 'prlhf_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
