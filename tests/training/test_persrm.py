"""PAD's personalised reward model: what is trained, what stays, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_tiny
from datasets import Dataset, load_from_disk
from peft import PeftModel
from safetensors.torch import load_file, save_file

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.decoding.guides import ImplicitReward
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.preference_head import HEAD, attach_head
from prlhf_kit.training.persrm import PersRMRecipe, load_persrm, train_persrm
from training.conftest import SETTINGS

SHORT, LONG = "Short answers, please.", "Tell me everything at length."
FAST = SETTINGS | {"learning_rate": 1e-2, "num_train_epochs": 2, "max_steps": -1}


@pytest.fixture(scope="module")
def wishes():
    """The same prompts and responses, ranked by two preferences in opposite ways."""
    rows = []
    for i in range(8):
        brief, full = "No.", f"Well, let me tell you all about number {i} and more."
        rows.append(record(f"s{i}", "ann", f"Question {i}?", brief, full, SHORT))
        rows.append(record(f"l{i}", "bob", f"Question {i}?", full, brief, LONG))
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def recipe(tokenizer, wishes, tmp_path_factory):
    """A training that is done; tests only read it."""
    folder = tmp_path_factory.mktemp("persrm")
    build_tiny("llama", len(tokenizer)).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    adapter = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    recipe = PersRMRecipe(str(folder / "lm"), str(folder / "persrm"), backbone=FAST, head=FAST, adapter=adapter)
    assert set(train_persrm(recipe, wishes)) == {"backbone", "head"}
    return recipe


def test_two_stages(recipe, wishes, tokenizer):
    out, stages = Path(recipe.out), Path(recipe.out + "-stages")
    first, joined = (load_file(folder / "adapter_model.safetensors") for folder in (stages / "backbone", out))
    heads = [key for key in first if HEAD in key]
    weight = next(first[key] for key in heads if key.endswith("weight"))
    assert torch.equal(weight, torch.eye(len(weight)))  # stage 1 leaves the head the identity
    assert not any(first[key].any() for key in heads if key.endswith("bias"))
    for key in first:
        assert torch.equal(first[key], joined[key]) == (key not in heads)  # stage 2 changes the head alone
    model = load_persrm(out)
    reward = ImplicitReward(kit.PAD(model), tokenizer, batch_size=5)
    chosen, rejected = (reward.score(wishes["prompt"], wishes[c], wishes["user_text"]) for c in ("chosen", "rejected"))
    assert (chosen > rejected).float().mean() > 0.9
    # the reference of stage 2 is the stage-1 backbone, that of stage 1 the model before; neither sees preferences
    backbone = PeftModel.from_pretrained(attach_head(kit.load_model(recipe.model)), stages / "backbone").eval()
    for name, reference in (("head", backbone), ("backbone", kit.load_model(recipe.model))):
        unseen = score_pairs(reference, tokenizer, wishes)
        [folder] = stages.glob(f"pairs-{name}-*")
        for side in ("chosen", "rejected"):
            stored = load_from_disk(str(folder))[f"ref_{side}_logps"]
            assert stored == pytest.approx(unseen[f"{side}_logp"].tolist(), abs=1e-3)
    row = kit.PAD(model).rows(0, wishes[0]["prompt"], SHORT, tokenizer)[0][0]
    assert tokenizer.decode(row.ids).count(recipe.wording.format(SHORT)) == 1  # as in training
    # nothing passes for another training
    with pytest.raises(ValueError, match="holds a training with other settings: pairs"):
        train_persrm(recipe, wishes.select(range(8)))


def test_a_persrm_without_its_head_is_an_error(recipe, tmp_path):
    with pytest.raises(kit.ModelError, match="holds no whole PersRM"):
        load_persrm(tmp_path)
    shutil.copytree(recipe.out, tmp_path / "persrm")
    weights = tmp_path / "persrm" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(weights).items() if HEAD not in key}, weights)
    with pytest.raises(kit.ModelError, match="holds no whole PersRM"):
        load_persrm(tmp_path / "persrm")


def test_bad_recipes_and_pairs(base, wishes, tmp_path):
    with pytest.raises(ValueError, match=r"expected a text with one \{\}"):
        PersRMRecipe(base, str(tmp_path / "x"), wording="Be good.")
    with pytest.raises(ValueError, match="may stand at its end"):
        PersRMRecipe(base, str(tmp_path / "x"), wording="{prompt} {}")
    silent = wishes.map(lambda row, i: {"user_text": row["user_text"] if i else None}, with_indices=True)
    typo = {"head": {"learning_rat": 1.0}}
    for pairs, settings, error, message in (
        (silent, {}, ValueError, "1 of 16 pairs have no user_text"),
        (wishes.select([]), {}, ValueError, "no pairs to train on"),
        (wishes, typo, TypeError, "learning_rat"),  # before stage 1
    ):
        with pytest.raises(error, match=message):
            train_persrm(PersRMRecipe(base, str(tmp_path / "x"), **settings), pairs)
    assert not (tmp_path / "x-stages").exists()
