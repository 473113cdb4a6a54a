"""Personalised models on disk: users.json belongs to the weights beside it."""

import json

import pytest
import torch
from training.conftest import make_trainer

import prlhf_kit as kit
from prlhf_kit.models.reward_model import load_reward_model, new_reward_model, save_beside


def rotate(folder):
    file = folder / "users.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"user_ids": saved["user_ids"][1:] + saved["user_ids"][:1]}))


@pytest.mark.parametrize("whole", [False, True])
def test_rotated_users_are_found_out(base, make_tiny, tokenizer, pairs, tmp_path, whole):
    if whole:
        model = kit.load_model(base)
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
        kit.save_personalized(model, kit.UserIndex(["a", "b"]), tmp_path / "out")
    else:
        trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "out")
        trainer.save_model()
    kit.load_personalized(tmp_path / "out", base)
    rotate(tmp_path / "out")
    with pytest.raises(kit.ModelError, match=r"users\.json does not belong to the user model beside it"):
        kit.load_personalized(tmp_path / "out", base)


def test_a_reward_models_users_too(base, tmp_path):
    model = new_reward_model(base)
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    model.save_pretrained(tmp_path)
    save_beside(model, tmp_path, kit.UserIndex(["ann", "bob"]))
    load_reward_model(str(tmp_path))
    with torch.no_grad():
        model.user_model.own += 1  # other weights under the same names
    model.save_pretrained(tmp_path)
    with pytest.raises(kit.ModelError, match=r"users\.json does not belong"):
        load_reward_model(str(tmp_path))
