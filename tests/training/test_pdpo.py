"""P-DPO on tiny models: the loss against the paper's formula, what moves, what is refused, what is saved."""

import numpy as np
import pytest
import torch
from conftest import TARGETS, as_trained
from datasets import Dataset
from decoding.plain import summed
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import accuracy as compare
from prlhf_kit.models.conditioning import ATTRIBUTE
from prlhf_kit.models.tokenize import tokenize_completions
from prlhf_kit.models.user_models import USER_MODELS
from training.conftest import SETTINGS, make_trainer


def test_training_moves_users_and_adapter_only(make_tiny, tokenizer, pairs, tmp_path):
    pairs = pairs.filter(lambda row: row["user_id"] != "c")
    args = make_trainer(make_tiny(users=2), tokenizer, pairs, tmp_path, max_steps=4).args
    index, peft_config = kit.UserIndex(["a", "b", "c"]), LoraConfig(target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="1 users of the user index have no pair to train on, first 'c'"):
        trainer = kit.PersonalizedDPOTrainer(make_tiny(users=3), args, pairs, None, tokenizer, index, peft_config)
    assert peft_config.modules_to_save is None  # the caller's config is not changed
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    users = "base_model.model.user_model.modules_to_save.default."
    assert {n for n in moved if "lora_" not in n} == {f"{users}generic", f"{users}own"}
    assert any("lora_B" in n for n in moved)
    changed = (trainer.model.get_parameter(f"{users}own") != before[f"{users}own"]).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, False]  # nothing is added for the generic user; c has no pairs


def test_a_model_by_its_name(base, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = kit.PersonalizedDPOTrainer(model="lm", train_dataset=pairs, peft_config=LoraConfig(r=2))
    assert trainer.args.output_dir == "lm-P-DPO"
    table = trainer.model.get_base_model().user_model.modules_to_save["default"]
    assert (type(table), table.num_rows, table.num_tokens) == (kit.IndividualUserModel, 4, 10)
    trainer.train()
    trainer.save_model()
    assert kit.load_personalized("lm-P-DPO")[1].user_ids == ["a", "b", "c"]
    for personalized, kept in ((True, 4), (False, 1)):  # all weights trained; more users than have pairs
        args = kit.PersonalizedDPOConfig("out", personalized=personalized, use_cpu=True)
        index = kit.UserIndex(sorted(set(pairs["user_id"])))
        whole = kit.PersonalizedDPOTrainer("lm", args, train_dataset=pairs, user_index=index)
        assert len(whole.user_index) == kept
        assert all(p.requires_grad for p in whole.model.parameters())
    with pytest.raises(ValueError, match="train_dataset is missing"):
        kit.PersonalizedDPOTrainer("lm")


def test_metrics_of_the_two_passes_are_apart(make_tiny, tokenizer, pairs, tmp_path):
    model = make_tiny(users=3, offsets=0.5)
    trainer = make_trainer(model, tokenizer, pairs, tmp_path, evaluate=pairs, per_device_eval_batch_size=4)
    trainer.train()
    assert {"users/mean", "users/worst"} <= set(trainer.state.log_history[0])
    logs = trainer.evaluate()
    assert logs["eval_rewards/margins"] != logs["eval_generic/rewards/margins"]
    evaluated = [row for row in trainer.rows if row[1] == "eval"]
    assert [row[2] for row in evaluated] == ["a", "b", "c"]
    per_user = [accuracy for _, _, _, accuracy, _ in evaluated]
    assert logs["eval_users/worst"] == min(per_user)
    assert logs["eval_users/mean"] == pytest.approx(sum(per_user) / 3)
    assert sum(per_user) / 3 == pytest.approx(logs["eval_rewards/accuracies"])  # four pairs each


def test_vanilla_is_one_parameter_and_equals_trl(make_tiny, tokenizer, pairs, tmp_path):
    ours = make_trainer(make_tiny(), tokenizer, pairs, tmp_path / "ours", personalized=False)
    args = DPOConfig(str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, **SETTINGS)
    adapter = LoraConfig(target_modules=TARGETS["llama"])
    theirs = DPOTrainer(make_tiny(), args=args, train_dataset=pairs, processing_class=tokenizer, peft_config=adapter)
    losses = []
    for trainer in (ours, theirs):
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_refusals_at_construction(make_tiny, tokenizer, pairs, tmp_path):
    nobody = pairs.remove_columns("user_id")
    for users, train, more, message in (
        (0, pairs, {}, "would ignore the user silently"),
        (3, nobody, {}, "the train dataset has no column 'user_id'"),
        (3, pairs, {"evaluate": nobody}, "the eval dataset has no column 'user_id'"),
        (5, pairs, {}, "user model has 6 rows"),
        (3, pairs, {"use_liger_kernel": True}, "liger"),
        (3, pairs, {"alpha": 1.5}, r"alpha is 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(make_tiny(users=users), tokenizer, train, tmp_path, **more)
    args = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path).args
    wrapped = get_peft_model(make_tiny(users=3), LoraConfig(target_modules=["q_proj"], modules_to_save=["user_model"]))
    for model, index, message in ((wrapped, None, "wrapped by PEFT"), (make_tiny(users=1), ["a"], "first 'b'")):
        with pytest.raises(ValueError, match=message):
            kit.PersonalizedDPOTrainer(model, args, pairs, None, tokenizer, index and kit.UserIndex(index))
    with wrapped.disable_adapter(), pytest.raises(kit.ConditioningError, match="reference model is not personalised"):
        wrapped(input_ids=torch.tensor([[5]]), user_rows=torch.tensor([1]))


def test_long_pairs_are_counted_by_user_and_dropped_where_nothing_differs(make_tiny, tokenizer, pairs, tmp_path):
    def say(text):
        return [{"role": "assistant", "content": text}]

    far = "word " * 150  # the difference lies beyond max_length
    changes = {
        "p2": {"prompt": [{"role": "user", "content": far}]},
        "p3": {"chosen": say(far + "yes"), "rejected": say(far + "no")},
        "p4": {"chosen": say("yes " * 150)},
    }
    long = pairs.map(lambda row: changes.get(row["pair_id"], {}))
    with pytest.warns(UserWarning, match=r"pairs of the train set are longer .* by user: .*'a': 1"):
        trainer = make_trainer(make_tiny(users=3), tokenizer, long, tmp_path, max_length=120)
    assert trainer.dropped["train"] == {"c": 1, "a": 1}  # p4 is cut
    assert len(trainer.train_dataset) == 10
    with pytest.raises(kit.ConditioningError, match="exceeds the model's context of 256"):
        make_trainer(make_tiny(users=3), tokenizer, pairs.map(lambda _: {"chosen": say("a " * 400)}), tmp_path)


class OffsetsOnly(kit.IndividualUserModel):
    """A user model of one's own."""


def test_another_user_model_is_saved_and_loaded(base, tokenizer, pairs, tmp_path, monkeypatch):
    model = kit.load_model(base, device="cpu")
    kit.condition(model, OffsetsOnly(4, model.get_input_embeddings(), 3))
    trainer = make_trainer(model, tokenizer, pairs, tmp_path)
    trainer.train()
    trainer.save_model()
    with pytest.raises(kit.ConditioningError, match="trained with user_model=OffsetsOnly"):
        kit.load_personalized(tmp_path)
    monkeypatch.setitem(USER_MODELS, "offsets", OffsetsOnly)
    loaded, _ = kit.load_personalized(tmp_path)
    question = {"input_ids": torch.tensor([[5, 6, 7]]), "user_rows": torch.tensor([2])}
    with torch.no_grad():
        assert torch.equal(loaded(**question).logits, trainer.model.eval()(**question).logits)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(kit.ConditioningError, match="holds an adapter and a whole model"):
        kit.load_personalized(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "alpha", "precompute"),
    # what tests/authors do not have: other architectures, low rank, the reference computed before
    [("llama", 0.3, True), ("gpt2", 0.0, False), ("gpt_neox", 1.0, False)],
)
def test_loss_equals_the_papers_equation(make_tiny, tokenizer, pairs, tmp_path, architecture, alpha, precompute):
    """One text at a time, nothing shared: no TRL, no padding. Gradients: tests/authors, test_prompt_once."""
    pairs = pairs.select(range(3))
    options = {"alpha": alpha, "beta": 0.1, "precompute_ref_log_probs": precompute}
    model = make_tiny(architecture, users=3, offsets=0.5, kind="low_rank")
    trainer = make_trainer(model, tokenizer, pairs, tmp_path, architecture, **options)
    model = as_trained(trainer.model.eval(), 0.3)  # no dropout

    def loss(pair, row):
        _, *both = tokenize_completions(tokenizer, pair["prompt"], pair["chosen"], pair["rejected"])
        policy, reference = (
            np.subtract(*[summed(model, tokenizer, pair["prompt"], response, **how) for response in both])
            for how in ({"user": row}, {"adapter": False})
        )
        return np.log1p(np.exp(-0.1 * (policy - reference)))

    rows = trainer.user_index.rows(pairs["user_id"])
    wanted = [alpha * loss(pair, row) + (1 - alpha) * loss(pair, 0) for pair, row in zip(pairs, rows, strict=True)]
    found = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))
    assert found.item() == pytest.approx(np.mean(wanted), abs=1e-5)


