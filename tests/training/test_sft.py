"""SFT as the stage before DPO: what it imitates, and that DPO starts from exactly what it left."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig, PeftModel
from trl import SFTConfig

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, context_of, people_of, with_context
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import load_model
from prlhf_kit.models.logprobs import REFERENCE, add_reference_logps, score_pairs
from prlhf_kit.models.saving import reference_name, reference_of
from prlhf_kit.training import recipe as recipes
from prlhf_kit.training.recipe import PRESETS, Recipe, build_trainer, train
from prlhf_kit.training.sft import SFTRecipe, build_sft_trainer, contexts_of, preferred, train_sft

ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
LOUD = {"learning_rate": 5e-2, "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"}  # moves weights
QUIET = {
    "learning_rate": 1e-3,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "max_length": 120,
}


@pytest.fixture
def folder(tmp_path):
    """Pairs of three communities; of a prompt's three pairs two have the same chosen response."""
    rows = []
    for i in range(12):
        user = f"r/{'abc'[i % 3]}"
        chosen = "Yes, do." if i < 8 else "Yes, very much."
        rows.append(record(f"p{i}", user, f"Question {i // 6}?", chosen, f"No{'!' * i}", f"I am {user}."))
    path = tmp_path / "pairs"
    Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def sft(base, folder, tmp_path, **changed):
    given = {"adapter": ADAPTER, "settings": LOUD, "out": str(tmp_path / "sft"), **changed}
    return SFTRecipe(base, folder, **given)


def chained(base, folder, tmp_path, **changed):
    given = {"sft": {"settings": LOUD}, "adapter": ADAPTER, "settings": QUIET, "out": str(tmp_path / "dpo"), **changed}
    return Recipe(base, folder, **given)


def logits(model, tokenizer):
    ids = tokenizer("Question 1? Yes, very much. No!", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_each_preferred_response_is_imitated_once(folder):
    pairs = load_from_disk(folder)
    rows = preferred(pairs)
    wanted = {
        (u, p[0]["content"], c[0]["content"])
        for u, p, c in zip(*(pairs[n] for n in ("user_id", "prompt", "chosen")), strict=True)
    }
    found = [
        (u, p[0]["content"], c[0]["content"])
        for u, p, c in zip(*(rows[n] for n in ("user_id", "prompt", "completion")), strict=True)
    ]
    assert len(found) == len(set(found)) < len(pairs)
    assert set(found) == wanted


def test_the_loss_is_on_responses_only_and_the_context_is_read(base, folder, tmp_path, tokenizer):
    trainer = build_sft_trainer(sft(base, folder, tmp_path, context="true"))
    for row, told in zip(trainer.train_dataset, preferred(load_from_disk(folder)), strict=True):
        learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        hidden = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        assert tokenizer.decode(learned).startswith(told["completion"][0]["content"])
        assert f"community: {told['user_id']}." in tokenizer.decode(hidden)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    asked = batch["labels"] != -100
    outputs = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    by_hand = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1][asked[:, 1:]], batch["labels"][:, 1:][asked[:, 1:]]
    )
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("train_base", "adapters"), [("lora", "stacked"), ("lora", "merged"), ("full", "stacked")])
def test_dpo_starts_from_exactly_what_sft_left_and_has_it_as_reference(
    base, folder, tmp_path, tokenizer, train_base, adapters
):
    one = chained(base, folder, tmp_path, train_base=train_base, adapters=adapters, context="true")
    second = recipes.after_sft(one)
    left = str(tmp_path / "dpo-sft")
    # what SFT left, loaded in the plain way, by transformers and PEFT alone
    plain = load_model(base) if train_base == "lora" else load_model(left)
    plain = PeftModel.from_pretrained(plain, left) if train_base == "lora" else plain
    wanted = logits(plain, tokenizer)
    assert (wanted - logits(load_model(base), tokenizer)).abs().max() > 0.1  # SFT did something
    trainer = build_trainer(second)
    same = {"atol": 0, "rtol": 0} if train_base == "full" else {"atol": 2e-5, "rtol": 1e-5}  # merging rounds
    torch.testing.assert_close(logits(trainer.model, tokenizer), wanted, **same)
    told = with_context(load_from_disk(folder), Contexts("true", people_of(load_from_disk(folder))))
    by_sft = score_pairs(plain, tokenizer, told)
    by_base = score_pairs(load_model(base), tokenizer, told)
    found = trainer.train_dataset
    assert found[REFERENCE[0]][:] == pytest.approx(by_sft.chosen_logp.tolist(), abs=1e-3)
    assert found[REFERENCE[1]][:] == pytest.approx(by_sft.rejected_logp.tolist(), abs=1e-3)
    assert abs(by_base.chosen_logp - by_sft.chosen_logp).min() > 0.1
    train(one)
    trained, _ = kit.load_personalized(tmp_path / "dpo")
    assert not torch.allclose(logits(trained, tokenizer), wanted, atol=1e-4)
    with reference_of(trained) as reference:
        torch.testing.assert_close(logits(reference, tokenizer), wanted, **same)


