"""Personalised models on disk: users.json belongs to the weights beside it."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from training.conftest import make_trainer

import prlhf_kit as kit
from prlhf_kit.models.reward_model import load_reward_model, new_reward_model, save_beside
from prlhf_kit.models.saving import import_prlhf


def conditioned(model):
    return kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))


@pytest.mark.parametrize("kind", ["adapter", "whole", "reward"])
def test_rotated_users_are_found_out(base, make_tiny, tokenizer, pairs, tmp_path, kind):
    folder, index, load = tmp_path / "out", kit.UserIndex(["a", "b"]), partial(kit.load_personalized, base=base)
    if kind == "adapter":
        make_trainer(make_tiny(users=3), tokenizer, pairs, folder).save_model()
    elif kind == "whole":
        kit.save_personalized(conditioned(kit.load_model(base)), index, folder)
    else:
        model, load = conditioned(new_reward_model(base)), load_reward_model
        model.save_pretrained(folder)
        save_beside(model, folder, index)
    load(str(folder))
    file = folder / "users.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"user_ids": saved["user_ids"][1:] + saved["user_ids"][:1]}))
    with pytest.raises(kit.ModelError, match=r"users\.json does not belong to the user model beside it"):
        load(str(folder))


@pytest.mark.parametrize("kind", ["individual", "no_generic", "cluster"])
def test_an_adapter_of_p_rlhfs_own_trainer(base, tmp_path, kind):
    """Logits are those of a plain computation from the files: LoRA merged, user tokens between BOS and the rest."""
    draw = torch.Generator().manual_seed(0)
    model, d, ids, name = kit.load_model(base), 32, torch.tensor([[1, 7, 8, 9]]), "model.layers.1.self_attn.q_proj"
    a, b = torch.randn(4, d, generator=draw), torch.randn(d, 4, generator=draw)
    lora = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    if kind == "cluster":  # three users, two clusters of two tokens
        table = torch.randn(4, d, generator=draw)
        weights = torch.randn(4, 2, generator=draw)
        own = {"cluster_embedding": table, "user_weight": weights}
        users = [sum(w * table[2 * k : 2 * k + 2] for k, w in enumerate(row.softmax(0))) for row in weights]
    else:
        table = torch.randn(8, d, generator=draw)
        own, users = {"user_embedding": table}, list(table.split(2))
        if kind == "individual":
            users = [users[0], *(users[0] + user for user in users[1:])]
    tensors = lora | {f"user_model.{key}.weight": value for key, value in own.items()}
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.mkdir()
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()}, theirs / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8}
    config |= {"target_modules": ["q_proj"], "modules_to_save": ["user_embedding", "cluster_embedding", "user_weight"]}
    config["layers_to_transform"] = [1]
    (theirs / "adapter_config.json").write_text(json.dumps(config))
    import_prlhf(theirs, out, num_tokens=2, add_generic_user=kind != "no_generic")
    found, index = kit.load_personalized(out)
    assert index.user_ids == ["1", "2", "3"]
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").add_(8 / 4 * b @ a)
        words = model.get_input_embeddings()(ids)[0]
        for row, user in enumerate(users):
            wanted = model(inputs_embeds=torch.cat([words[:1], user, words[1:]])[None]).logits[:, [0, 3, 4, 5]]
            logits = found(input_ids=ids, user_rows=torch.tensor([row])).logits
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(kit.ModelError, match=r"expected user_embedding \[3 \* 2, d\], or"):
        import_prlhf(theirs, out, user_ids=["ann", "bob"], num_tokens=2)
