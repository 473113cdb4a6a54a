"""One training as a recipe that fits into a JSON file: in this process, or in several by `accelerate launch`.

python -m prlhf_kit.training.recipe recipe.json
python -m prlhf_kit.training.recipe recipe.json --config_file configs/fsdp.yaml

What follows the recipe goes to `accelerate launch`, which then trains each of its stages.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import load_from_disk
from peft import LoraConfig
from transformers import PreTrainedModel

from prlhf_kit.data.context import Context, require_context
from prlhf_kit.models.conditioning import condition
from prlhf_kit.models.hub import SFT_FILE, load_tokenizer, weights_in
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.chain import ADAPTERS, after_sft, sft_of
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import LABELS, WITHOUT_USERS, control_pairs
from prlhf_kit.training.pdpo import FROZEN_BASE, PersonalizedDPOTrainer
from prlhf_kit.training.resume import HISTORY, check_train_base, fit, launch_recipe, load_base_model
from prlhf_kit.training.sft import contexts_of, with_reader, write_context

TRAIN_BASE = ("lora", "qlora", "full", "frozen")


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and where it goes.

    Args:
        model: base model, as `load_model` takes it.
        pairs: folder of preference pairs (`Dataset.save_to_disk`), best with the reference's log-probs
            (`add_reference_logps`).
        out: folder of the trained model; checkpoints lie beside it, in `<out>-checkpoints`.
        method: "pdpo", or a control (`training.controls.LABELS`).
        train_base: "lora", "qlora" (4-bit base, needs a GPU and `bitsandbytes`), "full", or "frozen": users alone.
        user_model, user_model_options: one of `USER_MODELS`, and its arguments.
        adapter: arguments of PEFT's `LoraConfig`.
        settings: arguments of `PersonalizedDPOConfig`.
        evaluation: folder of held-out pairs, scored as `settings` say (`eval_strategy`); every user's accuracy is then
            in `user_metrics.parquet`.
        context, template, context_seed: the reader in the prompt (`data.context`), for both stages; policy and
            reference see the same prompts. Pairs that have a context already are taken as they are, with "none".
        sft: a supervised stage before, on the same pairs: arguments of `SFTRecipe` (`{}`: all defaults; its `out` is
            `<out>-sft`, and recipes with the same one share it). The policy then starts from the SFT model, which is
            the reference (`training.chain`). None: no such stage.
        adapters: "stacked": the SFT adapter stays a small file, merged when the kit loads the model (PEFT by itself
            would leave it out). "merged": it is merged once, and written as a whole model.
    """

    model: str
    pairs: str
    out: str
    method: str = "pdpo"
    train_base: str = "lora"
    user_model: str = "individual"
    user_model_options: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: str = ""
    context: Context = "none"
    template: str = ""
    context_seed: int = 0
    sft: dict[str, Any] | None = None
    adapters: str = "stacked"

    def __post_init__(self):
        check_train_base(self.train_base, TRAIN_BASE)
        require_context(self.context)
        if self.adapters not in ADAPTERS:
            raise ValueError(f"adapters={self.adapters!r}: expected one of {', '.join(ADAPTERS)}.")
        if self.sft is not None:
            sft_of(self)
            if self.train_base == "qlora" and self.adapters == "stacked":
                raise ValueError(
                    "train_base='qlora' after SFT needs adapters='merged': the adapter is merged in full precision, "
                    "written, and that model is loaded in 4 bits, rounded, as the start and as the reference."
                )
        own = "method='dpo_text'" if self.method == "dpo_text" else "user_text of the user model"
        if self.context != "none" and (self.method == "dpo_text" or self.user_model_options.get("user_text")):
            raise ValueError(
                f"{own} puts the users' words into the prompts by itself, and context={self.context!r} "
                "would do so again. Leave the former out and use context='user_text', or use context='none'."
            )
        if self.method != "pdpo" and self.method not in LABELS:
            raise ValueError(f"there is no control {self.method!r}; expected 'pdpo' or one of {', '.join(LABELS)}.")
        if self.user_model not in USER_MODELS:
            raise ValueError(f"user_model={self.user_model!r}: expected one of {', '.join(USER_MODELS)}.")
        if self.train_base == "frozen" and self.method in WITHOUT_USERS:
            raise ValueError(
                f"the control {self.method!r} has no users, so with a frozen base nothing would be trained. Choose "
                "among pooled and random_users."
            )

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a JSON file."""
        return cls(**json.loads(Path(path).read_text()))


def load_base(recipe: Recipe, device: str | None = None) -> PreTrainedModel:
    """The base model of a recipe as it is trained, for the reference's log-probs too (`load_base_model`)."""
    return load_base_model(recipe.model, recipe.train_base, device)


