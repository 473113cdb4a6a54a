"""DSP's three stages as recipes: base LM -> general (GRFT) -> customised reward fine-tuning (CRFT; arXiv 2309.03126).

python -m prlhf_kit.training.reward_stages recipe.json
accelerate launch --config_file configs/ddp.yaml -m prlhf_kit.training.reward_stages recipe.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from peft import LoraConfig, PeftModel

from prlhf_kit.data.select import drawn, sampled, split_by
from prlhf_kit.models.conditioning import causal_lm, condition
from prlhf_kit.models.hub import load_tokenizer
from prlhf_kit.models.reward_model import REWARD_FILE, load_reward_model, new_reward_model
from prlhf_kit.models.tokenize import encode
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.launch import writable
from prlhf_kit.training.resume import fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardTrainer
from prlhf_kit.training.reward_config import PersonalizedRewardConfig, StopEarly


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
        patience: stop after so many evaluations without a better `metric_for_best_model` (in `settings`); 0: never.
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
    patience: int = 0


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
        wrong = {
            "adapter=None (the whole model)": adapted and adapter is None,
            f"pooling={recipe.pooling!r}": recipe.pooling not in (None, pooling),
            f"user_model={recipe.user_model!r}": bool(recipe.user_model) and adapted and index is None,
        }
        if found := [what for what, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{found[0]} does not go with {recipe.model}, which has {'an adapter' if adapted else 'no adapter'}, "
                f"pooling={pooling!r} and {'users' if index else 'no users'}: an earlier stage is trained further as "
                "it is. Leave the setting out, or choose it in the first stage."
            )
        adapter = None if adapted else adapter
    else:
        model = new_reward_model(recipe.model, recipe.pooling, imitates, args.seed, device="cpu")
    if recipe.user_model and index is None:
        index = UserIndex(sorted({user for pairs in training.values() for user in pairs["user_id"]}))
        kind: Any = USER_MODELS[recipe.user_model]
        condition(model, kind(len(index), model.get_input_embeddings(), **recipe.user_model_options))
    held_out = {name: load_from_disk(folder) for name, folder in recipe.evaluation.items()}
    callbacks = [StopEarly(recipe.patience)] if recipe.patience else None
    tokenizer = load_tokenizer(recipe.model)
    return PersonalizedRewardTrainer(
        model, args, training, held_out or None, tokenizer, index, adapter, callbacks=callbacks
    )


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


def fitting(pairs: Dataset, tokenizer, max_length: int) -> Dataset:
    """The pairs of which neither text is longer than `max_length` tokens; how many are left out is printed."""

    def fits(row) -> bool:
        return all(len(encode(tokenizer, row["prompt"], row[c])[0]) <= max_length for c in ("chosen", "rejected"))

    kept = writable(pairs).filter(fits)
    if len(kept) < len(pairs):
        print(f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are longer than max_length={max_length}: left out")
    return kept


def domain_sets(
    data: DatasetDict, column: str, names: Sequence[str], tokenizer, max_length: int, train: int, test: int, seed: int
) -> dict[str, Dataset]:
    """Training (`<name>`) and held-out pairs (`<name>/test`, of `test_seen`) of each domain that fit `max_length`."""
    known = sorted({value for value in data["train"][column] if value})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no training pair has {column}={unknown[0]!r}. Known: {', '.join(known)}.")
    short = {split: fitting(data[split], tokenizer, max_length) for split in ("train", "test_seen")}
    own = {split: split_by(pairs, column, names) for split, pairs in short.items()}
    found = {}
    for name in names:
        for split, key, n in (("train", name, train), ("test_seen", f"{name}/test", test)):
            found[key] = sampled(own[split][name], n, seed)
    return _not_empty(found, max_length)


def general_sets(
    general: Mapping[str, DatasetDict],
    tested_only: Collection[str],
    tokenizer,
    max_length: int,
    train: int,
    test: int,
    seed: int,
) -> dict[str, Dataset]:
    """The training pairs `GENERAL`, from all general sets alike, and held-out pairs of each (`<name>/test`).

    Of those in `tested_only`, which are not trained on, the training pairs are held-out ones as well.
    """
    if set(general) <= set(tested_only):
        raise ValueError(f"tested_only names all general sets ({', '.join(general)}), so none is left to train on.")
    found, parts = {}, []
    columns = ["user_id", "prompt", "chosen", "rejected"]
    trained = len(set(general) - set(tested_only))
    for name, data in general.items():
        short = {split: fitting(data[split], tokenizer, max_length).select_columns(columns) for split in data}
        if name in tested_only:
            held_out = concatenate_datasets(list(short.values()))
        else:
            held_out = short["test_seen"]
            parts.append(sampled(short["train"], -(-train // trained), seed))
        found[f"{name}/test"] = sampled(held_out, test, seed)
    found[GENERAL] = sampled(concatenate_datasets(parts), train, seed)
    return _not_empty(found, max_length)


def _not_empty(sets: dict[str, Dataset], max_length: int) -> dict[str, Dataset]:
    for name, pairs in sets.items():
        if not len(pairs):
            raise ValueError(f"no pair of {name!r} has texts of at most {max_length} tokens. Raise max_length.")
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="JSON file with the fields of RewardRecipe")
    train_reward(RewardRecipe(**json.loads(parser.parse_args().recipe.read_text())))


if __name__ == "__main__":
    main()
