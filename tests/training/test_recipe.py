"""Trainings as recipes: what each way of training moves, several processes, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import prlhf_kit as kit
from prlhf_kit.evaluation import accuracy, user_models
from prlhf_kit.models import conditioning
from prlhf_kit.models.logprobs import add_reference_logps, score_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.training.controls import LABELS, load_controls
from prlhf_kit.training.recipe import Recipe, build_trainer, train
from prlhf_kit.training.resume import fit

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe(make_tiny, tokenizer, pairs, tmp_path):
    model = make_tiny()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    add_reference_logps(pairs, model, tokenizer).save_to_disk(tmp_path / "pairs")
    return Recipe(
        model=str(tmp_path / "base"),
        pairs=str(tmp_path / "pairs"),
        out=str(tmp_path / "out"),
        user_model_options={"num_tokens": 3},
        adapter={"target_modules": ["q_proj", "v_proj"]},
        settings={
            "use_cpu": True,
            "report_to": "none",
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "seed": 0,
            "learning_rate": 1e-2,
            "user_learning_rate": 1e-1,
            "logging_steps": 1,
            "save_steps": 2,
            "max_grad_norm": 0.0,
            "alpha": 0.5,
        },
    )


def weights(folder):
    return {
        (path.name, name): value
        for path in sorted(Path(folder).glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same(one, other, atol=1e-6):
    assert weights(one).keys() == weights(other).keys()
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(recipe, tmp_path, monkeypatch, config):
    """gloo, on real processes: each takes half of every batch."""
    if config != "ddp":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = train(recipe)
    settings = recipe.settings | {"per_device_train_batch_size": 2}
    half = replace(recipe, out=str(tmp_path / "two"), settings=settings)
    two = train(half, ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", "2"])
    assert_same(recipe.out, half.out)
    assert two["loss"].dropna().tolist() == pytest.approx(one["loss"].dropna().tolist(), abs=1e-5)
    a, b = (pd.read_parquet(Path(r.out, "user_metrics.parquet")) for r in (recipe, half))
    pd.testing.assert_frame_equal(a, b)


def test_a_sharded_model_gives_the_same():
    """FSDP2 on two CPU processes, without accelerate, which turns it off there."""
    here = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sharded.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same" in done.stderr


def test_accumulated_gradients_equal_the_large_batch(recipe, tmp_path):
    train(recipe)
    settings = recipe.settings | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts = replace(recipe, out=str(tmp_path / "parts"), settings=settings)
    train(parts)
    assert_same(recipe.out, parts.out)


@pytest.mark.parametrize("train_base", ["lora", "full", "frozen"])
def test_what_is_trained_is_saved_and_resumed(recipe, tokenizer, pairs, tmp_path, train_base):
    recipe = replace(recipe, train_base=train_base)
    train(recipe)
    model, index = kit.load_personalized(recipe.out)
    assert index.user_ids == ["a", "b", "c"]
    base = kit.load_model(recipe.model)
    started = dict(base.named_parameters())
    now = {n.replace(".base_layer", ""): p for n, p in conditioning.causal_lm(model).named_parameters()}
    assert now.keys() > started.keys()
    moved = [name for name, p in started.items() if not torch.equal(p, now[name])]
    assert bool(moved) == (train_base == "full")
    assert any("lora" in name for name, _ in model.named_parameters()) == (train_base == "lora")
    scores = [score_pairs(model, tokenizer, pairs, index.rows(pairs["user_id"])).chosen_logp]
    with reference_of(model) as reference:
        assert score_pairs(reference, tokenizer, pairs).chosen_logp.tolist() == pytest.approx(
            score_pairs(base, tokenizer, pairs).chosen_logp.tolist(), abs=1e-4
        )
    # saved and loaded once more, and on its own checkpoint resumed: the same
    kit.save_personalized(model, index, tmp_path / "again")
    again, _ = kit.load_personalized(tmp_path / "again")
    scores.append(score_pairs(again, tokenizer, pairs, index.rows(pairs["user_id"])).chosen_logp)
    assert scores[0].equals(scores[1])
    resumed = replace(recipe, out=str(tmp_path / "resumed"))
    (tmp_path / "out-checkpoints").rename(tmp_path / "resumed-checkpoints")
    for path in (tmp_path / "resumed-checkpoints").glob("checkpoint-3"):
        (path / "checkpoint_complete").unlink()
    train(resumed)
    for name, value in weights(recipe.out).items():
        assert torch.equal(value, weights(resumed.out)[name]), name
    if train_base == "full":  # others load the folder as any model
        assert type(kit.load_model(recipe.out)) is type(base)


def test_a_four_bit_base(recipe, tokenizer, pairs, tmp_path):
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="needs a GPU and bitsandbytes"):
            replace(recipe, train_base="qlora")
        pytest.skip("QLoRA needs a GPU and bitsandbytes")
    size = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(recipe.model)
    pairs.save_to_disk(tmp_path / "plain")  # the reference has four bits as well
    settings = recipe.settings | {"use_cpu": False}
    recipe = replace(recipe, train_base="qlora", pairs=str(tmp_path / "plain"), settings=settings)
    trainer = build_trainer(recipe)
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    dtypes = {"user_model" in name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    fit(trainer, recipe.out)
    model, _ = kit.load_personalized(recipe.out)  # in front of the whole base
    one, two = (score_pairs(model, tokenizer, pairs, [row] * len(pairs)).chosen_logp for row in (1, 2))
    assert one.tolist() != two.tolist()


def test_controls_are_trained_and_scored(recipe, tokenizer, pairs, tmp_path):
    told = pairs.remove_columns("user_text").add_column("user_text", [f"I am {u}." for u in pairs["user_id"]])
    add_reference_logps(told, kit.load_model(recipe.model), tokenizer).save_to_disk(tmp_path / "told")
    for method in ("pdpo", *LABELS):
        train(replace(recipe, method=method, pairs=str(tmp_path / "told"), out=str(tmp_path / "runs" / method)))
    controls = list(load_controls(tmp_path / "runs", recipe.model))
    assert [c.label for c in controls] == list(LABELS.values())
    personal, index = kit.load_personalized(tmp_path / "runs" / "pdpo")
    table = accuracy.ranked_by_method(personal, controls, tokenizer, index, told, told)
    assert {"P-DPO, user", *LABELS.values()} <= set(table.method)
    pooled = controls[list(LABELS).index("pooled")]
    assert pooled.score(tokenizer, told).chosen_logp.tolist() == pytest.approx(
        score_pairs(pooled.model, tokenizer, told, [1] * len(told)).chosen_logp.tolist()
    )
    by_text = controls[list(LABELS).index("dpo_text")]
    assert (
        by_text.score(tokenizer, told).chosen_logp.tolist()
        != score_pairs(by_text.model, tokenizer, told).chosen_logp.tolist()
    )


def test_another_training_is_not_passed_off(recipe, pairs, tmp_path):
    train(recipe)
    train(recipe)  # it is there
    for change in (
        {"user_model": "cluster", "user_model_options": {"num_tokens": 3}},
        {"user_model_options": {"num_tokens": 3, "init": "normal"}},
        {"train_base": "frozen"},
        {"evaluation": recipe.pairs},
    ):
        with pytest.raises(ValueError, match="holds a training with other settings"):
            train(replace(recipe, **change))


def test_a_training_resumes_in_its_second_epoch(recipe, tmp_path):
    epochs = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 5, "eval_strategy": "steps", "eval_steps": 2}
    settings = recipe.settings | epochs | {"eval_on_start": True, "alpha": 1.0}
    whole = replace(recipe, settings=settings, evaluation=recipe.pairs)
    train(whole)
    cut = replace(whole, out=str(tmp_path / "cut"))
    (tmp_path / "out-checkpoints").rename(tmp_path / "cut-checkpoints")
    (tmp_path / "cut-checkpoints" / "checkpoint-6" / "checkpoint_complete").unlink()
    train(cut)
    for name, value in weights(whole.out).items():
        assert torch.equal(value, weights(cut.out)[name]), name
    tables = [pd.read_parquet(Path(one.out, "user_metrics.parquet")) for one in (whole, cut)]
    for table in tables:
        assert not table.duplicated(["step", "mode", "user_id"]).any()
    steps = [set(table[table["mode"] == "eval"].step) for table in tables]
    assert steps[0] == {0, 2, 4, 6}
    assert steps[1] - steps[0] <= {5}  # eval_on_start is also a resumed training's


def test_the_learning_curve_counts_the_pairs_of_training(recipe, pairs, tmp_path):
    """Held-out pairs of one user only; 12 training pairs of three."""
    one = pairs.filter(lambda row: row["user_id"] == "a").select(range(2))
    add_reference_logps(one, kit.load_model(recipe.model), kit.load_tokenizer(recipe.model)).save_to_disk(
        tmp_path / "one"
    )
    settings = recipe.settings | {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    train(replace(recipe, settings=settings, evaluation=str(tmp_path / "one")))
    curve = user_models.learning_curve(recipe.out)
    assert curve.step.tolist() == [2, 3]  # and the end, though 2 does not divide 3
    assert curve.k.tolist() == [3, 4]  # 8 and 12 pairs of three users
    assert curve.pairs.tolist() == [2, 2]
    train(replace(recipe, out=str(tmp_path / "blind")))
    with pytest.raises(ValueError, match="trained without evaluation"):
        user_models.learning_curve(tmp_path / "blind")


def test_the_users_words_beside_soft_tokens(recipe, tokenizer, pairs, tmp_path):
    """P-RLHF's textual information: in the policy's prompts, not in the reference's."""
    told = pairs.remove_columns("user_text").add_column("user_text", [f"I am {u}." for u in pairs["user_id"]])
    with_reference = add_reference_logps(told, kit.load_model(recipe.model), tokenizer)
    both = replace(recipe, user_model_options={"num_tokens": 3, "user_text": True}, pairs=str(tmp_path / "told"))
    told.save_to_disk(tmp_path / "told")
    with pytest.raises(ValueError, match="the reference does not see the users' words"):
        train(both)
    both = replace(both, pairs=str(tmp_path / "with_reference"))
    with_reference.save_to_disk(both.pairs)
    train(both)
    model, index = kit.load_personalized(both.out)
    assert conditioning.user_model_of(model).user_text
    rows = index.rows(told["user_id"])
    scores = score_pairs(model, tokenizer, told, rows)
    nothing_said = score_pairs(model, tokenizer, told.map(lambda _: {"user_text": None}), rows)
    assert scores.chosen_logp.tolist() != nothing_said.chosen_logp.tolist()
    table = accuracy.ranked_by_method(model, [], tokenizer, index, told, told)
    silent = told.map(lambda _: {"user_text": None})
    other = accuracy.ranked_by_method(model, [], tokenizer, kit.UserIndex([]), silent, told)
    # not told who asks, in words neither
    generic = table[table.method == accuracy.GENERIC_ROW].value.tolist()
    assert generic == other[other.method == accuracy.PERSONAL].value.tolist()
    adapted = kit.adapt(model, tokenizer, told.select(range(3)), steps=1, learning_rate=0.0)
    with reference_of(model) as reference:
        base = score_pairs(reference, tokenizer, told.select(range(1)))
    row = adapted.start[adapted.user_ids.index(told["user_id"][0])]
    own = score_pairs(model, tokenizer, told.select(range(1)), [row])
    margin = (own.chosen_logp - own.rejected_logp - base.chosen_logp + base.rejected_logp).iloc[0]
    expected = -torch.nn.functional.logsigmoid(torch.tensor(0.1 * margin)).item()
    assert adapted.history.set_index("user_id").loss[told["user_id"][0]] == pytest.approx(expected, abs=1e-4)


def test_what_is_refused_and_a_failed_launch(recipe, tmp_path):
    for change, match in (
        ({"train_base": "half"}, "train_base='half'"),
        ({"user_model": "none"}, "user_model='none'"),
        ({"method": "ppo"}, "no control 'ppo'"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(recipe, **change)
    with pytest.raises(ValueError, match="nothing would be trained"):
        train(replace(recipe, train_base="frozen", method="dpo"))
    with pytest.raises(RuntimeError, match=r"It said:(.|\n)*nowhere"):
        train(replace(recipe, pairs=str(tmp_path / "nowhere")), ["--num_processes", "1", "--cpu"])
    silent = replace(recipe, user_model_options={"num_tokens": 3, "user_text": True})
    with pytest.raises(ValueError, match="12 of 12 pairs have no user_text"):
        train(silent)
    with pytest.raises(ValueError, match="12 of 12 pairs have no user_text"):
        train(replace(recipe, method="dpo_text"))
    with pytest.raises(ValueError, match="brings sums over all tokens"):
        train(replace(recipe, settings=recipe.settings | {"ld_alpha": 0.5}))
    assert json.loads((tmp_path / "out-launched.json").read_text())["pairs"].endswith("nowhere")
