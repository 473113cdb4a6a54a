"""P-DPO with every user model: loss and gradients against the paper's equation, metrics a user, sampling, controls."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from test_pdpo import make_trainer

import prlhf_kit as kit
from prlhf_kit.models.conditioning import ATTRIBUTE
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.controls import pooled, random_users

OPTIONS = {"individual": {}, "cluster": {"clusters": 2}, "low_rank": {"rank": 2}}


def conditioned(make_tiny, kind, architecture="llama"):
    model = make_tiny(architecture)
    table = USER_MODELS[kind](4, model.get_input_embeddings().weight, 3, **OPTIONS[kind])
    with torch.no_grad():
        table.own += 0.5 * torch.randn(table.own.shape, generator=torch.Generator().manual_seed(7))
    return kit.condition(model, table)


def paper_loss(model, tokenizer, pairs, rows, alpha, beta):
    """P-RLHF's P-DPO loss, one text at a time, nothing shared, from the equation: no hook, no TRL, no padding.

    L = -alpha log s(beta [r(y+|x,u) - r(y-|x,u)]) - (1-alpha) log s(beta [r(y+|x,u_0) - r(y-|x,u_0)]), where
    r(y|x,u) = log pi(y|x,u) - log pi_ref(y|x).
    """
    base = model.get_base_model()
    table = base.get_submodule(f"{ATTRIBUTE}.modules_to_save.default")
    embed = base.get_input_embeddings()

    def e(row):
        if type(table).__name__ == "ClusterUserModel":
            w = 10 * table.own[row]
            weights = torch.exp(w) / torch.exp(w).sum()
            return sum(weights[k] * table.centres[k] for k in range(len(weights)))
        if type(table).__name__ == "LowRankUserModel":
            parts = [table.own[row, r] * table.basis[r] for r in range(len(table.basis))]
            return table.generic + (0 if row == 0 else sum(parts))
        return table.generic + (0 if row == 0 else table.own[row])

    def log_pi(pair, response, row):
        ids = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(pair["prompt"] + pair[response], return_dict=True)["input_ids"]
        words = embed(torch.tensor(whole))
        front = words[:0] if row is None else e(row)
        logits = base(inputs_embeds=torch.cat([front, words])[None]).logits[0, len(front) :]
        return sum(logits[t - 1].log_softmax(-1)[whole[t]] for t in range(len(ids), len(whole)))

    def margin(pair, row):
        with torch.no_grad(), model.disable_adapter():
            reference = log_pi(pair, "chosen", None) - log_pi(pair, "rejected", None)
        return log_pi(pair, "chosen", row) - log_pi(pair, "rejected", row) - reference

    total = 0
    for pair, row in zip(pairs, rows, strict=True):
        for weight, who in ((alpha, row), (1 - alpha, 0)):
            total = total - weight * torch.log(torch.sigmoid(beta * margin(pair, who)))
    return total / len(pairs)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", list(OPTIONS))
def test_loss_and_gradients_equal_the_papers_equation(make_tiny, tokenizer, pairs, tmp_path, kind, alpha, architecture):
    pairs = pairs.select(range(4))
    trainer = make_trainer(conditioned(make_tiny, kind, architecture), tokenizer, pairs, tmp_path, architecture,
                           alpha=alpha, beta=0.1)  # fmt: skip
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    model = trainer.model.eval()  # no dropout
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rows = trainer.user_index.rows(pairs["user_id"])
    expected = paper_loss(model, tokenizer, pairs, rows, alpha, 0.1)
    wanted = torch.autograd.grad(expected, [p for _, p in named], allow_unused=True)
    loss = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    moved = 0
    for (name, p), a, b in zip(named, found, wanted, strict=True):
        a, b = (torch.zeros_like(p) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        moved += b.abs().max() > 1e-6
    assert moved > 2


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_what_is_shared_and_what_is_a_users_own(make_tiny, tokenizer, pairs, tmp_path, kind):
    trainer = make_trainer(conditioned(make_tiny, kind), tokenizer, pairs, tmp_path, user_weight_decay=0.2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    groups = {id(p): g for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in trainer.model.named_parameters():
        if p.requires_grad and ATTRIBUTE in name:
            slow = name.endswith("generic")
            assert groups[id(p)]["initial_lr"] == (1e-3 if slow else 1e-2)
            assert slow or groups[id(p)]["weight_decay"] == 0.2
            assert not torch.equal(p, before[name])
    trainer.save_model()
    saved = kit.UserIndex.load(tmp_path)[1]
    assert saved["user_model"] == USER_MODELS[kind].__name__
    assert saved["options"].items() >= OPTIONS[kind].items()


def test_user_metrics_are_a_table_and_survive_a_resume(make_tiny, tokenizer, pairs, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, **options)
    whole.train()
    logged = [name for entry in whole.state.log_history for name in entry]
    assert "users/worst" in logged
    spread = {name for name in logged if name.startswith("users/")}  # thousands of users: still five numbers
    assert spread == {"users/mean", "users/worst", "users/p10", "users/std", "users/seen"}
    table = pd.read_parquet(tmp_path / "checkpoint-4" / "user_metrics.parquet")
    assert set(table.user_id) == {"a", "b", "c"}
    assert table.pairs.sum() == 16
    assert table.groupby("step").pairs.sum().tolist() == [4, 4, 4, 4]
    resumed = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.user_metrics == whole.user_metrics


def test_controls_take_the_users_away(pairs):
    one = pooled(pairs)
    assert set(one["user_id"]) == {"everyone"}
    assert one["chosen"] == pairs["chosen"]
    names = random_users(pairs, seed=1)["user_id"]
    assert names != list(pairs["user_id"])
    assert Counter(names) == Counter(pairs["user_id"])
    assert names == random_users(pairs, seed=1)["user_id"] != random_users(pairs, seed=2)["user_id"]
    assert np.mean([a == b for a, b in zip(names, pairs["user_id"], strict=True)]) < 0.8