def test_two_recipes_share_one_sft_stage_and_its_reference(base, folder, tmp_path):
    shared = {"sft": {"settings": LOUD, "out": str(tmp_path / "first")}}
    train(chained(base, folder, tmp_path, **shared))
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("first*/**/*") if p.is_file()}
    train(chained(base, folder, tmp_path, **shared, method="dpo", out=str(tmp_path / "control")))
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("first*/**/*") if p.is_file()}
    ours = {"sft.json", "context.json", "first.lock"}  # say the same again
    changed = {p.name for p in after if after[p] != stamps.get(p) and not p.name.startswith("cache-")}
    assert changed <= ours
    control = load_model(str(tmp_path / "control"))  # a vanilla control is merged onto the SFT model
    weight = "model.layers.0.self_attn.q_proj.weight"
    moved = [
        (m.state_dict()[weight] - load_model(base).state_dict()[weight]).norm().item()
        for m in (control, load_model(str(tmp_path / "first")))
    ]
    assert moved[0] == pytest.approx(moved[1], rel=0.05)
    assert moved[1] > 0.1


def test_both_stages_see_the_same_pairs_in_the_same_context(base, folder, tmp_path, tokenizer):
    one = chained(base, folder, tmp_path, context="random", context_seed=3)
    second = recipes.after_sft(one)
    pairs = load_from_disk(second.pairs)
    first = build_sft_trainer(recipes.sft_of(one))
    imitated = {tokenizer.decode(ids) for ids in first.train_dataset["input_ids"]}
    laid_out = {
        tokenizer.apply_chat_template(p + c, tokenize=False).rstrip("\n")
        for p, c in zip(pairs["prompt"], pairs["chosen"], strict=True)
    }
    assert {text.rstrip("\n") for text in imitated} == laid_out
    assert all(a != b for a, b in zip(pairs["user_id"], pairs["context_user"], strict=True))


@pytest.mark.parametrize("adapters", ["stacked", "merged"])
def test_a_new_sft_model_is_not_passed_off_as_the_old_one(base, folder, tmp_path, adapters):
    one = chained(base, folder, tmp_path, method="dpo", adapters=adapters)
    train(one)
    for name in ("dpo-sft", "dpo-sft-checkpoints"):
        shutil.rmtree(tmp_path / name)
    other = replace(one, sft={"settings": LOUD | {"learning_rate": 1e-2}})
    message = "training with other settings: .*starts_from" if adapters == "stacked" else "merged from an earlier"
    with pytest.raises(ValueError, match=message):
        train(other)
    if adapters == "stacked":  # what was finished would silently become another model
        with pytest.raises(ModelError, match="which has been trained anew since"):
            load_model(str(tmp_path / "dpo"))


def test_a_personalised_model_is_not_put_onto_another_start(base, folder, tmp_path):
    one = chained(base, folder, tmp_path)
    train(one)
    kit.load_personalized(tmp_path / "dpo")
    for name in ("dpo-sft", "dpo-sft-checkpoints"):
        shutil.rmtree(tmp_path / name)
    train_sft(recipes.sft_of(replace(one, sft={"settings": LOUD | {"learning_rate": 1e-2}})))
    with pytest.raises(ModelError, match="which has been trained anew since"):
        kit.load_personalized(tmp_path / "dpo")


