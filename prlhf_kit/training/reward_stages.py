"""DSP's three stages as recipes: base LM -> general (GRFT) -> customised reward fine-tuning (CRFT; arXiv 2309.03126).

[accelerate launch --config_file configs/ddp.yaml -m | python -m] prlhf_kit.training.reward_stages recipe.json
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel

from prlhf_kit.data.registry import require_known
from prlhf_kit.data.select import joined, sampled, split_by
from prlhf_kit.models.conditioning import causal_lm, condition
from prlhf_kit.models.hub import load_tokenizer
from prlhf_kit.models.reward_model import REWARD_FILE, load_reward_model, new_reward_model
from prlhf_kit.models.tokenize import fitting
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.launch import command, read_recipe
from prlhf_kit.training.resume import fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardTrainer
from prlhf_kit.training.sft import AnyRecipe, contexts_of, sets_in, with_reader


@dataclass(frozen=True)
class Strategy:
    """How a customised reward model comes about."""

    general_first: bool = True  # CRFT goes on from GRFT; False: from the base LM
    grft_lm: float = 0.0  # `lm_loss_coeff` of GRFT; DSP: 0 or 0.1
    crft_lm: float = 0.0  # of CRFT
    general_ratio: float = 0.0  # general pairs mixed into CRFT, for each customised pair

    @property
    def grft(self) -> str:
        """Folder of the general training."""
        return f"grft-lm{self.grft_lm:g}" if self.grft_lm else "grft"


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


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(AnyRecipe):
    """How a reward model is trained. More fields: `AnyRecipe`; `settings` are arguments of `PersonalizedRewardConfig`,
    the context is ComPO's (`data.context.context_of(out, people)` puts it into the prompts that are scored).

    Args:
        adapter: arguments of PEFT's `LoraConfig` where the model has no adapter yet; None trains the whole model.
        pooling: see `new_reward_model`.
        user_model, user_model_options: a user model in front of the backbone (`USER_MODELS`); "": none.
    """

    adapter: dict[str, Any] | None = field(default_factory=dict)
    pooling: str | None = None
    user_model: str = ""
    user_model_options: dict[str, Any] = field(default_factory=dict)


def build_reward_trainer(
    recipe: RewardRecipe, model: str, pairs: Any, out: str | Path, evaluation: Any = None
) -> PersonalizedRewardTrainer:
    """Model, sets and trainer of a recipe, ready for `fit`. Arguments as of `train_reward`."""
    contexts = contexts_of(recipe, pairs, evaluation)
    pairs, evaluation = with_reader(pairs, contexts), with_reader(evaluation, contexts)
    ours = {"output_dir": f"{out}-checkpoints", "use_cpu": not torch.accelerator.is_available()}
    args = PersonalizedRewardConfig(**{**ours, **recipe.settings})
    imitates, index = args.lm_loss_coeff > 0, None
    adapter = None if recipe.adapter is None else LoraConfig(task_type="SEQ_CLS", **recipe.adapter)
    if Path(model, REWARD_FILE).is_file():  # an earlier stage, which is trained further as it is
        start, index = load_reward_model(model, trainable=True, lm_head=imitates, device="cpu")
        adapted, pooling = isinstance(start, PeftModel), causal_lm(start).pooling
        other_users = recipe.user_model and adapted and index is None
        if (adapted and adapter is None) or recipe.pooling not in (None, pooling) or other_users:
            has = f"{'an' if adapted else 'no'} adapter, pooling={pooling!r} and {'users' if index else 'no users'}"
            raise ValueError(f"{model} has {has}: an earlier stage is trained further as it is. Set the same.")
        adapter = None if adapted else adapter
    else:
        start = new_reward_model(model, recipe.pooling, imitates, args.seed, device="cpu")
    if recipe.user_model and index is None:
        index = UserIndex(sorted({user for part in sets_in(pairs) for user in part["user_id"]}))
        kind: Any = USER_MODELS[recipe.user_model]
        condition(start, kind(len(index), start.get_input_embeddings(), **recipe.user_model_options))
    tokenizer = load_tokenizer(recipe.tokenizer or model)
    return PersonalizedRewardTrainer(start, args, pairs, evaluation, tokenizer, index, adapter)


def train_reward(recipe: RewardRecipe, model: str, pairs: Any, out: str | Path, evaluation: Any = None) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return which pairs each evaluation ranked right up to the step that was
    saved: columns of `PersonalizedRewardTrainer`.

    Args:
        model: what it starts from: a base model, or the folder of an earlier stage, whose adapter it goes on with.
        pairs: preference pairs or scored lists, or several sets by name, which are mixed.
        out: folder of the trained model; checkpoints lie beside it, in `<out>-checkpoints`.
        evaluation: the set that is evaluated, or several by name.
    """
    trainer = build_reward_trainer(recipe, model, pairs, out, evaluation)
    for name, dropped in trainer.dropped.items():
        if dropped:
            print(f"{name}: left out {dropped}")
    fit(trainer, out)
    if trainer.is_world_process_zero():
        contexts_of(recipe, pairs).save(out)
    table = pd.read_parquet(Path(out, EVALUATIONS))
    return table[table.step <= json.loads(Path(out, REWARD_FILE).read_text())["step"]]


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
    """The pairs of all stages that fit `max_length` tokens, at most so many of each set: `<name>` and `<name>/test` of
    each domain, the training pairs `GENERAL` (from all general datasets alike), `<name>/test` of each general dataset.

    Args:
        data: with the domains to customise for, which are values (`names`) of `column`.
        general: datasets that speak for everybody; all pairs of those in `tested_only` are held-out ones.
    """
    require_known(names, sorted({value for value in data["train"][column] if value}), f"{column} of a training pair")
    trained = [name for name in general if name not in tested_only]
    if not trained:
        raise ValueError(f"tested_only names all general sets ({', '.join(general)}), so none is left to train on.")
    found: dict[str, Dataset] = {}
    for split, suffix, n in (("train", "", n_custom), ("test_seen", "/test", n_test)):
        own = split_by(fitting(data[split], tokenizer, max_length), column, names)
        found |= {f"{name}{suffix}": sampled(pairs, n, seed) for name, pairs in own.items()}
    for name, of in general.items():
        held_out = ["test_seen"] if name in trained else list(of)
        short = joined([fitting(of[split], tokenizer, max_length) for split in held_out])
        found[f"{name}/test"] = sampled(short, n_test, seed)
    parts = [fitting(general[name]["train"], tokenizer, max_length) for name in trained]
    parts = [sampled(part, -(-n_general // len(trained)), seed) for part in parts]
    found[GENERAL] = sampled(joined(parts), n_general, seed)
    for name, pairs in found.items():
        if not len(pairs):
            raise ValueError(f"no pair of {name!r} has texts of at most {max_length} tokens. Raise max_length.")
    return found


if __name__ == "__main__":
    train_reward(*read_recipe(RewardRecipe, command(__doc__).parse_args().recipe))
