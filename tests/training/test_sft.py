"""SFT as the stage before DPO: what it imitates, and that DPO starts from exactly what it left."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, context_of, people_of, with_context
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import load_model
from prlhf_kit.models.logprobs import REFERENCE, add_reference_logps, score_pairs
from prlhf_kit.models.saving import reference_name, reference_of
from prlhf_kit.training.launch import read_recipe
from prlhf_kit.training.recipe import Recipe, after_sft, build_trainer, train
from prlhf_kit.training.sft import SFTRecipe, build_sft_trainer, contexts_of, preferred

ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
LOUD = {"learning_rate": 5e-2, "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"}  # moves weights
QUIET = LOUD | {"learning_rate": 1e-3, "max_steps": 1, "max_length": 120}


@pytest.fixture
def data():
    """Pairs of three communities; of a prompt's three pairs two have the same chosen response."""
    rows = []
    for i in range(12):
        user = f"r/{'abc'[i % 3]}"
        chosen = "Yes, do." if i < 8 else "Yes, very much."
        rows.append(record(f"p{i}", user, f"Question {i // 6}?", chosen, f"No{'!' * i}", f"I am {user}."))
    return Dataset.from_list(rows)


def sft(settings=None, **changed):
    return SFTRecipe(**{"adapter": ADAPTER, "settings": LOUD | (settings or {}), **changed})


def chained(**changed):
    return Recipe(**{"sft": {"settings": LOUD}, "adapter": ADAPTER, "settings": QUIET, **changed})