def test_what_a_model_was_told_is_read_again(base, folder, tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text("For {community}.")
    one = chained(base, folder, tmp_path, context="random", context_seed=3, template=str(template), method="dpo")
    train(one)
    pairs = load_from_disk(folder)
    for name in ("dpo", "dpo-sft"):
        again = context_of(tmp_path / name, people_of(pairs))
        assert [again.put(p, u) for p, u in zip(pairs["prompt"], pairs["user_id"], strict=True)] == [
            contexts_of(one, pairs).put(p, u) for p, u in zip(pairs["prompt"], pairs["user_id"], strict=True)
        ]
    assert context_of(base, {}).context == "none"
    template.write_text("Now for {community}.")
    with pytest.raises(SchemaError, match=r"has changed since .* it said \[\['system', 'For \{community\}.'\]\]"):
        context_of(tmp_path / "dpo", people_of(pairs))


def test_two_trainings_that_share_sft_take_turns(base, folder, tmp_path):
    ones = [
        chained(
            base,
            folder,
            tmp_path,
            method="dpo",
            out=str(tmp_path / f"d{i}"),
            sft={"settings": LOUD, "out": str(tmp_path / "first")},
        )
        for i in range(2)
    ]
    script = "import sys, json; from prlhf_kit.training.recipe import Recipe, train; train(Recipe.read(sys.argv[1]))"
    running = []
    for i, one in enumerate(ones):
        file = tmp_path / f"{i}.json"
        file.write_text(json.dumps(asdict(one)))
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert len(list(tmp_path.glob("first-pairs-*"))) == 1


def test_a_recipe_file_chains_both_stages(base, folder, tmp_path, monkeypatch):
    file = tmp_path / "chain.json"
    chain = {
        "model": base,
        "pairs": folder,
        "out": str(tmp_path / "dpo"),
        "context": "true",
        "adapter": ADAPTER,
        "sft": {"settings": LOUD},
        "settings": QUIET,
    }
    file.write_text(json.dumps(chain))
    monkeypatch.setattr(sys, "argv", ["recipe", str(file)])
    recipes.main()
    model, index = kit.load_personalized(tmp_path / "dpo")
    assert index.user_ids == ["r/a", "r/b", "r/c"]
    assert json.loads((tmp_path / "dpo" / "context.json").read_text())["context"] == "true"
    assert json.loads((tmp_path / "dpo-sft" / "context.json").read_text())["context"] == "true"
    named = json.loads((tmp_path / "dpo" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "dpo-sft")
    assert reference_name(causal_lm(model)) == named


def test_held_out_pairs_get_the_context_and_the_reference_too(base, folder, tmp_path):
    held_out = tmp_path / "held-out"
    strangers = [record(f"t{i}", "r/new", f"Another {i}?", "Yes.", "No.", "I am new.") for i in range(4)]
    Dataset.from_list(strangers).save_to_disk(held_out)
    one = chained(
        base,
        folder,
        tmp_path,
        context="user_text",
        evaluation=str(held_out),
        method="dpo",
        settings=QUIET | {"eval_strategy": "steps", "eval_steps": 1},
    )
    second = recipes.after_sft(one)
    told = load_from_disk(second.evaluation)
    assert {prompt[0]["content"] for prompt in told["prompt"]} == {"I am new."}
    assert set(REFERENCE) <= set(told.column_names)
    assert "eval_rewards/accuracies" in train(one)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_flags_are_typed(base, folder, tmp_path):
    with pytest.raises(SchemaError, match="expected one of 'none', 'true', 'random'"):
        sft(base, folder, tmp_path, context=False)
    with pytest.raises(SchemaError, match="expected one of 'none', 'true', 'random'"):
        chained(base, folder, tmp_path, context=False)


def test_packing_only_where_texts_dont_see_each_other(base, folder, tmp_path, tokenizer):
    packed = {"packing": True, "max_length": 100}
    trainer = build_sft_trainer(sft(base, folder, tmp_path, settings=LOUD | packed))
    one = trainer.train_dataset[0]
    assert len(one["seq_lengths"]) > 1
    inputs = {k: v for k, v in trainer.data_collator([one]).items() if k != "labels"}
    with torch.no_grad():
        together = trainer.model.eval()(**inputs, use_cache=False).logits[0]  # as TRL calls it
        parts = [
            trainer.model(input_ids=ids[None]).logits[0] for ids in inputs["input_ids"][0].split(one["seq_lengths"])
        ]
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="packing_strategy='wrapped' and attn_implementation='sdpa'"):
        build_sft_trainer(sft(base, folder, tmp_path, settings=LOUD | packed | {"packing_strategy": "wrapped"}))


def test_what_the_second_stage_would_refuse_is_refused_before_the_first(base, folder, tmp_path, tokenizer):
    add_reference_logps(load_from_disk(folder), load_model(base), tokenizer).save_to_disk(tmp_path / "scored")
    bad = {
        r"the longest pair .* has \d+ tokens": {"settings": QUIET | {"max_length": 20}},
        r"the model's context of 256 \(with 240 user tokens\)": {"user_model_options": {"num_tokens": 240}},
        "lerning_rate": {"settings": QUIET | {"lerning_rate": 1}},
        "num_toknes": {"user_model_options": {"num_toknes": 1}},
        "ranck": {"adapter": {"ranck": 1}, "sft": {"settings": LOUD, "adapter": ADAPTER}},
    }
    for message, changed in bad.items():
        with pytest.raises((ValueError, TypeError), match=message):
            train(chained(base, folder, tmp_path, **changed))
    with pytest.raises(ValueError, match="the reference is the SFT model"):
        train(chained(base, str(tmp_path / "scored"), tmp_path))
    assert not list(tmp_path.glob("dpo*"))


def test_without_context_pairs_need_not_say_who_people_are(base, folder, tmp_path):
    load_from_disk(folder).remove_columns(["user_text", "group"]).save_to_disk(tmp_path / "bare")
    train(chained(base, str(tmp_path / "bare"), tmp_path))
    assert kit.load_personalized(tmp_path / "dpo")[1].user_ids == ["r/a", "r/b", "r/c"]


def test_a_reference_that_did_not_see_the_context_is_refused(base, folder, tmp_path, tokenizer):
    add_reference_logps(load_from_disk(folder), load_model(base), tokenizer).save_to_disk(tmp_path / "scored")
    with pytest.raises(ValueError, match="reference log-probs of prompts without context"):
        build_trainer(chained(base, str(tmp_path / "scored"), tmp_path, sft=None, context="true"))


def test_recipes_that_contradict_themselves(base, folder, tmp_path):
    with pytest.raises(ValueError, match="method='dpo_text' puts the users' words"):
        chained(base, folder, tmp_path, method="dpo_text", context="true")
    with pytest.raises(ValueError, match="user_text of the user model puts the users' words"):
        chained(base, folder, tmp_path, context="random", user_model_options={"user_text": True})
    with pytest.raises(ValueError, match="sft has pairs, which both stages share"):
        chained(base, folder, tmp_path, sft={"pairs": "elsewhere"})
    with pytest.raises(ValueError, match="'chat_template_path', which changes the tokenizer"):
        chained(base, folder, tmp_path, sft={"settings": {"chat_template_path": "other.jinja"}})
    with pytest.raises(ValueError, match="adapters='melted'"):
        chained(base, folder, tmp_path, adapters="melted")
    with pytest.raises(ValueError, match="expected one of lora, qlora, full"):
        sft(base, folder, tmp_path, train_base="frozen")
    with pytest.raises(ValueError, match="needs a GPU"):
        sft(base, folder, tmp_path, train_base="qlora")


def test_pairs_with_a_context_are_taken_as_they_are_or_not_at_all(base, folder, tmp_path):
    pairs = load_from_disk(folder)
    told = with_context(pairs, Contexts("shuffled", people_of(pairs)))
    told.save_to_disk(tmp_path / "told")
    with pytest.raises(SchemaError, match="a context already"):
        build_trainer(chained(base, str(tmp_path / "told"), tmp_path, sft=None, context="shuffled"))
    trainer = build_trainer(chained(base, str(tmp_path / "told"), tmp_path, sft=None))
    assert trainer.train_dataset["prompt"][:] == told["prompt"][:]


def test_responses_that_dont_fit_are_left_out_and_counted(base, folder, tmp_path, capsys):
    one = sft(base, folder, tmp_path)
    longest = max(map(len, build_sft_trainer(one).train_dataset["input_ids"]))
    assert "cut" not in capsys.readouterr().out
    build_sft_trainer(replace(one, settings=LOUD | {"max_length": longest - 1}))
    assert f"cut, at max_length={longest - 1} tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no response of the train set fits max_length=4"):
        build_sft_trainer(replace(one, settings=LOUD | {"max_length": 4}))


