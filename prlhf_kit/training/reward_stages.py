"""DSP's three stages as recipes: base LM -> general (GRFT) -> customised reward fine-tuning (CRFT; arXiv 2309.03126).

[accelerate launch --config_file configs/ddp.yaml -m | python -m] prlhf_kit.training.reward_stages recipe.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from peft import LoraConfig, PeftModel

from prlhf_kit.data.select import drawn, joined, sampled, split_by
from prlhf_kit.models.conditioning import causal_lm, condition
from prlhf_kit.models.hub import load_tokenizer
from prlhf_kit.models.reward_model import REWARD_FILE, load_reward_model, new_reward_model
from prlhf_kit.models.tokenize import fitting
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.launch import command
from prlhf_kit.training.resume import fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardTrainer


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

GENERAL = "general/train"  # name of the set that GRFT is trained on; no domain has it


@dataclass(frozen=True)
class RewardRecipe:
    """One training of a reward model.

    Args:
        model: what it starts from: a base model, or the folder of an earlier stage, whose adapter it goes on with.
        pairs: folder of preference pairs or scored lists (`Dataset.save_to_disk`), or several, which are mixed.
        out: folder of the trained model; checkpoints lie beside it, in `<out>-checkpoints`.
        general, general_ratio: folder of general pairs, and how many of them are mixed in for each of `pairs`.
        adapter: arguments of PEFT's `LoraConfig` where the model has no adapter yet; None trains the whole model.
        pooling: see `new_reward_model`.
        user_model, user_model_options: a user model in front of the backbone (`USER_MODELS`); "": none.
        settings: arguments of `PersonalizedRewardConfig`.
        evaluation: name -> folder of the sets that are evaluated.
    """

    model: str
    pairs: str | list[str]
    out: str
    general: str = ""
    general_ratio: float = 0.0
    adapter: dict[str, Any] | None = field(default_factory=dict)
    pooling: str | None = None
    user_model: str = ""
    user_model_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, str] = field(default_factory=dict)


def build_reward_trainer(recipe: RewardRecipe) -> PersonalizedRewardTrainer:
    """Model, sets and trainer of a recipe, ready for `fit`."""
    ours = {"output_dir": f"{recipe.out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    args = PersonalizedRewardConfig(**{**ours, **recipe.settings})
    imitates, index = args.lm_loss_coeff > 0, None
    adapter = None if recipe.adapter is None else LoraConfig(task_type="SEQ_CLS", **recipe.adapter)
    folders = [recipe.pairs] if isinstance(recipe.pairs, str) else recipe.pairs
    training = {str(folder): load_from_disk(folder) for folder in folders}
    if recipe.general_ratio:
        wanted = recipe.general_ratio * sum(map(len, training.values()))
        training[recipe.general] = drawn(load_from_disk(recipe.general), round(wanted), args.seed)
    if Path(recipe.model, REWARD_FILE).is_file():  # an earlier stage, which is trained further as it is
        model, index = load_reward_model(recipe.model, trainable=True, lm_head=imitates, device="cpu")
        adapted, pooling = isinstance(model, PeftModel), causal_lm(model).pooling
        other_users = recipe.user_model and adapted and index is None
        if (adapted and adapter is None) or recipe.pooling not in (None, pooling) or other_users:
            raise ValueError(
                f"{recipe.model} has {'an adapter' if adapted else 'no adapter'}, pooling={pooling!r} and "
                f"{'users' if index else 'no users'}, which the recipe would change: an earlier stage is trained "
                "further as it is. Choose adapter, pooling and user_model in the first stage."
            )
        adapter = None if adapted else adapter
    else:
        model = new_reward_model(recipe.model, recipe.pooling, imitates, args.seed, device="cpu")
    if recipe.user_model and index is None:
        index = UserIndex(sorted({user for pairs in training.values() for user in pairs["user_id"]}))
        kind: Any = USER_MODELS[recipe.user_model]
        condition(model, kind(len(index), model.get_input_embeddings(), **recipe.user_model_options))
    held_out = {name: load_from_disk(folder) for name, folder in recipe.evaluation.items()}
    tokenizer = load_tokenizer(recipe.model)
    return PersonalizedRewardTrainer(model, args, training, held_out or None, tokenizer, index, adapter)


def train_reward(recipe: RewardRecipe) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return which pairs each evaluation ranked right up to the step that was
    saved: `step`, `set`, `row`, `user_id`, `prompt`, `right`, `pairs`, see `PersonalizedRewardTrainer`."""
    trainer = build_reward_trainer(recipe)
    for name, dropped in trainer.dropped.items():
        if dropped:
            print(f"{name}: left out {dropped}")
    fit(trainer, recipe.out)
    table = pd.read_parquet(Path(recipe.out, EVALUATIONS))
    return table[table.step <= json.loads(Path(recipe.out, REWARD_FILE).read_text())["step"]]


def general_name(lm_loss_coeff: float) -> str:
    """Folder of the general training with that weight of the LM loss."""
    return f"grft-lm{lm_loss_coeff:g}" if lm_loss_coeff else "grft"


def general_stages(strategies: Mapping[str, Strategy]) -> dict[str, float]:
    """The general trainings that `strategies` start from, each once: name -> its `lm_loss_coeff`."""
    return {general_name(plan.grft_lm): plan.grft_lm for plan in strategies.values() if plan.general_first}


def folder_name(text: str) -> str:
    """`text` as a folder's name.

    >>> folder_name("academy, GRFT + LM, CRFT")
    'academy-grft-lm-crft'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def stage_sets(
    data: DatasetDict,
    column: str,
    names: Sequence[str],
    general: Mapping[str, DatasetDict],
    tested_only: Collection[str],
    tokenizer,
    max_length: int,
    n_custom: int,
    n_general: int,
    n_test: int,
    seed: int,
) -> dict[str, Dataset]:
    """The pairs of all stages that fit `max_length` tokens, at most so many of each set.

    Args:
        data: with the domains to customise for, which are values (`names`) of `column`.
        general: pairs that speak for everybody, by the name of their dataset. All pairs of those in `tested_only` are
            held-out ones.

    Returns:
        `<name>` and `<name>/test` of each domain, the training pairs `GENERAL` (from all general datasets alike), and
        `<name>/test` of each general dataset.
    """
    known = sorted({value for value in data["train"][column] if value})
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no training pair has {column}={unknown[0]!r}. Known: {', '.join(known)}.")
    trained = [name for name in general if name not in tested_only]
    if not trained:
        raise ValueError(f"tested_only names all general sets ({', '.join(general)}), so none is left to train on.")
    found = {}
    for split, suffix, n in (("train", "", n_custom), ("test_seen", "/test", n_test)):
        own = split_by(fitting(data[split], tokenizer, max_length), column, names)
        found |= {f"{name}{suffix}": sampled(pairs, n, seed) for name, pairs in own.items()}
    parts = []
    for name, of in general.items():
        if name in trained:
            parts.append(sampled(fitting(of["train"], tokenizer, max_length), -(-n_general // len(trained)), seed))
        held_out = ["test_seen"] if name in trained else list(of)
        short = joined([fitting(of[split], tokenizer, max_length) for split in held_out])
        found[f"{name}/test"] = sampled(short, n_test, seed)
    found[GENERAL] = sampled(joined(parts), n_general, seed)
    for name, pairs in found.items():
        if not len(pairs):
            raise ValueError(f"no pair of {name!r} has texts of at most {max_length} tokens. Raise max_length.")
    return found


if __name__ == "__main__":
    train_reward(RewardRecipe(**json.loads(command(__doc__).parse_args().recipe.read_text())))