def build_trainer(recipe: Recipe) -> PersonalizedDPOTrainer:
    """Model, pairs and trainer of a recipe, ready for `fit`."""
    seed = recipe.settings.get("seed", 42)
    given = load_from_disk(recipe.pairs)
    held_out = load_from_disk(recipe.evaluation) if recipe.evaluation else None
    contexts = contexts_of(recipe, given, *([held_out] if held_out else []))
    pairs, personalized = control_pairs(recipe.method, with_reader(given, contexts), seed)
    policy = load_base(recipe, "cpu")  # the trainer moves it
    if Path(recipe.model, SFT_FILE).is_file():  # tells trainings apart (`fit`)
        policy.starts_from = weights_in(recipe.model)
    # after the model: with DeepSpeed ZeRO-3, what is loaded later is in pieces, and the users start from its embeddings
    ours = {"output_dir": f"{recipe.out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    args = PersonalizedDPOConfig(**{**ours, **recipe.settings, "personalized": personalized})
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size != started:
        raise RuntimeError(
            f"{started} processes were started, but this one sees {args.world_size}: each would train for itself and "
            "write over the others. Let `accelerate launch` and the recipe's use_cpu agree."
        )
    index = None
    if personalized:
        index = UserIndex(sorted(set(pairs["user_id"])))
        words = policy.get_input_embeddings().weight
        kind: Any = USER_MODELS[recipe.user_model]
        own = {} if recipe.method == "pdpo" else {"user_text": False}  # controls know nothing of who asks
        condition(policy, kind(len(index), words, **(recipe.user_model_options | own)))
    adapter = {"full": None, "frozen": FROZEN_BASE}.get(recipe.train_base, LoraConfig(**recipe.adapter))
    if held_out is not None:
        held_out = with_reader(held_out, contexts)
        if recipe.method != "random_users":  # whose held-out pairs are those of the people who stated them
            held_out = control_pairs(recipe.method, held_out)[0]
    return PersonalizedDPOTrainer(policy, args, pairs, held_out, load_tokenizer(recipe.model), index, adapter)


def train(recipe: Recipe, launch: Sequence[str] = ()) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return the trainer's log.

    Args:
        launch: arguments of `accelerate launch`, `["--config_file", "configs/fsdp.yaml"]` for instance, to train in
            processes of their own; none: in this process.

    Raises:
        RuntimeError: a launched training failed; the end of its output is in the message.
    """
    out, whole = Path(recipe.out), recipe
    if recipe.sft is not None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise RuntimeError(
                "a recipe with an SFT stage launches its stages by itself. Call `python -m prlhf_kit.training.recipe "
                "recipe.json <arguments of accelerate launch>`, or train(recipe, launch)."
            )
        recipe = after_sft(recipe, launch)
    first = True
    if launch:
        launch_recipe(recipe, "prlhf_kit.training.recipe", launch)
    else:
        trainer = build_trainer(recipe)
        if trainer.dropped["train"]:
            print("pairs left out, by user:", trainer.dropped["train"])
        fit(trainer, out)
        first = trainer.is_world_process_zero()
    if whole.context != "none" and first:
        write_context(whole)
    return pd.read_parquet(out / HISTORY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="JSON file with the fields of Recipe")
    known, launch = parser.parse_known_args()
    train(Recipe.read(known.recipe), launch)


if __name__ == "__main__":
    main()

QUERIES_AND_VALUES = r".*\.(q|v)_proj"
_QUIET = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "report_to": "none"}
_CPU_ADAPTER = {"r": 8, "lora_alpha": 16, "target_modules": QUERIES_AND_VALUES}
_OFTEN = {"logging_steps": 4, "save_steps": 20, "save_total_limit": 2}
_CPU = {"num_train_epochs": 1.0, "per_device_train_batch_size": 4, "max_length": 192, **_OFTEN, **_QUIET}

PRESETS: dict[str, dict[str, Any]] = {
    # ComPO (Kumar et al. 2024, arXiv 2410.16027): what is not named here is TRL's default
    "compo": {
        "sft": {"settings": {"learning_rate": 1e-5}, "adapter": {"r": 64, "lora_alpha": 16}},
        "settings": {"learning_rate": 2e-7, "beta": 0.1},
        "adapter": {"r": 64, "lora_alpha": 16},
    },
    # SmolLM2-135M on one CPU core, about a hundred pairs
    "cpu": {
        "sft": {"settings": {"learning_rate": 1e-4, **_CPU}, "adapter": _CPU_ADAPTER},
        "settings": {"learning_rate": 2e-4, "user_learning_rate": 1e-2, "beta": 0.1, "alpha": 1.0, **_CPU},
        "adapter": _CPU_ADAPTER,
    },
}
