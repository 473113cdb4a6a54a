"""P-DPO against the numbers of P-RLHF's code: texts, user vectors, log-probabilities, loss and gradients."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file

import prlhf_kit as kit
from authors.golden import HERE, fill, golden, language_model, load_tokenizer
from prlhf_kit.data.schema import record
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.user_models import UserModel

GOLD = golden("pdpo.json")
ROWS = [pair["user_row"] for pair in GOLD["pairs"]]


@pytest.fixture(scope="module", params=list(GOLD["cases"]))
def setting(request, tmp_path_factory):
    """A trainer that holds the authors' user model and adapter, its batch of all four pairs, and the expected."""
    case, hyper = GOLD["cases"][request.param], GOLD["hyper"]
    tensors = load_file(HERE / case["tensors"])
    model, tokenizer = language_model(), load_tokenizer()
    words = model.get_input_embeddings()
    where = {"num_tokens": hyper["num_tokens"], "after_bos": True}  # this tokenizer writes no BOS by itself
    if case["kind"] == "cluster":
        users = kit.ClusterUserModel(4, words, clusters=hyper["clusters"], **where)
    else:
        users = kit.IndividualUserModel(4, words, add_generic_user=case["add_generic_user"], **where)
    kit.condition(model, users)
    pairs = Dataset.from_list(
        [
            record(f"p{i}", pair["user"], pair["prompt"], pair["chosen"], pair["rejected"])
            for i, pair in enumerate(GOLD["pairs"])
        ]
    )
    args = kit.PersonalizedDPOConfig(
        str(tmp_path_factory.mktemp("pdpo")),
        alpha=hyper["alpha"],
        beta=hyper["beta"],
        per_device_train_batch_size=4,
        max_length=None,
        report_to="none",
        use_cpu=True,
    )
    lora = LoraConfig(
        r=hyper["lora_r"],
        lora_alpha=hyper["lora_alpha"],
        lora_dropout=hyper["lora_dropout"],
        target_modules=hyper["lora_targets"],
    )
    index = kit.UserIndex(["ann", "bob", "cy"])
    trainer = kit.PersonalizedDPOTrainer(model, args, pairs, None, tokenizer, index, lora)
    [users] = [
        module
        for module in trainer.model.modules()
        if isinstance(module, UserModel) and any(p.requires_grad for p in module.parameters())
    ]
    fill(users, tensors)
    adapter = {}
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            key = name.replace("base_model.model.model.", "lora.").replace(".default.weight", "")
            adapter[key] = parameter
            with torch.no_grad():
                parameter.copy_(tensors[key])
    data = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer._prepare_inputs(trainer.data_collator(data))
    return SimpleNamespace(
        case=case,
        tensors=tensors,
        tokenizer=tokenizer,
        pairs=pairs,
        trainer=trainer,
        users=users,
        adapter=adapter,
        data=data,
        batch=batch,
    )


def test_token_ids(setting):
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert [row[name] for row in setting.data] == [pair[name] for pair in GOLD["pairs"]]


def test_user_vectors(setting):
    found = setting.users(torch.arange(4)).detach()
    torch.testing.assert_close(found, setting.tensors["user_vectors"], atol=1e-6, rtol=0)


def test_log_probabilities_of_the_policy(setting):
    """Every pair for its user and for the generic user."""
    logps = setting.case["logps"]
    near = {"abs": 1e-5, "rel": 5e-7}  # sums reach 75 nats, where one step of float32 is 8e-6
    for rows, suffix in ((ROWS, ""), ([0] * 4, "_generic")):
        found = score_pairs(setting.trainer.model, setting.tokenizer, setting.pairs, rows)
        assert found.chosen_logp.tolist() == pytest.approx(logps[f"policy_chosen{suffix}"], **near)
        assert found.rejected_logp.tolist() == pytest.approx(logps[f"policy_rejected{suffix}"], **near)


def test_log_probabilities_of_the_reference(setting):
    """The base model without adapter and without user vectors."""
    with torch.no_grad():
        chosen, rejected = setting.trainer.compute_ref_log_probs(setting.trainer.model, dict(setting.batch))[:2]
    logps = setting.case["logps"]
    assert chosen.tolist() == pytest.approx(logps["reference_chosen"], abs=1e-5)
    assert rejected.tolist() == pytest.approx(logps["reference_rejected"], abs=1e-5)


@pytest.mark.parametrize(("alpha", "part"), [(None, "loss"), (1.0, "loss_user"), (0.0, "loss_generic")])
def test_loss_and_its_parts(setting, alpha, part, monkeypatch):
    if alpha is not None:
        monkeypatch.setattr(setting.trainer.args, "alpha", alpha)
    loss = setting.trainer.compute_loss(setting.trainer.model, dict(setting.batch))
    assert loss.item() == pytest.approx(setting.case[part], abs=2e-6)


def test_gradients(setting):
    trainer, users, tensors = setting.trainer, setting.users, setting.tensors
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, dict(setting.batch)).backward()
    if setting.case["kind"] == "cluster":
        # the kit keeps user weights divided by SCALE
        found = {"centres": users.centres.grad, "user_weights": users.own.grad / users.SCALE}
    else:
        found = {"users": users.own.grad.clone()}
        if users.generic is not None:
            found["users"][0] = users.generic.grad
    found |= {name: parameter.grad for name, parameter in setting.adapter.items()}
    wanted = {name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, wanted[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
