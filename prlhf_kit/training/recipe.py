"""One training as a recipe that fits into a JSON file: in this process, or in several by `accelerate launch`.

python -m prlhf_kit.training.recipe recipe.json
accelerate launch --config_file configs/fsdp.yaml -m prlhf_kit.training.recipe recipe.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import load_from_disk
from peft import LoraConfig
from transformers import PreTrainedModel

from prlhf_kit.conditioning import condition
from prlhf_kit.models import load_model, load_tokenizer
from prlhf_kit.record import write_json
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import LABELS, WITHOUT_USERS, control_pairs
from prlhf_kit.training.fit import HISTORY, fit
from prlhf_kit.training.pdpo import FROZEN_BASE, PersonalizedDPOTrainer
from prlhf_kit.training.tracking import check_trackers
from prlhf_kit.users import USER_MODELS, UserIndex

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

    def __post_init__(self):
        check_trackers(self.settings.get("report_to"))
        if self.train_base not in TRAIN_BASE:
            raise ValueError(f"train_base={self.train_base!r}: expected one of {', '.join(TRAIN_BASE)}.")
        if self.method != "pdpo" and self.method not in LABELS:
            raise ValueError(f"there is no control {self.method!r}; expected 'pdpo' or one of {', '.join(LABELS)}.")
        if self.user_model not in USER_MODELS:
            raise ValueError(f"user_model={self.user_model!r}: expected one of {', '.join(USER_MODELS)}.")
        if self.train_base == "frozen" and self.method in WITHOUT_USERS:
            raise ValueError(
                f"the control {self.method!r} has no users, so with a frozen base nothing would be trained. Choose "
                "among pooled and random_users."
            )
        ready = torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None
        if self.train_base == "qlora" and not ready:
            raise ValueError(
                "train_base='qlora' needs a GPU and bitsandbytes (whose 4-bit layers have no gradient on CPUs, version "
                "0.50): pip install bitsandbytes on a GPU machine; 'lora' runs anywhere."
            )

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a JSON file."""
        return cls(**json.loads(Path(path).read_text()))


def load_base(recipe: Recipe, device: str | None = None) -> PreTrainedModel:
    """The base model as it is trained, for the reference's log-probs too: bfloat16 on a GPU unless its own weights are
    trained, 4 bits for QLoRA; `device` as in `load_model`."""
    dtype = torch.bfloat16 if torch.cuda.is_available() and recipe.train_base != "full" else torch.float32
    if recipe.train_base == "qlora":
        return load_model(recipe.model, dtype, f"cuda:{os.environ.get('LOCAL_RANK', '0')}", _four_bits())
    return load_model(recipe.model, dtype, device)


def build_trainer(recipe: Recipe) -> PersonalizedDPOTrainer:
    """Model, pairs and trainer of a recipe, ready for `fit`."""
    seed = recipe.settings.get("seed", 42)
    pairs, personalized = control_pairs(recipe.method, load_from_disk(recipe.pairs), seed)
    policy = load_base(recipe, "cpu")  # the trainer moves it
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
    held_out = None
    if recipe.evaluation:
        held_out = load_from_disk(recipe.evaluation)
        if recipe.method != "random_users":  # whose held-out pairs are those of the people who stated them
            held_out = control_pairs(recipe.method, held_out)[0]
    return PersonalizedDPOTrainer(policy, args, pairs, held_out, load_tokenizer(recipe.model), index, adapter)


def _four_bits():
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def train(recipe: Recipe, launch: Sequence[str] = ()) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return the trainer's log.

    Args:
        launch: arguments of `accelerate launch`, `["--config_file", "configs/fsdp.yaml"]` for instance, to train in
            processes of their own; none: in this process.

    Raises:
        RuntimeError: a launched training failed; the end of its output is in the message.
    """
    out = Path(recipe.out)
    if not launch:
        trainer = build_trainer(recipe)
        if trainer.dropped["train"]:
            print("pairs left out, by user:", trainer.dropped["train"])
        return fit(trainer, out)
    launch_recipe(recipe, __name__, launch)
    return pd.read_parquet(out / HISTORY)


def launch_recipe(recipe: Any, module: str, launch: Sequence[str]) -> None:
    """Write `recipe` beside its `out` and train it by `accelerate launch <launch> -m <module>`, see `train`."""
    file = Path(f"{recipe.out}-recipe.json")
    write_json(file, asdict(recipe))
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", module, str(file)]
    last: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():  # a notebook shows what Python prints, not what its children do
            print(line, end="")
            last.append(line)
    if process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}. It said:\n{''.join(last)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="JSON file with the fields of Recipe")
    train(Recipe.read(parser.parse_args().recipe))


if __name__ == "__main__":
    main()
