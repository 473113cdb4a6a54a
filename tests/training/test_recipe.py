"""Trainings as recipes: what each way of training moves, several processes, and what is refused."""

import copy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets, load_from_disk
from safetensors.torch import load_file

import prlhf_kit as kit
from prlhf_kit.data.chat import PLAIN_TEMPLATE
from prlhf_kit.data.collect import changed
from prlhf_kit.evaluation import accuracy, user_models
from prlhf_kit.models import conditioning
from prlhf_kit.models.features import load_embedder
from prlhf_kit.models.logprobs import add_reference_logps, require_lengths, score_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.training.controls import LABELS, load_control, load_controls
from prlhf_kit.training.launch import read_recipe
from prlhf_kit.training.recipe import Recipe, build_trainer, head_coefficients, require, train
from prlhf_kit.training.reward_stages import RewardRecipe, build_reward_trainer
from prlhf_kit.training.sft import SFTRecipe, build_sft_trainer, train_sft
from training.conftest import SETTINGS as QUICK

CONFIGS = Path(__file__).parents[2] / "configs"
RATES = {"learning_rate": 1e-2, "user_learning_rate": 1e-1, "max_grad_norm": 0.0, "seed": 0}
SETTINGS = QUICK | RATES | {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def recipe(settings=None, **changed):
    plain = {"user_model_options": {"num_tokens": 3}, "adapter": {"target_modules": ["q_proj", "v_proj"]}}
    return Recipe(**{**plain, "settings": SETTINGS | (settings or {}), **changed})


@pytest.fixture
def reference(base, pairs, tokenizer):
    """The pairs with the log-probs of the base model."""
    return add_reference_logps(pairs, kit.load_model(base), tokenizer)


@pytest.fixture
def told(reference):
    """The same of users who say something of themselves."""
    return reference.remove_columns("user_text").add_column("user_text", [f"I am {u}." for u in reference["user_id"]])


def weights(folder):
    return {
        (path.name, name): value
        for path in sorted(Path(folder).glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same(one, other, atol=1e-6, rtol=1e-5):
    assert weights(one).keys() == weights(other).keys()
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(base, reference, tmp_path, monkeypatch, config):
    """gloo, on real processes: each takes half of a batch, and of held-out pairs. So do accumulated gradients."""
    if config != "ddp":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = train(recipe(EVALUATED), base, reference, tmp_path / "one", reference)
    half = EVALUATED | {"per_device_train_batch_size": 2}
    launch = ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", "2"]
    two = train(recipe(half), base, reference, tmp_path / "two", reference, launch)
    train(recipe(half | {"gradient_accumulation_steps": 2}), base, reference, tmp_path / "parts", reference)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert_same(tmp_path / "one", tmp_path / "parts")
    assert two["loss"].dropna().tolist() == pytest.approx(one["loss"].dropna().tolist(), abs=1e-5)
    a, b = (pd.read_parquet(tmp_path / name / "user_metrics.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(a, b)
    told, model, _, out, _ = read_recipe(Recipe, tmp_path / "two-launched.json")  # all that the processes were told
    assert (model, out, told) == (base, str(tmp_path / "two"), recipe(half))


def test_a_bfloat16_base_trains_float32_adapters_and_users(base, reference, tmp_path):
    dtypes = ("float32", "bfloat16")
    one, other = (train(recipe(dtype=dtype), base, reference, tmp_path / dtype)["loss"].dropna() for dtype in dtypes)
    assert one.tolist() != other.tolist() == pytest.approx(one.tolist(), rel=0.05)
    assert {value.dtype for value in weights(tmp_path / "bfloat16").values()} == {torch.float32}


@pytest.mark.parametrize("train_base", ["lora", "full", "frozen"])
def test_what_is_trained_is_saved_and_resumed(base, reference, tokenizer, pairs, tmp_path, train_base):
    one, out = recipe(train_base=train_base), tmp_path / "out"
    train(one, base, reference, out)
    model, index = kit.load_personalized(out)
    assert index.user_ids == ["a", "b", "c"]
    untrained = kit.load_model(base)
    started = dict(untrained.named_parameters())
    now = {n.replace(".base_layer", ""): p for n, p in conditioning.causal_lm(model).named_parameters()}
    assert now.keys() > started.keys()
    moved = [name for name, p in started.items() if not torch.equal(p, now[name])]
    assert bool(moved) == (train_base == "full")
    assert any("lora" in name for name, _ in model.named_parameters()) == (train_base == "lora")
    with reference_of(model) as found:
        known = score_pairs(found, tokenizer, pairs).chosen_logp.tolist()
    assert known == pytest.approx(score_pairs(untrained, tokenizer, pairs).chosen_logp.tolist(), abs=1e-4)
    kit.save_personalized(model, index, tmp_path / "again")
    again, _ = kit.load_personalized(tmp_path / "again")
    scores = [score_pairs(m, tokenizer, pairs, index.rows(pairs["user_id"])).chosen_logp for m in (model, again)]
    assert scores[0].equals(scores[1])
    (tmp_path / "out-checkpoints").rename(tmp_path / "resumed-checkpoints")
    (tmp_path / "resumed-checkpoints" / "checkpoint-3" / "checkpoint_complete").unlink()
    train(one, base, reference, tmp_path / "resumed")
    assert_same(out, tmp_path / "resumed", atol=0, rtol=0)
    if train_base == "full":  # others load the folder as any model
        assert type(kit.load_model(str(out))) is type(untrained)


def test_controls_are_trained_and_scored(base, told, tokenizer, tmp_path):
    for method in ("pdpo", *LABELS):
        train(recipe({"max_steps": 1}, method=method), base, told, tmp_path / method)
    controls = list(load_controls(tmp_path, base))
    assert [c.label for c in controls] == list(LABELS.values())
    personal, index = kit.load_personalized(tmp_path / "pdpo")
    table = accuracy.ranked_by_method(personal, controls, tokenizer, index, told, told)
    assert {"P-DPO, user", *LABELS.values()} <= set(table.method)
    pooled, by_text = (controls[list(LABELS).index(name)] for name in ("pooled", "dpo_text"))
    assert pooled.score(tokenizer, told).chosen_logp.tolist() == pytest.approx(
        score_pairs(pooled.model, tokenizer, told, [1] * len(told)).chosen_logp.tolist()
    )
    silent = score_pairs(by_text.model, tokenizer, told).chosen_logp
    assert by_text.score(tokenizer, told).chosen_logp.tolist() != silent.tolist()
    with pytest.raises(kit.data.SchemaError, match="no control named as the folder 'pdpo'"):
        load_control(tmp_path / "pdpo", base)


def test_another_training_is_not_passed_off(base, reference, tmp_path):
    out = tmp_path / "out"
    first = train(recipe(), base, reference, out)
    assert first.equals(train(recipe(), base, reference, out))  # it is there
    for evaluation, settings in ((None, {"alpha": 0.9}), (reference, {})):
        with pytest.raises(ValueError, match="holds a training with other settings"):
            train(recipe(settings), base, reference, out, evaluation)
    with pytest.raises(ValueError, match=r"other settings: pairs \(pairs is '\w+' there"):
        train(recipe(), base, reference.select(range(8)), out)
    out.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="out-checkpoints holds a training with other settings: learning_rate"):
        train(recipe({"learning_rate": 0.5}), base, reference, out)


def test_a_training_resumes_in_its_second_epoch(base, reference, tmp_path):
    epochs = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 5, "eval_on_start": True, "alpha": 1.0}
    one = recipe(epochs | EVALUATED)
    train(one, base, reference, tmp_path / "out", reference)
    (tmp_path / "out-checkpoints").rename(tmp_path / "cut-checkpoints")
    (tmp_path / "cut-checkpoints" / "checkpoint-6" / "checkpoint_complete").unlink()
    train(one, base, reference, tmp_path / "cut", reference)
    assert_same(tmp_path / "out", tmp_path / "cut", atol=0, rtol=0)
    table = pd.read_parquet(tmp_path / "cut" / "user_metrics.parquet")
    assert not table.duplicated(["step", "mode", "user_id"]).any()
    assert set(table[table["mode"] == "eval"].step) == {0, 2, 4, 6}


def test_the_learning_curve_counts_the_pairs_of_training(base, reference, tmp_path):
    """Held-out pairs of one user only; 12 training pairs of three."""
    one = reference.filter(lambda row: row["user_id"] == "a").select(range(2))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train(recipe(EVALUATED | parts), base, reference, tmp_path / "out", one)
    assert not (tmp_path / "out" / "README.md").exists()  # PEFT's says nothing
    curve = user_models.learning_curve(tmp_path / "out")
    assert curve.step.tolist() == [2, 3]  # and the end, though 2 does not divide 3
    assert curve.k.tolist() == [3, 4]  # 8 and 12 pairs of three users
    assert curve.pairs.tolist() == [2, 2]


def test_users_start_where_a_head_puts_them(base, reference, tmp_path):
    options = {"user_model": "low_rank", "user_model_options": {"num_tokens": 3, "rank": 2}}
    trainer = build_trainer(recipe(**options, user_start="attributes"), base, reference, tmp_path / "out")
    own = conditioning.user_models(trainer.model)[-1].own.detach()
    found = head_coefficients(reference, load_embedder("attributes"), 2)
    assert sorted(found) == ["a", "b", "c"]
    for user, coefficients in found.items():
        assert own[trainer.user_index.row(user)].tolist() == pytest.approx(coefficients.tolist(), rel=1e-5)
    assert np.var([found[user][0] for user in found]) == pytest.approx(1)
    assert own[0].tolist() == [0, 0]
    alike = concatenate_datasets([changed(reference, lambda _, user=user: {"user_id": user}) for user in "abc"])
    found = head_coefficients(alike, load_embedder("attributes"), 2)  # everybody prefers the same
    assert [own.tolist() for own in found.values()] == [[0, 0]] * 3
    assert head_coefficients(reference, load_embedder("attributes"), 3) == {}  # three users only
    few = reference.select(range(4))
    for refuses in (require, lambda told, model, pairs: build_trainer(told, model, pairs, tmp_path / "few")):
        with pytest.raises(ValueError, match="4 different prompts, expected at least 5"):
            refuses(recipe(**options, user_start="attributes"), base, few)
    options["user_model_options"]["rank"] = 3  # of three users: they start at random
    require(recipe(**options, user_start="attributes"), base, few)


@pytest.mark.parametrize(
    ("match", "settings", "change"),
    [
        ("train_base='half'", {}, {"train_base": "half"}),
        pytest.param("needs a GPU", {}, {"train_base": "qlora"}, marks=pytest.mark.skipif("torch.cuda.is_available()")),
        ("method='ppo'", {}, {"method": "ppo"}),
        ("nothing would be trained", {}, {"train_base": "frozen", "method": "dpo"}),
        ("does not divide per_device_train_batch_size=4", {"pairs_per_row": 3, "per_device_train_batch_size": 4}, {}),
        ("is for user_model='low_rank' only", {}, {"user_start": "attributes"}),
        ("12 of 12 pairs have no user_text", {}, {"user_model_options": {"num_tokens": 3, "user_text": True}}),
        ("ld_alpha=0.5 weights them by token", {"ld_alpha": 0.5}, {}),
        ("12 of 12 pairs of the train set are longer than max_length=30", {"max_length": 30}, {}),
    ],
)
def test_what_is_refused(base, reference, tmp_path, match, settings, change):
    with pytest.raises(ValueError, match=match):
        train(recipe(settings, **change), base, reference, tmp_path / "out")


def test_too_long_pairs_are_known_before_the_reference_is_computed(base, told, tokenizer, tmp_path):
    """With the users' words, where they are put into the prompts."""
    bare = told.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    with pytest.raises(ValueError, match="the reference does not see the users' words"):
        train(recipe(user_model_options={"user_text": True}), base, bare, tmp_path / "out")
    longest = require_lengths(tokenizer, bare, None)
    fits = {"max_length": longest}
    for one in (recipe(fits), recipe(fits, method="pooled")):
        require(one, base, bare)
    said = f"pairs of the train set are longer than max_length={longest}: `-p max_length .*`-p max_tokens {longest}`"
    for method, options in (("dpo_text", {}), ("pdpo", {"user_text": True})):
        with pytest.raises(ValueError, match=said):
            require(recipe(fits, method=method, user_model_options=options), base, bare)
    with pytest.raises(ValueError, match=r"with 240 user tokens, exceeds the model's context of 256"):
        require(recipe(user_model_options={"num_tokens": 240}), base, bare)


def test_pairs_that_only_may_be_read(base, pairs, tmp_path, monkeypatch):
    """`datasets` would write its caches beside them."""
    pairs.save_to_disk(tmp_path / "pairs")
    before = sorted((tmp_path / "pairs").iterdir())
    monkeypatch.setattr("prlhf_kit.training.launch.os.access", lambda *_: False)
    shared = load_from_disk(tmp_path / "pairs")
    train(recipe({"max_steps": 1}), base, shared, tmp_path / "out", shared)
    quick = {"max_steps": 1, "report_to": "none", "use_cpu": True}
    train_sft(SFTRecipe(settings=quick, adapter={"target_modules": ["q_proj"]}), base, shared, tmp_path / "sft")
    assert sorted((tmp_path / "pairs").iterdir()) == before


def test_a_failed_launch_says_why(reference, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no model is called nowhere\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))  # in place of accelerate
    with pytest.raises(RuntimeError, match=r"ended with 3\. It said:\nno model is called nowhere"):
        train(recipe(), "nowhere", reference, tmp_path / "out", launch=["--num_processes", "1"])
    _, model, pairs, _, _ = read_recipe(Recipe, tmp_path / "out-launched.json")
    assert (model, pairs[:]) == ("nowhere", reference[:])


@pytest.mark.parametrize(
    ("build", "kind"),
    [(build_trainer, Recipe), (build_sft_trainer, SFTRecipe), (build_reward_trainer, RewardRecipe)],
)
def test_a_tokenizer_of_its_own(base, pairs, tokenizer, tmp_path, build, kind):
    other = copy.deepcopy(tokenizer)
    other.chat_template = PLAIN_TEMPLATE
    other.save_pretrained(tmp_path / "other")
    settings = {"use_cpu": True, "report_to": "none"}
    one = kind(tokenizer=str(tmp_path / "other"), adapter={"target_modules": ["q_proj"]}, settings=settings)
    assert build(one, base, pairs, tmp_path / "out").processing_class.chat_template == PLAIN_TEMPLATE
