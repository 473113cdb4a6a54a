"""`prlhf train`: a YAML file and options become a recipe, which trains."""

from pathlib import Path

import pytest

import prlhf_kit as kit
from prlhf_kit.cli import main
from prlhf_kit.training.command import recipe_of

CONFIGS = Path(__file__).parents[2] / "configs"


def test_options_stand_over_the_file_and_nothing_else_is_set():
    recipe, script, model, out = recipe_of(CONFIGS / "pdpo.yaml", ["--alpha", "0.3", "--no_share_prompt"])
    assert (recipe.settings["alpha"], recipe.settings["share_prompt"]) == (0.3, False)
    assert "weight_decay" not in recipe.settings
    assert recipe.adapter == {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    assert (recipe.train_base, recipe.user_model_options) == ("lora", {"num_tokens": 10})
    assert (script.dataset_name, model, out) == ("simulated", "meta-llama/Llama-3.2-1B-Instruct", "models/pdpo")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alhpa: 1.0", "has --alhpa, which prlhf train does not know"),
        ("bnb_4bit_quant_type: nf4", "bnb_4bit_quant_type would have no effect here"),
        ("dataset_name: ''", "dataset_name is missing"),
        ("method: dpo2", "expected one of pdpo, dpo"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, line, message):
    config = tmp_path / "c.yaml"
    config.write_text(f"output_dir: x\ndataset_name: simulated\n{line}\n")  # of two values the last one counts
    with pytest.raises(ValueError, match=message):
        recipe_of(config, [])


def test_it_trains(base, tmp_path, capsys):
    config = tmp_path / "few.yaml"
    config.write_text((CONFIGS / "pdpo.yaml").read_text().replace("pairs_per_user: 100", "pairs_per_user: 4"))
    words = ["train", str(config), "--model_name_or_path", base, "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--max_steps", "1", "--per_device_train_batch_size", "2"]) == 0
    assert f"{tmp_path}/out, which kit.load_personalized reads" in capsys.readouterr().out
    _, users = kit.load_personalized(str(tmp_path / "out"))
    assert len(users) > 2
