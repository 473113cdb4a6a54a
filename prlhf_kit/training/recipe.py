"""One training as a recipe of plain values, in this process or in several; after SFT, if asked.

python -m prlhf_kit.training.recipe recipe.json [arguments of accelerate launch, which then trains each stage]
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, load_from_disk
from filelock import FileLock
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel

from prlhf_kit.data import fingerprint
from prlhf_kit.data.chat import prompt_texts_of, with_user_text
from prlhf_kit.data.select import in_blocks
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import condition, context_of
from prlhf_kit.models.features import Embedder, embed, feature_cache, load_embedder
from prlhf_kit.models.hub import from_hub, load_tokenizer, weights_in
from prlhf_kit.models.logprobs import require_lengths, save_with_reference
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import LABELS, WITHOUT_USERS, control_pairs
from prlhf_kit.training.heads import fit_heads
from prlhf_kit.training.launch import command, launch_recipe, load_base, read_recipe
from prlhf_kit.training.pdpo import FROZEN_BASE, PersonalizedDPOTrainer
from prlhf_kit.training.presets import preset
from prlhf_kit.training.resume import HISTORY, fit
from prlhf_kit.training.sft import AnyRecipe, SFTRecipe, contexts_of, train_sft, with_reader, without_reference


@dataclass(frozen=True, kw_only=True)
class Recipe(AnyRecipe):
    """What is trained and how. More fields: `AnyRecipe`; `settings` are arguments of `PersonalizedDPOConfig`, and both
    stages have the same context.

    Args:
        method: "pdpo", or a control (`training.controls.LABELS`).
        train_base: "lora", "qlora" (4-bit base, needs a GPU and `bitsandbytes`), "full", or "frozen": users alone.
        dtype: of the base's weights: "auto", "float32" or "bfloat16" (`launch.load_base`). What is trained beside them
            is float32. On CPUs that compute in it (avx512_bf16), bfloat16 takes about 0.6 of the time.
        user_model, user_model_options: one of `USER_MODELS`, and its arguments.
        user_start: features (`load_embedder`) on which a low-rank head says where each user of a "low_rank" user model
            starts (`head_coefficients`). "": at random.
        adapter: arguments of PEFT's `LoraConfig`.
        sft: a supervised stage before, on the same pairs: arguments of `SFTRecipe` (`{}`: all defaults), perhaps with
            `preset`, and `out`, its folder (default `<out>-sft`), which recipes may share. The policy then starts from
            the SFT model, which is the reference: it sees the same prompts, but no soft tokens. Its adapter stays a
            small file, merged when the kit loads the model (PEFT by itself would leave it out). None: no such stage.
    """

    method: str = "pdpo"
    train_base: str = "lora"
    dtype: str = "auto"
    user_model: str = "individual"
    user_model_options: dict[str, Any] = field(default_factory=dict)
    user_start: str = ""
    adapter: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.require(train_base=("lora", "qlora", "full", "frozen"), dtype=("auto", "float32", "bfloat16"))
        self.require(method=("pdpo", *LABELS), user_model=tuple(USER_MODELS))
        if self.user_start and self.user_model != "low_rank":
            raise ValueError(f"user_start={self.user_start!r} is for user_model='low_rank' only. Leave it out.")
        if self.sft is not None:
            sft_of(self)
            if self.train_base == "qlora":
                way_out = "Train the stages one by one, and between them kit.load_model(sft).save_pretrained(folder)"
                raise ValueError(f"train_base='qlora' would round an SFT adapter that it starts from. {way_out}.")
        if self.context != "none" and (self.method == "dpo_text" or self.user_model_options.get("user_text")):
            both = f"context={self.context!r} and user_text (method dpo_text)"
            raise ValueError(f"{both} would both put users' words into the prompts. Choose one of them.")
        if self.train_base == "frozen" and self.method in WITHOUT_USERS:
            raise ValueError(f"nothing would be trained by {self.method!r} on a frozen base, without users. Use lora.")


def build_trainer(
    recipe: Recipe,
    model: str,
    pairs: Dataset,
    out: str | Path,
    evaluation: Dataset | None = None,
    policy: PreTrainedModel | None = None,
) -> PersonalizedDPOTrainer:
    """Model, pairs and trainer of a recipe, ready for `fit`; `sft` and `context` are left to `train`, whose arguments
    these are. `policy`: the base model, where it is loaded already (it is changed)."""
    policy = policy or load_base(model, recipe.train_base, "cpu", recipe.dtype)  # the trainer moves it
    # after the model: with DeepSpeed ZeRO-3, what is loaded later is in pieces, and the users start from its embeddings
    seed = recipe.settings.get("seed", 42)
    if (together := recipe.settings.get("pairs_per_row", 1)) > 1:  # by who stated them, for controls too
        pairs = in_blocks(pairs, together, seed)
    pairs, personalized = control_pairs(recipe.method, pairs, seed)
    cpu = not torch.accelerator.is_available()
    bf16 = True if cpu and policy.dtype == torch.bfloat16 else None  # None: as the config settles it
    ours = {"output_dir": f"{out}-checkpoints", "use_cpu": cpu, "bf16": bf16}
    args = PersonalizedDPOConfig(**{**ours, **recipe.settings, "personalized": personalized})
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size != started:  # each would train for itself and write over the others
        said = f"{started} processes were started, but this one sees {args.world_size}"
        raise RuntimeError(f"{said}. Let `accelerate launch` and the recipe's use_cpu agree.")
    index = None
    if personalized:
        index = UserIndex(sorted(set(pairs["user_id"])))
        kind: Any = USER_MODELS[recipe.user_model]
        own = {} if recipe.method == "pdpo" else {"user_text": False}  # controls know nothing of who asks
        users = kind(len(index), policy.get_input_embeddings(), **(recipe.user_model_options | own))
        if recipe.user_start:
            found = head_coefficients(pairs, load_embedder(recipe.user_start), users.own.shape[1])
            with torch.no_grad():
                for user, coefficients in found.items():
                    users.own[index.row(user)] = torch.tensor(coefficients).to(users.own)
        condition(policy, users)
    adapter = {"full": None, "frozen": FROZEN_BASE}.get(recipe.train_base, LoraConfig(**recipe.adapter))
    if evaluation is not None and recipe.method != "random_users":  # held-out pairs stay those of who stated them
        evaluation = control_pairs(recipe.method, evaluation)[0]
    return PersonalizedDPOTrainer(
        policy, args, pairs, evaluation, load_tokenizer(recipe.tokenizer or model), index, adapter
    )


def train(
    recipe: Recipe,
    model: str,
    pairs: Dataset,
    out: str | Path,
    evaluation: Dataset | None = None,
    launch: Sequence[str] = (),
) -> pd.DataFrame:
    """Train to the end, or resume (`fit`), and return the trainer's log.

    Args:
        model: base model, as `load_model` takes it.
        pairs: preference pairs, best with the reference's log-probs (`add_reference_logps`).
        out: folder of the trained model; checkpoints lie beside it, in `<out>-checkpoints`.
        evaluation: held-out pairs, scored as `settings` say (`eval_strategy`), by user in `user_metrics.parquet`.
        launch: arguments of `accelerate launch`, `["--config_file", "configs/fsdp.yaml"]` for instance, to train in
            processes of their own; none: in this process.
    """
    sets = {"pairs": pairs} | ({} if evaluation is None else {"evaluation": evaluation})
    policy = None
    if recipe.sft is not None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            way_out = "python -m prlhf_kit.training.recipe recipe.json <arguments of accelerate launch>"
            raise RuntimeError(f"a recipe with an SFT stage launches its stages by itself. Call `{way_out}`.")
        model, sets, policy = after_sft(recipe, model, sets, out, launch)
    else:
        sets = with_reader(sets, contexts_of(recipe, pairs, evaluation))
    second = replace(recipe, context="none", template="", sft=None)  # its pairs have their context
    if launch:
        policy = None
        launch_recipe("prlhf_kit.training.recipe", launch, second, model, out, sets)
    else:
        trainer = build_trainer(second, model, sets["pairs"], out, sets.get("evaluation"), policy)
        if dropped := trainer.dropped["train"]:
            print("pairs left out, by user:", dropped)
        fit(trainer, out)
    if recipe.context != "none" and not int(os.environ.get("RANK", 0)):
        contexts_of(recipe, pairs).save(out)
    return pd.read_parquet(Path(out, HISTORY))


def sft_of(recipe: Recipe) -> SFTRecipe:
    """The first stage of a recipe with `sft`."""
    own: dict[str, Any] = {key: value for key, value in (recipe.sft or {}).items() if key != "out"}
    told = {each.name: getattr(recipe, each.name) for each in fields(AnyRecipe) if each.name != "settings"}
    if shared := {"model", "pairs", *told} & set(own):
        raise ValueError(f"sft has {', '.join(sorted(shared))}, which both stages share: leave it out of sft.")
    if "preset" in own:
        own = preset(own.pop("preset"), **own, **told)
    base = "lora" if recipe.train_base == "frozen" else recipe.train_base
    return SFTRecipe(**{"train_base": base, "adapter": recipe.adapter, **own, **told})


def after_sft(
    recipe: Recipe, model: str, sets: dict[str, Dataset], out: str | Path, launch: Sequence[str] = ()
) -> tuple[str, dict[str, Dataset], PreTrainedModel | None]:
    """Train the first stage of `recipe`, or find it done, and compute the reference of all pairs under the SFT model:
    its folder, the sets ("pairs", perhaps "evaluation") with context and reference, and the model if it was loaded.

    Recipes that share an SFT stage share its reference too; if they run at once, they take turns. What the second stage
    would refuse is refused first.
    """
    evaluation = sets.get("evaluation")
    contexts = contexts_of(recipe, sets["pairs"], evaluation)
    told = {name: without_reference(pairs) for name, pairs in with_reader(sets, contexts).items()}
    for name, pairs in told.items():
        require(recipe, model, pairs, name)
    first = sft_of(recipe)
    folder = (recipe.sft or {}).get("out", f"{out}-sft")
    evaluation = evaluation if first.settings.get("eval_strategy", "no") != "no" else None
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        train_sft(first, model, sets["pairs"], folder, evaluation, launch)
        base = None
        for name, pairs in told.items():
            loaded = [recipe.dtype, recipe.train_base == "full", torch.cuda.is_available()]
            made_from = [weights_in(folder), loaded, contexts.config, fingerprint({name: pairs})]
            kept = Path(f"{folder}-{name}-{short_hash(*made_from)[:12]}")
            if not kept.exists():
                base = base or load_base(folder, recipe.train_base, dtype=recipe.dtype)
                save_with_reference(pairs, base, load_tokenizer(recipe.tokenizer or folder), kept)
            told[name] = load_from_disk(str(kept))
    return folder, told, base


def require(recipe: Recipe, model: str, pairs: Dataset, name: str = "train") -> None:
    """Refuse what training by `recipe` on `pairs` would refuse, without a model: before the reference is computed, say.

    Raises:
        ValueError, TypeError: settings, adapter or user model, users' start, or pairs (of the set `name`) too long.
    """
    args = PersonalizedDPOConfig(**{"output_dir": "", "use_cpu": True, **recipe.settings})
    LoraConfig(**recipe.adapter)
    tokenizer, config = load_tokenizer(recipe.tokenizer or model), from_hub(AutoConfig, model).get_text_config()
    kind: Any = USER_MODELS[recipe.user_model]  # the smallest one
    users = kind(1, torch.nn.Embedding(config.vocab_size, 1), **recipe.user_model_options)
    if recipe.user_start and recipe.method not in WITHOUT_USERS:
        load_embedder(recipe.user_start)  # which may refuse its name
        fits_a_head(pairs, users.own.shape[1])
    if recipe.method == "dpo_text" or (recipe.method == "pdpo" and users.user_text):
        pairs = with_user_text(pairs)
    user_tokens = 0 if recipe.method in WITHOUT_USERS else users.num_tokens
    longest = require_lengths(tokenizer, pairs, args.max_length, name)
    context = context_of(config) or math.inf
    if longest + user_tokens > context:
        said = f"the longest pair of the {name} set has {longest} tokens and, with {user_tokens} user tokens, exceeds"
        raise ValueError(f"{said} the model's context of {context}. `-p max_tokens` in notebook 01 leaves it out.")


def fits_a_head(pairs: Dataset, rank: int) -> bool:
    """Whether `pairs` are of more than `rank` users. Raises `ValueError` if they are, but of fewer than 5 prompts."""
    if len(set(pairs["user_id"])) <= rank:
        return False
    if (n := len(set(prompt_texts_of(pairs)))) < 5:
        raise ValueError(f"{n} different prompts, expected at least 5 to fit a head: leave user_start out.")
    return True


def head_coefficients(pairs: Dataset, embedder: Embedder, rank: int) -> dict[str, np.ndarray]:
    """Each user's place among the others, `[rank]`, by a low-rank head on frozen features of their pairs: principal
    coordinates of `a_u`, the first with variance 1; zeros where cross-validation finds nothing personal. Empty for
    fewer than `rank` + 1 users.

    Raises `ValueError` for more coordinates than features, and for fewer than 5 prompts.
    """
    if not fits_a_head(pairs, rank):
        return {}
    texts = prompt_texts_of(pairs)
    features = embed({"train": pairs}, [embedder], feature_cache())["train"]
    if rank > (d := features.chosen.shape[1]):
        raise ValueError(f"rank {rank}, but {embedder.name!r} has {d} features: choose a lower rank.")
    heads = fit_heads("low_rank", features.difference, pairs["user_id"], texts, features.scale, sizes=(rank,))
    if not heads.are_personal(features.difference, pairs["user_id"]):
        return {user: np.zeros(rank) for user in heads.users}
    own = np.array(list(heads.users.values()))
    axes, spread, _ = np.linalg.svd(own - own.mean(0), full_matrices=False)
    return dict(zip(heads.users, axes * spread / spread[0] * len(own) ** 0.5, strict=True))


if __name__ == "__main__":
    known, others = command(__doc__).parse_known_args()
    train(*read_recipe(Recipe, known.recipe), launch=others)
