"""DSP's three stages as recipes: base LM -> general (GRFT) -> customised reward fine-tuning (CRFT).

Which stages there are, which of them imitates the preferred responses (LM loss), and whether general pairs are mixed
into the last one, is a `Strategy`; one training is a `RewardRecipe` (Cheng et al. 2023, arXiv 2309.03126).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from peft import LoraConfig
from transformers import EarlyStoppingCallback

from prlhf_kit.conditioning import condition
from prlhf_kit.models import load_tokenizer
from prlhf_kit.reward_model import REWARD_FILE, load_reward_model, new_reward_model
from prlhf_kit.training.fit import fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardConfig, PersonalizedRewardTrainer
from prlhf_kit.training.reward_data import encode
from prlhf_kit.users import USER_MODELS, UserIndex


@dataclass(frozen=True)
class Strategy:
    """How a customised reward model comes about.

    Args:
        general_first: CRFT goes on from GRFT; False: from the base LM.
        grft_lm, crft_lm: `lm_loss_coeff` of the two stages; DSP: 0 or 0.1.
        general_ratio: general pairs mixed into CRFT, for each customised pair.
    """

    general_first: bool = True
    grft_lm: float = 0.0
    crft_lm: float = 0.0
    general_ratio: float = 0.0


STRATEGIES = {
    "base, CRFT": Strategy(general_first=False),
    "base, CRFT + LM": Strategy(general_first=False, crft_lm=0.1),
    "GRFT, CRFT": Strategy(),
    "GRFT, CRFT + LM": Strategy(crft_lm=0.1),
    "GRFT + LM, CRFT": Strategy(grft_lm=0.1),
    "GRFT + LM, CRFT + LM": Strategy(grft_lm=0.1, crft_lm=0.1),
    "GRFT, CRFT with general pairs": Strategy(general_ratio=1.0),
}


@dataclass(frozen=True)
class RewardRecipe:
    """One training of a reward model.

    Args:
        model: what it starts from: a base model, or the folder of an earlier stage, whose adapter it goes on with.
        pairs: folder of preference pairs or scored lists (`Dataset.save_to_disk`).
        out: folder of the trained model; checkpoints lie beside it, in `<out>-checkpoints`.
        general, general_ratio: folder of general pairs, and how many of them are mixed in for each of `pairs`.
        adapter: arguments of PEFT's `LoraConfig` where the model has no adapter yet; None trains the whole model.
        pooling: see `new_reward_model`.
        user_model, user_model_options: a user model in front of the backbone (`USER_MODELS`); "": none.
        settings: arguments of `PersonalizedRewardConfig`.
        evaluation: name -> folder of the sets that are evaluated.
        patience: stop after so many evaluations without a better `metric_for_best_model` (in `settings`); 0: never.
    """

    model: str
    pairs: str
    out: str
    general: str = ""
    general_ratio: float = 0.0
    adapter: dict[str, Any] | None = field(default_factory=dict)
    pooling: str | None = None
    user_model: str = ""
    user_model_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, str] = field(default_factory=dict)
    patience: int = 0


def mixed(pairs: Dataset, general: Dataset, ratio: float, seed: int = 0) -> Dataset:
    """`pairs` with `ratio` general pairs for each of them, drawn without replacement.

    Raises:
        ValueError: a negative ratio, or fewer general pairs than that.
    """
    wanted = round(ratio * len(pairs))
    if not 0 <= wanted <= len(general):
        raise ValueError(
            f"ratio={ratio} asks for {wanted} general pairs beside {len(pairs)}, but there are {len(general)}. Choose "
            f"a ratio from 0 to {len(general) / len(pairs):.2f}."
        )
    drawn = np.random.default_rng(seed).permutation(len(general))[:wanted]
    common = [c for c in pairs.column_names if c in general.column_names]
    return concatenate_datasets([pairs.select_columns(common), general.select(drawn).select_columns(common)])


def fitting(pairs: Dataset, tokenizer, max_length: int) -> Dataset:
    """The pairs of which neither text is longer than `max_length` tokens (others would be cut)."""

    def fits(row) -> bool:
        return all(len(encode(tokenizer, row["prompt"], row[c])[0]) <= max_length for c in ("chosen", "rejected"))

    return pairs.filter(fits)


def build_reward_trainer(recipe: RewardRecipe) -> PersonalizedRewardTrainer:
    """Model, sets and trainer of a recipe, ready for `fit`."""
    ours = {"output_dir": f"{recipe.out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    args = PersonalizedRewardConfig(**{**ours, **recipe.settings})
    imitates = args.lm_loss_coeff > 0
    if Path(recipe.model, REWARD_FILE).is_file():
        model, index = load_reward_model(recipe.model, trainable=True, lm_head=imitates)
    else:
        model, index = new_reward_model(recipe.model, recipe.pooling, imitates, args.seed), None
    pairs = load_from_disk(recipe.pairs)
    if recipe.general_ratio:
        pairs = mixed(pairs, load_from_disk(recipe.general), recipe.general_ratio, args.seed)
    if recipe.user_model and index is None:
        index = UserIndex(sorted(set(pairs["user_id"])))
        kind: Any = USER_MODELS[recipe.user_model]
        condition(model, kind(len(index), model.get_input_embeddings().weight, **recipe.user_model_options))
    new = recipe.adapter is not None and not hasattr(model, "peft_config")
    return PersonalizedRewardTrainer(
        model, args, pairs, {name: load_from_disk(folder) for name, folder in recipe.evaluation.items()} or None,
        load_tokenizer(recipe.model), index,
        LoraConfig(task_type="SEQ_CLS", **(recipe.adapter or {})) if new else None,
        callbacks=[EarlyStoppingCallback(recipe.patience)] if recipe.patience else None,
    )  # fmt: skip


def train_reward(recipe: RewardRecipe) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return which pairs each evaluation ranked right.

    Returns:
        Columns `step`, `set`, `row`, `user_id`, `right`, `pairs`, see `PersonalizedRewardTrainer`.
    """
    trainer = build_reward_trainer(recipe)
    for name, dropped in trainer.dropped.items():
        if dropped:
            print(f"{name}: left out {dropped}")
    fit(trainer, recipe.out)
    return pd.read_parquet(Path(recipe.out, EVALUATIONS))


def general_stages(strategies: Mapping[str, Strategy]) -> dict[str, float]:
    """The general trainings that `strategies` start from, each once: name -> its `lm_loss_coeff`."""
    return {
        f"grft-lm{strategy.grft_lm:g}" if strategy.grft_lm else "grft": strategy.grft_lm
        for strategy in strategies.values()
        if strategy.general_first
    }
