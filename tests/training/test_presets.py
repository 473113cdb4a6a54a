"""Presets: whole, and of classes that take them."""

import inspect
import json

import pytest
from peft import LoraConfig
from transformers import GenerationConfig
from trl import SFTConfig

import prlhf_kit as kit
from prlhf_kit import cli
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.launch import read_recipe
from prlhf_kit.training.presets import PRESETS, made_for, preset
from prlhf_kit.training.recipe import Recipe, sft_of
from prlhf_kit.training.reward_stages import RewardRecipe
from prlhf_kit.training.sft import SFTRecipe

CLASSES = {
    "Recipe": (Recipe, kit.PersonalizedDPOConfig),
    "SFTRecipe": (SFTRecipe, SFTConfig),
    "RewardRecipe": (RewardRecipe, PersonalizedRewardConfig),
    "PersRMRecipe": (None, kit.PersonalizedDPOConfig),
}


@pytest.mark.parametrize("name", [name for name in PRESETS if made_for(name) in CLASSES])
def test_each_builds_its_class(name, tmp_path):
    found, (kind, config) = preset(name), CLASSES[made_for(name)]
    if kind is not None:
        kind(**found)
    config(**{"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, **found["settings"]})
    if found.get("adapter"):
        LoraConfig(**found["adapter"])


def test_settings_of_decoding_are_taken():
    known = {*inspect.signature(kit.GuidedDecoder.__init__).parameters, *vars(GenerationConfig())}
    assert {*preset("pad"), *preset("args")} <= known


def test_a_recipe_file_names_one(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "pairs")
    file = tmp_path / "recipe.json"
    given = {"preset": "compo_dpo", "settings": {"max_length": 64}, "template": "", "sft": {"preset": "compo_sft"}}
    file.write_text(json.dumps({**given, "model": "base"}))
    with pytest.raises(ValueError, match=r"recipe\.json lacks pairs, out, expected"):
        read_recipe(Recipe, file)
    file.write_text(json.dumps({**given, "model": "base", "pairs": str(tmp_path / "pairs"), "out": "there"}))
    found, model, read, out, _ = read_recipe(Recipe, file)
    assert (model, read[:], out) == ("base", pairs[:], "there")
    assert found.settings == preset("compo_dpo")["settings"] | {"max_length": 64}
    assert found.adapter == preset("compo_dpo")["adapter"]
    assert sft_of(found) == SFTRecipe(**preset("compo_sft", template=""))
    with pytest.raises(ValueError, match=r"the preset compo_dpo is for a Recipe, but .* is read as a SFTRecipe"):
        read_recipe(SFTRecipe, file)
    with pytest.raises(ValueError, match=r"no preset 'prlhf_tdlr'\. Did you mean 'prlhf_tldr'"):
        preset("prlhf_tdlr")


def test_they_are_printed(capsys):
    assert cli.main(["presets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in listed] == list(PRESETS)
    assert cli.main(["presets", "prlhf_tldr"]) == 0
    assert "beta: 0.5                           # [s]" in capsys.readouterr().out
    assert cli.main(["presets", "prlhf_tdlr"]) == cli.EXIT_USAGE
