"""Supervised fine-tuning on the preferred responses, with the reader in the prompt or without: the stage before DPO.

ComPO's first stage (Kumar et al. 2024, arXiv 2410.16027). The loss is on responses only. What it leaves is the policy
from which DPO starts, and DPO's reference.

python -m prlhf_kit.training.sft recipe.json
accelerate launch --config_file configs/fsdp.yaml -m prlhf_kit.training.sft recipe.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from prlhf_kit.data.chat import count_tokens, prompt_texts, require_prefix
from prlhf_kit.data.context import Context, Contexts, people_of, require_context, with_context
from prlhf_kit.files import unfinished, write_json
from prlhf_kit.models.conditioning import same_outputs
from prlhf_kit.models.hub import SFT_FILE, load_model, load_tokenizer, weights_in
from prlhf_kit.models.logprobs import REFERENCE
from prlhf_kit.models.saving import name_base
from prlhf_kit.training.resume import HISTORY, MarkComplete, check_train_base, fit, launch_recipe, load_base_model


@dataclass(frozen=True)
class SFTRecipe:
    """One supervised fine-tuning.

    Args:
        model: base model, as `load_model` takes it.
        pairs: folder of preference pairs (`Dataset.save_to_disk`), the same as DPO's: their chosen responses are
            imitated, each once (`preferred`).
        out: folder of the trained adapter (or model); checkpoints lie beside it, in `<out>-checkpoints`.
        context, template, context_seed: the reader in the prompt, see `data.context`.
        train_base: "lora", "qlora" (4-bit base, needs a GPU and `bitsandbytes`) or "full".
        adapter: arguments of PEFT's `LoraConfig`.
        settings: arguments of TRL's `SFTConfig`.
        evaluation: folder of held-out pairs, on whose chosen responses the loss is measured (`eval_strategy`).
    """

    model: str
    pairs: str
    out: str
    context: Context = "none"
    template: str = ""
    context_seed: int = 0
    train_base: str = "lora"
    adapter: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: str = ""

    def __post_init__(self):
        check_train_base(self.train_base, ("lora", "qlora", "full"))
        require_context(self.context)
        for name in ("chat_template_path", "eos_token"):
            if name in self.settings:
                raise ValueError(
                    f"settings has {name!r}, which changes the tokenizer in mid-way: the context would be counted, and "
                    "DPO trained, with another. Save the model with a tokenizer that has it, and give that folder."
                )


def preferred(pairs: Dataset) -> Dataset:
    """What is imitated: columns `user_id`, `prompt`, `completion`, one row for each response that a user preferred to a
    prompt, however many pairs it was chosen in."""
    keys = zip(pairs["user_id"], map(str, pairs["prompt"]), map(str, pairs["chosen"]), strict=True)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    kept = pairs.select(sorted(first.values())).select_columns(["user_id", "prompt", "chosen"])
    return kept.rename_column("chosen", "completion")


def require_safe_packing(model, strategy: str) -> None:
    """Raise `ValueError` where texts that are packed into one row would see each other.

    TRL's "bfd" starts the positions of each text at 0, by which transformers tells them apart; whether `model` then
    gives each of two texts what it gives it alone is tried.
    """
    ids = torch.arange(12, device=model.device)[None]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].to(model.device)

    def hidden(**inputs) -> torch.Tensor:  # without cache, as TRL calls it: with one, a row is taken for one text
        return model.base_model(use_cache=False, **inputs).last_hidden_state

    apart = strategy != "wrapped" and same_outputs(
        model,
        lambda: torch.cat([hidden(input_ids=ids[:, :5]), hidden(input_ids=ids[:, 5:])], 1),
        lambda: hidden(input_ids=ids, position_ids=positions),
    )
    if not apart:
        raise ValueError(
            f"packing=True with packing_strategy={strategy!r} and attn_implementation="
            f"{model.config._attn_implementation!r}: texts that are packed into one row would see each other. Use "
            "packing_strategy='bfd' with 'sdpa' or 'flash_attention_2', or packing=False."
        )


def build_sft_trainer(recipe: SFTRecipe) -> SFTTrainer:
    """Model, responses and trainer of a recipe, ready for `fit`.

    Raises:
        SchemaError: the context can't be put into the prompts.
        ValueError: packing where it is not safe, or no response fits `max_length`.
    """
    ours = {"output_dir": f"{recipe.out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    quick = {"gradient_checkpointing": False, "bf16": torch.cuda.is_available(), "completion_only_loss": True}
    args = SFTConfig(**{**ours, **quick, **recipe.settings})
    if not torch.cuda.is_available():  # it would only warn
        args.dataloader_pin_memory = False
    tokenizer = load_tokenizer(recipe.model)
    require_prefix(tokenizer)
    folders = {"train": recipe.pairs} | ({"eval": recipe.evaluation} if recipe.evaluation else {})
    sets = {name: load_from_disk(folder) for name, folder in folders.items()}
    contexts = contexts_of(recipe, sets["train"], *sets.values())
    imitated = {
        name: _fitting(preferred(with_reader(pairs, contexts)), tokenizer, args.max_length, name)
        for name, pairs in sets.items()
    }
    policy = load_base_model(recipe.model, recipe.train_base, "cpu")  # the trainer moves it
    if args.packing:
        require_safe_packing(policy, args.packing_strategy)
    adapter = None if recipe.train_base == "full" else LoraConfig(**recipe.adapter)
    trainer = SFTTrainer(policy, args, None, imitated["train"], imitated.get("eval"), tokenizer, peft_config=adapter)
    trainer.add_callback(MarkComplete())
    return trainer


def contexts_of(recipe: Any, train: Dataset, *sets: Dataset) -> Contexts:
    """How a recipe puts readers into the prompts of some sets; other readers are drawn among those of `train`."""
    if recipe.context == "none":  # nobody need be known, and pairs may lack what people say
        return Contexts("none", {})
    people = people_of(train, *sets)
    return Contexts(recipe.context, people, recipe.template, recipe.context_seed, frozenset(train["user_id"]))


def with_reader(pairs: Dataset, contexts: Contexts) -> Dataset:
    """`pairs` with the reader in their prompts; for "none" they stay as they are, with a context or without.

    Raises:
        ValueError: they have one, and another is asked for; or they bring a reference that did not see it.
    """
    if contexts.context == "none":
        return pairs
    if set(REFERENCE) & set(pairs.column_names):
        raise ValueError(
            f"the pairs bring reference log-probs of prompts without context, asked for {contexts.context!r}. Remove "
            f"the columns {' and '.join(REFERENCE)}: the reference is then computed with the context."
        )
    return with_context(pairs, contexts)


def _fitting(rows: Dataset, tokenizer, max_length: int | None, name: str) -> Dataset:
    """The rows of which at least half the response is within `max_length`; how many are left out or cut is printed."""
    if max_length is None:
        return rows
    prompts = count_tokens(tokenizer, prompt_texts(tokenizer, list(rows["prompt"]), answered=False))
    dialogues = [p + c for p, c in zip(rows["prompt"], rows["completion"], strict=True)]
    whole = count_tokens(tokenizer, prompt_texts(tokenizer, dialogues, answered=True))
    kept = [i for i, (p, n) in enumerate(zip(prompts, whole, strict=True)) if (p + n) / 2 <= max_length]
    cut = sum(whole[i] > max_length for i in kept)
    if cut or len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept)} responses left out and {cut} cut, at max_length={max_length} tokens")
    if not kept:
        raise ValueError(f"no response of the {name} set fits max_length={max_length}. Raise it.")
    return rows.select(kept)


def train_sft(recipe: SFTRecipe, launch: Sequence[str] = ()) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return the trainer's log.

    Args:
        launch: as in `recipe.train`.
    """
    if launch:
        launch_recipe(recipe, __name__, launch)
        return pd.read_parquet(Path(recipe.out, HISTORY))
    trainer = build_sft_trainer(recipe)
    log = fit(trainer, recipe.out)
    if trainer.is_world_process_zero():
        name_base(recipe.out, trainer.accelerator.unwrap_model(trainer.model))
        write_json(Path(recipe.out, SFT_FILE), {"model": recipe.model, "pairs": recipe.pairs})
        write_context(recipe)
    return log


def write_context(recipe: Any) -> None:
    """Write beside a trained model what it was told of its readers, for `data.context.context_of`."""
    contexts_of(recipe, load_from_disk(recipe.pairs)).save(recipe.out)


def write_merged(folder: str | Path, out: str | Path) -> None:
    """Write an adapter and its base as one ordinary model, with the tokenizer; nothing is done where it lies there.

    Raises:
        ValueError: what lies there is another adapter's.
    """
    out, weights = Path(out), weights_in(folder)
    if out.exists():
        if json.loads((out / SFT_FILE).read_text()).get("merged") != weights:
            raise ValueError(f"{out} was merged from an earlier {folder}. Delete it, or choose another sft out.")
        return
    staging = unfinished(out)
    load_model(str(folder), device="cpu").save_pretrained(staging)
    load_tokenizer(str(folder)).save_pretrained(staging)
    write_json(staging / SFT_FILE, {"merged": weights})
    staging.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="JSON file with the fields of SFTRecipe")
    train_sft(SFTRecipe(**json.loads(parser.parse_args().recipe.read_text())))


if __name__ == "__main__":
    main()
