"""Soups: one adapter a preference, mixed by weights."""

import json

import pytest
import torch
from peft import PeftModel

import prlhf_kit as kit
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.training.recipe import Recipe
from prlhf_kit.training.soups import soup, train_adapters
from training.conftest import SETTINGS


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 40)[None]).logits


def test_a_soup_is_the_base_with_the_mean_of_the_updates(base, adapters):
    by_hand = kit.load_model(base)
    for name, weight in {"a": 0.3, "c": 0.7}.items():
        one = PeftModel.from_pretrained(kit.load_model(base), adapters[name]).base_model.model
        for path, layer in one.named_modules():
            if hasattr(layer, "get_delta_weight"):
                by_hand.get_submodule(path).weight.data += weight * layer.get_delta_weight("default")
    mixed = soup(kit.load_model(base), adapters, {"a": 0.3, "c": 0.7})
    torch.testing.assert_close(logits(mixed), logits(by_hand), atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in mixed.parameters())
    with pytest.raises(ValueError, match="bare base"):
        soup(mixed, adapters)


@pytest.mark.parametrize("weights", [{"a": 0.5, "c": 0.4}, {"a": float("nan")}, {}, {"ann": 1.0}])
def test_weights_that_are_refused(base, adapters, weights):
    with pytest.raises(ValueError, match=r"add up to 1|no adapter 'ann'"):
        soup(kit.load_model(base), adapters, weights)


@pytest.mark.parametrize("other", [{"base_model_name_or_path": "x"}, {"use_rslora": True}, {"modules_to_save": ["x"]}])
def test_adapters_that_are_refused(base, adapters, other):
    file = adapters["b"] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    with pytest.raises(ModelError, match=f"'b' has {next(iter(other))}"):
        soup(kit.load_model(base), adapters)


def test_each_adapter_is_trained_on_its_own_pairs(base, pairs, tmp_path):
    recipe = Recipe(method="dpo", adapter={"target_modules": ["q_proj", "v_proj"]}, settings=SETTINGS | {"seed": 1})
    folders = train_adapters(recipe, base, pairs, tmp_path)
    assert [path.name for path in folders.values()] == list(folders) == ["a", "b", "c"]
    own = pairs.filter(lambda row: row["user_id"] == "b")
    [alone] = train_adapters(recipe, base, own, tmp_path / "alone").values()
    files = [folder / "adapter_model.safetensors" for folder in (alone, folders["b"], folders["a"])]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
