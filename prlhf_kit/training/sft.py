"""Supervised fine-tuning on the preferred responses, the stage before DPO (ComPO: Kumar et al. 2024, arXiv 2410.16027).

[accelerate launch --config_file configs/fsdp.yaml -m | python -m] prlhf_kit.training.sft recipe.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from prlhf_kit.data.chat import require_prefix
from prlhf_kit.data.context import Context, Contexts, people_of, require_context, with_context
from prlhf_kit.files import write_json
from prlhf_kit.models.hub import SFT_FILE, load_tokenizer
from prlhf_kit.models.logprobs import REFERENCE
from prlhf_kit.models.saving import name_base
from prlhf_kit.models.tokenize import fitting
from prlhf_kit.training.config import for_this_machine
from prlhf_kit.training.launch import command, launch_recipe, load_base, read_recipe, writable
from prlhf_kit.training.resume import HISTORY, Checkpoints, fit


@dataclass(frozen=True, kw_only=True)
class AnyRecipe:
    """What all recipes have: values only, which fit into a JSON file (`launch.read_recipe`).

    Args:
        settings: arguments of the trainer's config.
        tokenizer: name of a tokenizer that is not the base model's own.
        context, template, context_seed, choices: the reader in the prompt (`data.context`); policy and reference see
            the same prompts. Pairs that have a context already are taken as they are, with "none". `choices`: how many
            of a user's training pairs context="choices" tells.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    context: Context = "none"
    template: str = ""
    context_seed: int = 0
    choices: int = 4

    def __post_init__(self):
        require_context(self.context)

    def require(self, **known: Sequence[str]) -> None:
        """Raise `ValueError` for fields whose values are not known, or a way to train the base that can't be gone."""
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(values)}.")
        if getattr(self, "train_base", "") == "qlora" and not torch.cuda.is_available():  # bitsandbytes needs one
            raise ValueError("train_base='qlora' needs a GPU and bitsandbytes; 'lora' runs anywhere.")


@dataclass(frozen=True, kw_only=True)
class SFTRecipe(AnyRecipe):
    """How a model is fine-tuned; fields as of `recipe.Recipe`, `settings` are arguments of TRL's `SFTConfig`."""

    train_base: str = "lora"
    adapter: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self.require(train_base=("lora", "qlora", "full"))


def preferred(pairs: Dataset) -> Dataset:
    """What is imitated: columns `user_id`, `prompt`, `completion`, each response that a user preferred once."""
    columns = ["user_id", "prompt", "chosen"]
    first = pd.DataFrame({name: [str(value) for value in pairs[name]] for name in columns}).drop_duplicates()
    return pairs.select(first.index).select_columns(columns).rename_column("chosen", "completion")


def build_sft_trainer(
    recipe: SFTRecipe, model: str, pairs: Dataset, out: str | Path, evaluation: Dataset | None = None
) -> SFTTrainer:
    """Model, responses and trainer of a recipe, ready for `fit`; arguments as of `train_sft`."""
    ours = {"output_dir": f"{out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    given = {**ours, "gradient_checkpointing": False, "completion_only_loss": True, **recipe.settings}
    given.setdefault("bf16", torch.cuda.is_available() and not given["use_cpu"] and not given.get("fp16"))
    args = SFTConfig(**given)
    for_this_machine(args)
    tokenizer = load_tokenizer(recipe.tokenizer or model)
    require_prefix(tokenizer)
    sets = {"train": writable(pairs)} | ({} if evaluation is None else {"eval": writable(evaluation)})
    contexts = contexts_of(recipe, pairs, evaluation)
    imitated = {name: preferred(part) for name, part in with_reader(sets, contexts).items()}
    if args.max_length is not None:
        imitated = {n: fitting(rows, tokenizer, args.max_length, ["completion"]) for n, rows in imitated.items()}
    if not len(imitated["train"]):
        raise ValueError(f"no response of the training set fits max_length={args.max_length}. Raise it.")
    policy = load_base(model, recipe.train_base, "cpu")  # the trainer moves it
    adapter = None if recipe.train_base == "full" else LoraConfig(**recipe.adapter)
    trainer = SFTTrainer(policy, args, None, imitated["train"], imitated.get("eval"), tokenizer, peft_config=adapter)
    trainer.add_callback(Checkpoints())
    return trainer


def sets_in(pairs: Any) -> list[Dataset]:
    """One set, several by name, or none (None), as a list."""
    return [*pairs.values()] if isinstance(pairs, dict) else [] if pairs is None else [pairs]


def contexts_of(recipe: AnyRecipe, train: Any, evaluation: Any = None) -> Contexts:
    """How a recipe puts readers into the prompts of its sets, each one or several by name; other readers are drawn
    among those of `train`."""
    if recipe.context == "none":  # nobody need be known, and pairs may lack what people say
        return Contexts("none", {})
    training = sets_in(train)
    people, among = people_of(*training, *sets_in(evaluation)), frozenset(people_of(*training))
    return Contexts(recipe.context, people, recipe.template, recipe.context_seed, among, training, recipe.choices)


def with_reader(pairs: Any, contexts: Contexts) -> Any:
    """`pairs`, or several sets by name, with the reader in their prompts; for "none" they stay as they are, with a
    context or without."""
    if isinstance(pairs, dict):
        return {name: with_reader(part, contexts) for name, part in pairs.items()}
    return pairs if pairs is None or contexts.context == "none" else with_context(without_reference(pairs), contexts)


def without_reference(pairs: Dataset) -> Dataset:
    """`pairs` without the log-probs of a reference that is another, or saw other prompts."""
    return pairs.remove_columns([name for name in REFERENCE if name in pairs.column_names])


def train_sft(
    recipe: SFTRecipe,
    model: str,
    pairs: Dataset,
    out: str | Path,
    evaluation: Dataset | None = None,
    launch: Sequence[str] = (),
) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return the trainer's log. Arguments as of `recipe.train`: the pairs are
    DPO's, whose chosen responses are imitated, each once."""
    if launch:
        held_out = {} if evaluation is None else {"evaluation": evaluation}
        launch_recipe(__name__, launch, recipe, model, out, {"pairs": pairs} | held_out)
        return pd.read_parquet(Path(out, HISTORY))
    trainer = build_sft_trainer(recipe, model, pairs, out, evaluation)
    log = fit(trainer, out)
    if trainer.is_world_process_zero():
        name_base(out, trainer.accelerator.unwrap_model(trainer.model))
        write_json(Path(out, SFT_FILE), {"model": model})
        contexts_of(recipe, pairs).save(out)
    return log


if __name__ == "__main__":
    train_sft(*read_recipe(SFTRecipe, command(__doc__).parse_args().recipe))
