"""`prlhf train config.yaml --alpha 0.3`: a recipe from TRL's way to give arguments, a YAML file and options over it."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from prlhf_kit import data
from prlhf_kit.models.embedded import EMBEDDED
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.recipe import Recipe, train

# arguments of `ModelConfig` that count here, and what `LoraConfig` calls them
ADAPTER = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
ADAPTER |= {"lora_target_modules": "target_modules", "use_rslora": "use_rslora", "use_dora": "use_dora"}
MODEL = {"model_name_or_path", "dtype", "use_peft", "load_in_4bit", *ADAPTER}


@dataclass
class ScriptArguments:
    """The pairs, and how users enter. All else is of `PersonalizedDPOConfig` and of TRL's `ModelConfig`.

    The two dicts can be given in the file only.
    """

    dataset_name: str = field(default="", metadata={"help": "of `prlhf data list`, or a folder of prepared data"})
    dataset_path: str | None = field(default=None, metadata={"help": "local files in the dataset's own schema"})
    dataset_options: dict = field(default_factory=dict, metadata={"help": "the dataset's own"})
    method: str = field(default="pdpo", metadata={"help": "pdpo, or a control: dpo, dpo_text, pooled, random_users"})
    user_model: str = field(default="individual", metadata={"help": "individual, cluster or low_rank"})
    user_model_options: dict = field(default_factory=dict, metadata={"help": "its arguments, num_tokens for instance"})


def recipe_of(config: Path, options: list[str]) -> tuple[Recipe, ScriptArguments, str, str]:
    """The recipe that a YAML file and options over it describe, the script's arguments, model and output folder.

    What is not given is left to the recipe's own defaults, which are the only ones: `train_base` is "lora" with
    `use_peft`, "qlora" with `load_in_4bit` too, else "full".
    """
    kinds: tuple[Any, ...] = (ScriptArguments, PersonalizedDPOConfig, ModelConfig)
    usage = "prlhf train CONFIG.yaml [--NAME VALUE ...]"
    parser = TrlParser(kinds, allow_abbrev=False, prog="prlhf train", usage=usage)
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # so that what is parsed is what was given
    content = yaml.safe_load(config.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{config} holds no mapping. Expected lines such as `alpha: 0.5`.")
    if unknown := parser.set_defaults_with_config(**content):
        raise ValueError(f"{config} has {', '.join(unknown[::2])}, which prlhf train does not know. Leave it out.")
    given = vars(parser.parse_args(options))
    script, settings, model = (
        {each.name: given[each.name] for each in fields(kind) if each.name in given} for kind in kinds
    )
    if without_effect := model.keys() - MODEL - settings.keys():
        raise ValueError(f"{', '.join(sorted(without_effect))} would have no effect here. Leave it out.")
    for name, where in (("dataset_name", script), ("output_dir", settings)):
        if not where.get(name):
            raise ValueError(f"{name} is missing: write it into {config}, or give --{name}.")
    out = settings.pop("output_dir")
    arguments = ScriptArguments(**script)
    quantised, adapted = model.get("load_in_4bit"), model.get("use_peft")
    recipe = Recipe(
        **{name: value for name, value in vars(arguments).items() if not name.startswith("dataset_")},
        train_base="qlora" if quantised else "lora" if adapted else "full",
        dtype=model.get("dtype", "auto"),
        adapter={ours: model[theirs] for theirs, ours in ADAPTER.items() if theirs in model},
        settings=settings,
    )
    return recipe, arguments, model.get("model_name_or_path", EMBEDDED), out


def command(args: argparse.Namespace) -> int:
    """`prlhf train`."""
    recipe, script, model, out = recipe_of(args.config, args.options)
    pairs, report = data.load_with_report(script.dataset_name, script.dataset_path, **script.dataset_options)
    print(report)
    evaluated = recipe.settings.get("eval_strategy", "no") != "no"
    train(recipe, model, pairs["train"], out, pairs["test_seen"] if evaluated else None)
    print(f"{Path(out).resolve()}, which kit.load_personalized reads")
    return 0
