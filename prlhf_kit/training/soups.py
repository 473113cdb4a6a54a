"""Soups: one LoRA adapter a preference, mixed by weights (Personalized Soups: Jang et al. 2023, arXiv 2310.11564;
Rewarded Soups: Rame et al. 2023, arXiv 2306.04488). The papers train by PPO on rewards, this by DPO on pairs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from prlhf_kit.data.registry import require_known
from prlhf_kit.data.select import split_by
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import name_of
from prlhf_kit.training.recipe import Recipe, train


def train_adapters(recipe: Recipe, model: str, pairs: Dataset, out: str | Path) -> dict[str, Path]:
    """Train by DPO an adapter for each user on that user's pairs alone, or resume: user -> folder in `out`. Arguments
    are as of `train`; the recipe's method is "dpo"."""
    folders = {}
    for user, own in split_by(pairs, "user_id", sorted(set(pairs["user_id"]))).items():
        folders[user] = Path(out, quote(user, safe=""))
        train(recipe, model, own, folders[user])
    return folders


def soup(
    model: PreTrainedModel, folders: Mapping[str, str | Path], weights: Mapping[str, float] | None = None
) -> PeftModel:
    """`model` with one adapter, whose update of each weight is the weighted mean of the updates B A of the adapters in
    `folders` (`train_adapters`). Its `unload()` gives `model` back, for the next soup.

    PEFT's "cat" does it, by stacking: the ranks add up. Its "linear", and the papers' code, average A and B apart,
    but the product of averages is not the average of the products. PEFT rounds the stack to the type of `model`.

    Args:
        weights: of some of the names in `folders`, adding up to 1. None: all alike.

    Raises:
        ValueError: unknown names, weights that add up to something else, or a model that has an adapter already.
        ModelError: an adapter of another base than `model`, or one that is not plain LoRA.
    """
    weights = dict.fromkeys(folders, 1 / max(len(folders), 1)) if weights is None else weights
    require_known(weights, folders, "adapter")
    if not math.isclose(sum(weights.values()), 1, abs_tol=1e-6):
        raise ValueError(f"the weights are {dict(weights)}, expected some that add up to 1. Divide them by their sum.")
    if hasattr(model, "peft_config"):  # PEFT would keep the earlier soup
        raise ValueError("the model has an adapter already, expected its bare base: model.unload() is it.")
    plain: dict[str, Any] = {"base_model_name_or_path": name_of(model), "peft_type": "LORA", "bias": "none"}
    plain |= {"use_dora": False, "use_rslora": False, "modules_to_save": None}
    for name in weights:
        config = json.loads(Path(folders[name], "adapter_config.json").read_text())
        if different := [key for key in plain if (config.get(key) or plain[key]) != plain[key]]:
            has = f"{different[0]}={config[different[0]]!r}, expected {plain[different[0]]!r}"
            raise ModelError(f"the adapter {name!r} has {has}: soups are of plain LoRA adapters of one base.")
    first, *others = weights
    mixed: Any = PeftModel.from_pretrained(model, folders[first], "0")  # users' names may be none for PEFT
    for place, name in enumerate(others, 1):
        mixed.load_adapter(folders[name], str(place))
    loaded = list(mixed.peft_config)
    mixed.add_weighted_adapter(loaded, list(weights.values()), "default", "cat")
    mixed.set_adapter("default", inference_mode=True)
    for place in loaded:
        mixed.delete_adapter(place)
    return mixed.eval()