def logits(model, tokenizer):
    ids = tokenizer("Question 1? Yes, very much. No!", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_each_preferred_response_is_imitated_once(data):
    def texts(rows, response):
        columns = (rows["user_id"], rows["prompt"], rows[response])
        return [(u, p[0]["content"], r[0]["content"]) for u, p, r in zip(*columns, strict=True)]

    found = texts(preferred(data), "completion")
    assert len(found) == len(set(found)) < len(data)
    assert set(found) == set(texts(data, "chosen"))


def test_the_loss_is_on_responses_only_and_the_context_is_read(base, data, tmp_path, tokenizer):
    trainer = build_sft_trainer(sft(context="true"), base, data, tmp_path / "sft")
    for row, told in zip(trainer.train_dataset, preferred(data), strict=True):
        learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        hidden = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        assert tokenizer.decode(learned).startswith(told["completion"][0]["content"])
        assert f"community: {told['user_id']}." in tokenizer.decode(hidden)


@pytest.mark.parametrize("train_base", ["lora", "full"])
def test_dpo_starts_from_exactly_what_sft_left_and_has_it_as_reference(base, data, tmp_path, tokenizer, train_base):
    one, out, left = chained(train_base=train_base, context="true"), tmp_path / "dpo", "dpo-sft"
    scored = add_reference_logps(data, load_model(base), tokenizer)  # by another reference, which does not count
    start, sets, policy = after_sft(one, base, {"pairs": scored}, out)
    # what SFT left, loaded in the plain way, by transformers and PEFT alone
    plain = load_model(base) if train_base == "lora" else load_model(str(tmp_path / left))
    plain = PeftModel.from_pretrained(plain, tmp_path / left) if train_base == "lora" else plain
    wanted = logits(plain, tokenizer)
    assert (wanted - logits(load_model(base), tokenizer)).abs().max() > 0.1  # SFT did something
    trainer = build_trainer(replace(one, sft=None, context="none"), start, sets["pairs"], out, policy=policy)
    same = {"atol": 0, "rtol": 0} if train_base == "full" else {"atol": 2e-5, "rtol": 1e-5}  # merging rounds
    torch.testing.assert_close(logits(trainer.model, tokenizer), wanted, **same)
    by_sft = score_pairs(plain, tokenizer, with_context(data, Contexts("true", people_of(data))))
    found = trainer.train_dataset
    assert found[REFERENCE[0]][:] == pytest.approx(by_sft.chosen_logp.tolist(), abs=1e-3)
    assert found[REFERENCE[1]][:] == pytest.approx(by_sft.rejected_logp.tolist(), abs=1e-3)
    train(one, base, data, out)
    trained, _ = kit.load_personalized(out)
    assert not torch.allclose(logits(trained, tokenizer), wanted, atol=1e-4)
    with reference_of(trained) as reference:
        torch.testing.assert_close(logits(reference, tokenizer), wanted, **same)


def test_two_recipes_share_one_sft_stage(base, data, tmp_path):
    one = chained(sft={"settings": LOUD, "out": str(tmp_path / "first")}, method="dpo")
    train(one, base, data, tmp_path / "one")
    [weights] = (tmp_path / "first").glob("*.safetensors")
    written = weights.stat().st_mtime_ns
    train(one, base, data, tmp_path / "two")
    assert weights.stat().st_mtime_ns == written


def test_a_new_sft_model_is_not_passed_off_as_the_old_one(base, data, tmp_path):
    train(chained(), base, data, tmp_path / "dpo")
    for name in ("dpo-sft", "dpo-sft-checkpoints"):
        shutil.rmtree(tmp_path / name)
    other = chained(sft={"settings": LOUD | {"learning_rate": 1e-2}})
    with pytest.raises(ValueError, match=r"training with other settings: .*starts_from"):
        train(other, base, data, tmp_path / "dpo")
    with pytest.raises(ModelError, match="which has been trained anew since"):  # it would silently be another model
        kit.load_personalized(tmp_path / "dpo")


def test_what_a_model_was_told_is_read_again(base, data, tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text("For {community}.")
    one = chained(sft=None, context="random", context_seed=3, template=str(template), method="dpo")
    train(one, base, data, tmp_path / "dpo")
    again, own = context_of(tmp_path / "dpo", people_of(data)), contexts_of(one, data)
    for prompt, user in zip(data["prompt"], data["user_id"], strict=True):
        assert again.put(prompt, user) == own.put(prompt, user)
    assert context_of(base, {}).context == "none"
    template.write_text("Now for {community}.")
    with pytest.raises(SchemaError, match=r"has changed since .* it said \[\['system', 'For \{community\}.'\]\]"):
        context_of(tmp_path / "dpo", people_of(data))


@pytest.mark.parametrize("stages", [{"sft": None}, {}])
def test_choices_in_context_are_trained_on_and_told_again(base, data, tmp_path, stages):
    """Of the training pairs alone; a model that was trained is told other pairs' choices of people who are new."""
    one = chained(**stages, context="choices", choices=1, method="dpo", settings=QUIET | {"max_length": 250})
    data = data.select(range(4, 10))  # two users with two prompts, and one with one
    train(one, base, data, tmp_path / "dpo")
    again, own = context_of(tmp_path / "dpo", people_of(data), [data]), contexts_of(one, data)
    told = with_context(data, own)
    assert with_context(data, again)["prompt"][:] == told["prompt"][:]
    assert sorted(map(len, told["context_pairs"])) == [0, 0, 1, 1, 1, 1]
    new = [record(f"n{i}", "r/new", f"Another {i}?", "Yes.", "No.") for i in range(2)]
    [pair] = context_of(tmp_path / "dpo", {"r/new": None}, [Dataset.from_list(new)]).record(new[0]["prompt"], "r/new")[
        "context_pairs"
    ]
    assert pair == "n1"
    with pytest.raises(SchemaError, match="pass earlier"):
        context_of(tmp_path / "dpo", people_of(data))


def test_a_recipe_file_chains_both_stages(base, data, tmp_path):
    """With held-out pairs of somebody new, who get context and reference too."""
    data.save_to_disk(tmp_path / "pairs")
    rows = [record(f"t{i}", "r/new", f"Another {i}?", "Yes.", "No.", "I am new.") for i in range(4)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "held-out")
    folders = {"pairs": "pairs", "evaluation": "held-out", "out": "dpo"}
    chain = {"model": base, **{name: str(tmp_path / folder) for name, folder in folders.items()}}
    evaluated = {"eval_strategy": "steps", "eval_steps": 1}
    chain |= {"context": "user_text", "adapter": ADAPTER, "sft": {"settings": LOUD}, "settings": QUIET | evaluated}
    (tmp_path / "chain.json").write_text(json.dumps(chain))
    train(*read_recipe(Recipe, tmp_path / "chain.json"))
    model, index = kit.load_personalized(tmp_path / "dpo")
    assert index.user_ids == ["r/a", "r/b", "r/c"]
    with pytest.raises(ModelError, match="load_personalized"):  # an adapter with users is not merged
        load_model(str(tmp_path / "dpo"))
    for name in ("dpo", "dpo-sft"):
        assert json.loads((tmp_path / name / "context.json").read_text())["context"] == "user_text"
    named = json.loads((tmp_path / "dpo" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "dpo-sft") == reference_name(causal_lm(model))
    [kept] = tmp_path.glob("dpo-sft-evaluation-*")
    told = load_from_disk(kept)
    assert {prompt[0]["content"] for prompt in told["prompt"]} == {"I am new."}
    assert set(REFERENCE) <= set(told.column_names)
    assert "eval_rewards/accuracies" in pd.read_parquet(tmp_path / "dpo" / "history.parquet")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("12 of 12 pairs of the pairs set are longer", {"settings": QUIET | {"max_length": 20}}),
        (r"with 240 user tokens, exceeds the model's context", {"user_model_options": {"num_tokens": 240}}),
        ("lerning_rate", {"settings": QUIET | {"lerning_rate": 1}}),
        ("would both put users' words", {"method": "dpo_text", "context": "true"}),
        ("sft has context, which both stages share", {"sft": {"context": "true"}}),
        ("expected one of lora, qlora, full", {"sft": {"train_base": "frozen"}}),
        ("expected one of 'none', 'true', 'random'", {"context": "False"}),
    ],
)
def test_what_the_second_stage_would_refuse_is_refused_before_the_first(base, data, tmp_path, message, change):
    with pytest.raises((ValueError, TypeError), match=message):
        train(chained(**change), base, data, tmp_path / "dpo")
    assert not list(tmp_path.glob("dpo*"))


def test_responses_that_dont_fit_are_left_out_and_counted(base, data, tmp_path, capsys):
    def build(**settings):
        return build_sft_trainer(sft(settings), base, data, tmp_path / "sft").train_dataset

    everything = build()
    longest = max(map(len, everything["input_ids"]))
    assert len(build(max_length=longest - 1)) < len(everything)
    assert f"longer than max_length={longest - 1}: left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no response of the training set fits max_length=4"):
        build(max_length=4)
