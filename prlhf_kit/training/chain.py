"""SFT, then DPO or P-DPO from exactly what SFT left: the two stages of one `Recipe`.

The reference is the SFT model: it sees the same prompts, the reader in them included, but no soft tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from filelock import FileLock
from peft import LoraConfig
from transformers import AutoConfig

from prlhf_kit.data import fingerprint as fingerprint_of_sets
from prlhf_kit.files import short_hash
from prlhf_kit.models.hub import from_hub, load_tokenizer, weights_in
from prlhf_kit.models.logprobs import REFERENCE, save_with_reference
from prlhf_kit.models.tokenize import tokenize_completion
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.resume import load_base_model
from prlhf_kit.training.sft import SFTRecipe, contexts_of, train_sft, with_reader, write_merged

ADAPTERS = ("stacked", "merged")


def sft_of(recipe: Any) -> SFTRecipe:
    """The first stage of a recipe with `sft`."""
    if own := {"model", "pairs"} & set(recipe.sft):
        raise ValueError(f"sft has {', '.join(sorted(own))}, which both stages share: give it in the recipe itself.")
    first = {
        "out": f"{recipe.out}-sft",
        "train_base": "lora" if recipe.train_base == "frozen" else recipe.train_base,
        "adapter": recipe.adapter,
        **recipe.sft,
    }
    told = {name: getattr(recipe, name) for name in ("context", "template", "context_seed")}
    return SFTRecipe(model=recipe.model, pairs=recipe.pairs, **{**told, **first})


def after_sft(recipe: Any, launch: Sequence[str] = ()) -> Any:
    """Train the first stage of `recipe` (or find it done), compute the reference of all pairs under the SFT model, once
    for all recipes that share it, and return the recipe of the second stage.

    Recipes that share an SFT stage and run at once take turns.

    Raises:
        ValueError: settings or pairs that the second stage would refuse.
    """
    sets = {name: load_from_disk(folder) for name in ("pairs", "evaluation") if (folder := getattr(recipe, name))}
    contexts = contexts_of(recipe, sets["pairs"], *sets.values())
    for name, pairs in sets.items():
        _require_no_reference(pairs, getattr(recipe, name))
    sets = {name: with_reader(pairs, contexts) for name, pairs in sets.items()}
    _require(recipe, sets)
    first = sft_of(recipe)
    start, folders = first.out, {}
    Path(first.out).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{first.out}.lock"):
        train_sft(first, launch)
        if recipe.adapters == "merged" and first.train_base != "full":
            start = f"{first.out}-merged"
            write_merged(first.out, start)
        base = None
        for name, pairs in sets.items():
            loaded = [recipe.train_base == "qlora", recipe.train_base == "full", torch.cuda.is_available()]
            made_from = [weights_in(start), loaded, contexts.config, fingerprint_of_sets({name: pairs})]
            folders[name] = f"{first.out}-{name}-{short_hash(*made_from)[:12]}"
            if not Path(folders[name]).exists():
                base = base or load_base_model(start, recipe.train_base)
                save_with_reference(pairs, base, load_tokenizer(start), folders[name])
    if base is not None and torch.cuda.is_available():  # its memory is wanted for training
        del base
        torch.cuda.empty_cache()
    return replace(recipe, model=start, sft=None, context="none", template="", **folders)


def _require_no_reference(pairs: Dataset, folder: str) -> None:
    if set(REFERENCE) & set(pairs.column_names):
        raise ValueError(
            f"{folder} brings reference log-probs, but after SFT the reference is the SFT model. Remove the columns "
            f"{' and '.join(REFERENCE)}."
        )


def _require(recipe: Any, sets: dict[str, Dataset]) -> None:
    """Refuse, before the first stage, what the second would refuse."""
    args = PersonalizedDPOConfig(**{"output_dir": recipe.out, "use_cpu": True, **recipe.settings})
    LoraConfig(**recipe.adapter)
    inspect.signature(USER_MODELS[recipe.user_model]).bind(1, None, **recipe.user_model_options)
    tokenizer, config = load_tokenizer(recipe.model), from_hub(AutoConfig, recipe.model)
    users = recipe.user_model_options.get("num_tokens", 10) if recipe.method == "pdpo" else 0
    context = getattr(config, "max_position_embeddings", None) or math.inf
    for name, pairs in sets.items():
        longest = max(
            sum(map(len, tokenize_completion(tokenizer, row["prompt"], row[side])))
            for row in pairs
            for side in ("chosen", "rejected")
        )
        if longest > (args.max_length or math.inf) or longest + users > context:
            raise ValueError(
                f"the longest pair of {getattr(recipe, name)} has {longest} tokens, the reader in the prompt included; "
                f"max_length={args.max_length} and the model's context of {context} (with {users} user tokens) must "
                "hold it. Raise max_length, or leave long pairs out (stage_sets.fitting)."
            )