def test_an_adapter_with_users_is_not_merged(base, folder, tmp_path):
    train(chained(base, folder, tmp_path, sft=None))
    with pytest.raises(ModelError, match="load_personalized"):
        load_model(str(tmp_path / "dpo"))


def test_sft_resumes_and_refuses_other_settings(base, folder, tmp_path):
    log = train_sft(sft(base, folder, tmp_path))
    assert "loss" in log or "train_loss" in log
    train_sft(sft(base, folder, tmp_path))  # finds it done
    with pytest.raises(ValueError, match="other settings"):
        train_sft(sft(base, folder, tmp_path, context="true"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_that_trl_and_peft_know(name, tmp_path):
    preset = PRESETS[name]
    SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **preset["sft"]["settings"])
    kit.PersonalizedDPOConfig(output_dir=str(tmp_path), use_cpu=True, **preset["settings"])
    LoraConfig(**preset["adapter"])
    Recipe("model", "pairs", "out", **preset)


def test_the_papers_settings():
    """ComPO (arXiv 2410.16027)."""
    compo = PRESETS["compo"]
    assert compo["sft"]["settings"]["learning_rate"] == 1e-5
    assert (compo["settings"]["beta"], compo["settings"]["learning_rate"]) == (0.1, 2e-7)
    assert (compo["adapter"]["r"], compo["adapter"]["lora_alpha"]) == (64, 16)