@pytest.mark.parametrize("kind", ["cluster", "low_rank"])
def test_what_is_shared_and_what_is_a_users_own(make_tiny, tokenizer, pairs, tmp_path, kind):
    model = make_tiny(users=3, offsets=0.5, kind=kind)
    trainer = make_trainer(model, tokenizer, pairs, tmp_path, user_weight_decay=0.2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    groups = {id(p): g for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in trainer.model.named_parameters():
        if p.requires_grad and ATTRIBUTE in name:
            slow = name.endswith("generic")
            assert groups[id(p)]["initial_lr"] == (1e-3 if slow else 1e-2)
            assert slow or groups[id(p)]["weight_decay"] == 0.2
            assert not torch.equal(p, before[name])


def test_user_model_beats_the_generic_row_on_held_out_pairs(make_tiny, tokenizer, tmp_path):
    """Two opposite tastes, short and long: without users about one half can be right."""
    rows = []
    for i in range(60):
        texts = (f"{'Yes No Maybe'.split()[i % 3]}.", f"There is much to say of number {i}, and I like to say it.")
        rows.append(record(f"p{i}", "ab"[i % 2], f"Question {i // 2}?", *texts[:: 1 if i % 2 else -1]))
    train, test = Dataset.from_list(rows[:40]), Dataset.from_list(rows[40:])
    steps = {"num_train_epochs": 4, "max_steps": -1, "alpha": 1.0, "learning_rate": 1e-2, "user_learning_rate": 5e-2}
    adapter = LoraConfig(r=8, target_modules="all-linear", lora_alpha=16)
    trainer = make_trainer(make_tiny(users=2), tokenizer, train, tmp_path, adapter=adapter, **steps)
    trainer.train()
    ranked = compare.ranked_by_method(trainer.model.eval(), [], tokenizer, trainer.user_index, test, train)
    by_user = ranked.pivot_table(index="user_id", columns="method", values="value")
    assert by_user[compare.PERSONAL].min() >= 0.8  # both tastes, not one at the cost of the other
    assert by_user.mean()[compare.PERSONAL] - by_user.mean()[compare.GENERIC_ROW] >= 0.2
