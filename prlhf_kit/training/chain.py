"""SFT, then DPO or P-DPO from exactly what SFT left: the two stages of one `Recipe`.

The reference is the SFT model: it sees the same prompts, the reader in them included, but no soft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from prlhf_kit.chunks import fingerprint
from prlhf_kit.data import fingerprint as fingerprint_of_sets
from prlhf_kit.evaluation.scoring import REFERENCE, save_with_reference, tokenize_completion
from prlhf_kit.models import load_tokenizer
from prlhf_kit.record import sha256
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.sft import SFTRecipe, contexts_of, told, train_sft, write_merged
from prlhf_kit.training.start import load_base_model

ADAPTERS = ("stacked", "merged")


def sft_of(recipe: Any) -> SFTRecipe:
    """The first stage of a recipe with `sft`."""
    first = {
        "out": f"{recipe.out}-sft", "train_base": "lora" if recipe.train_base == "frozen" else recipe.train_base,
        "adapter": recipe.adapter, **recipe.sft,
    }  # fmt: skip
    told = {name: getattr(recipe, name) for name in ("context", "template", "context_seed")}
    return SFTRecipe(model=recipe.model, pairs=recipe.pairs, **{**told, **first})


def after_sft(recipe: Any, launch: Sequence[str] = ()) -> Any:
    """Train the first stage of `recipe` (or find it done), compute the reference of all pairs under the SFT model, once
    for all recipes that share it, and return the recipe of the second stage.

    Raises:
        ValueError: pairs that bring a reference of another model, or that DPO's `max_length` would cut.
    """
    sets = {name: load_from_disk(folder) for name in ("pairs", "evaluation") if (folder := getattr(recipe, name))}
    contexts = contexts_of(recipe, sets["pairs"], *sets.values())
    sets = {name: told(pairs, contexts) for name, pairs in sets.items()}
    tokenizer = load_tokenizer(recipe.model)
    for name, pairs in sets.items():
        _require(pairs, getattr(recipe, name), tokenizer, recipe.settings)
    first = sft_of(recipe)
    train_sft(first, launch)
    start = first.out
    if recipe.adapters == "merged":
        start = f"{first.out}-merged"
        write_merged(first.out, start)
    weights = [sha256(file) for file in sorted(Path(start).glob("*.safetensors"))]
    folders, base = {}, None
    for name, pairs in sets.items():
        key = fingerprint(weights, contexts.config, fingerprint_of_sets({name: pairs}))
        folder = Path(f"{first.out}-{name}-{key[:12]}")
        if not folder.exists():
            base = base or load_base_model(start, recipe.train_base)
            save_with_reference(pairs, base, tokenizer, folder)
        folders[name] = str(folder)
    return replace(recipe, model=start, sft=None, **folders)


def _require(pairs: Dataset, folder: str, tokenizer, settings: dict[str, Any]) -> None:
    """Refuse, before the first stage, what the second would refuse."""
    if set(REFERENCE) & set(pairs.column_names):
        raise ValueError(
            f"{folder} brings reference log-probs, but after SFT the reference is the SFT model. Remove the columns "
            f"{' and '.join(REFERENCE)}."
        )
    longest = max(
        sum(map(len, tokenize_completion(tokenizer, row["prompt"], row[side])))
        for row in pairs
        for side in ("chosen", "rejected")
    )
    limit = settings.get("max_length", PersonalizedDPOConfig.__dataclass_fields__["max_length"].default)
    if limit is not None and longest > limit:
        raise ValueError(
            f"the longest pair of {folder} has {longest} tokens, the reader in the prompt included, and max_length="
            f"{limit} would cut it. Raise max_length, or leave long pairs out (stage_sets.fitting)."
        )
