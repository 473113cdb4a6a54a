"""Training of reward models: against TRL's, its parts, sets, stages and users."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from prlhf_kit.training.reward_config import PersonalizedRewardConfig, StopEarly
from transformers import BertConfig, BertForMaskedLM, TrainerCallback
from trl import RewardConfig, RewardTrainer

import prlhf_kit as kit
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.files import write_json
from prlhf_kit.models.reward_model import load_reward_model, new_reward_model
from prlhf_kit.models.rewards import SequenceReward, load_reward
from prlhf_kit.training import reward_stages
from prlhf_kit.training.launch import launch_file
from prlhf_kit.training.resume import HISTORY, fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardTrainer
from prlhf_kit.training.reward_data import RewardCollator, tokenized_lists

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def settings(folder, **more):
    plain = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return plain | more


def trainer(base, pairs, folder, model=None, eval_dataset=None, tokenizer=None, peft=True, **more):
    model = model or new_reward_model(base, lm_head=bool(more.get("lm_loss_coeff")))
    return PersonalizedRewardTrainer(
        model,
        PersonalizedRewardConfig(**settings(folder, **more)),
        pairs,
        eval_dataset,
        tokenizer or kit.load_tokenizer(base),
        peft_config=LoraConfig(task_type="SEQ_CLS", **LORA) if peft else None,
    )


def losses(trained):
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("center", [None, 0.1])
def test_pairs_are_trained_as_trl_trains_them(base, pairs, tmp_path, center):
    more = {"center_rewards_coefficient": center, "max_length": None}
    ours = trainer(base, pairs, tmp_path / "a", peft=False, **more)
    ours.train()
    pair = ours.train_dataset.map(lambda row: dict(zip(("chosen_ids", "rejected_ids"), row["text_ids"], strict=True)))
    args = RewardConfig(**settings(tmp_path / "b", bf16=False, dataloader_pin_memory=False, **more))
    theirs = RewardTrainer(new_reward_model(base), args, train_dataset=pair, processing_class=kit.load_tokenizer(base))
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    assert len(losses(ours)) == 3


def test_accumulated_small_batches_equal_one_of_lists_of_two(base, pairs, tmp_path):
    whole = trainer(base, pairs, tmp_path / "a")
    parts = trainer(base, pairs, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)


def test_total_is_ranking_plus_weighted_lm_and_no_lm_head_runs_at_zero(base, pairs, tmp_path, monkeypatch):
    with_lm = trainer(base, pairs, tmp_path / "a", lm_loss_coeff=0.1)
    with_lm.train()
    for entry in with_lm.state.log_history:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["ranking_loss"] + 0.1 * entry["lm_loss"], rel=1e-5)
    monkeypatch.setattr("prlhf_kit.models.reward_model.text_nll", lambda *_: pytest.fail("the LM head ran"))
    plain = trainer(base, pairs, tmp_path / "b")
    plain.train()
    assert "lm_loss" not in plain.state.log_history[0]
    with pytest.raises(TypeError, match="expected one of new_reward_model"):
        trainer(base, pairs, tmp_path / "c", model=kit.load_model(base))
    with pytest.raises(ValueError, match="lm_head=True"):
        trainer(base, pairs, tmp_path / "c", model=new_reward_model(base), lm_loss_coeff=0.1)


def test_which_tokens_are_imitated(tokenizer, pairs):
    lists, _ = tokenized_lists(pairs.select([0]), tokenizer, "train", None, True)
    for side in ("left", "right"):
        whole = RewardCollator(2, 0.9, True, padding_side=side)(list(lists))
        part = RewardCollator(2, 0.9, False, padding_side=side)(list(lists))
        assert torch.equal(whole["lm_asked"][0], whole["attention_mask"][0])  # the chosen one, prompt and response
        assert whole["lm_asked"][1].sum() == 0  # not the rejected one
        answered = part["input_ids"][0][part["lm_asked"][0].bool()]
        assert tokenizer.decode(answered).startswith("Yes,")
    assert "lm_asked" not in RewardCollator(2, None, True)(list(lists))


def test_every_set_has_its_accuracy_from_step_0(base, pairs, tmp_path):
    sets = {"academy": pairs.select(range(7)), "general": pairs}
    trained = trainer(base, pairs, tmp_path / "c", eval_dataset=sets, eval_strategy="steps", eval_steps=2)
    fit(trained, tmp_path / "out")
    history = pd.read_parquet(tmp_path / "out" / HISTORY)
    found = pd.read_parquet(tmp_path / "out" / EVALUATIONS)
    for name, held_out in sets.items():
        part = history[["step", f"eval_{name}_accuracy"]].dropna().set_index("step")[f"eval_{name}_accuracy"]
        assert part.index.tolist() == [0, 2, 3]
        own = found[found.set == name]
        assert own.prompt.nunique() == len(held_out)
        assert sorted(own[own.step == 0].row) == list(range(len(held_out)))
        assert own.groupby("step").right.mean().tolist() == pytest.approx(part.tolist())
    model, _ = load_reward_model(str(tmp_path / "out"))
    reward = SequenceReward(model, kit.load_tokenizer(base))
    gap = reward.score(pairs["prompt"], pairs["chosen"]) - reward.score(pairs["prompt"], pairs["rejected"])
    end = found[(found.set == "general") & (found.step == 3)].set_index("row").right
    assert [end[i] for i in range(len(pairs))] == (gap > 0).float().tolist()
    assert found.user_id.tolist() == [sets[name]["user_id"][i] for name, i in zip(found.set, found.row, strict=True)]


def lists(n=4):
    return Dataset.from_list(
        [
            {
                "user_id": "a",
                "prompt": message("user", f"Question {i}?"),
                "scores": [0.0, -1.0, 2.0][: 2 + i % 2],
                "responses": [
                    message("assistant", t) for t in ("A drink.", "No.", "Leaves in hot water.")[: 2 + i % 2]
                ],
            }
            for i in range(n)
        ]
    )


def test_several_training_sets_are_mixed(base, pairs, tmp_path):
    """Pairs and lists, and general pairs at a ratio."""
    trained = trainer(base, {"pairs": pairs, "lists": lists()}, tmp_path / "a")
    trained.train()
    assert len(trained.train_dataset) == len(pairs) + 4
    assert set(trained.dropped) == {"pairs", "lists"}
    pairs.save_to_disk(tmp_path / "pairs")
    lists().save_to_disk(tmp_path / "lists")
    recipe = reward_stages.RewardRecipe(
        model=base,
        pairs=str(tmp_path / "lists"),
        out=str(tmp_path / "out"),
        adapter=LORA,
        general=str(tmp_path / "pairs"),
        general_ratio=1.5,
        settings=settings(tmp_path / "c"),
    )
    assert len(reward_stages.build_reward_trainer(recipe).train_dataset) == 4 + 6


def test_bad_lists_are_refused_or_dropped_by_name_and_count(base, tokenizer, tmp_path):
    good = lists(2)

    def broken(**change):
        return Dataset.from_list([*good.to_list(), {**good[1], **change}])

    with pytest.raises(SchemaError, match="row 2 of the train set has 3 responses and 2 scores"):
        trainer(base, broken(scores=[1.0, 2.0]), tmp_path / "a")
    for bad in (float("nan"), float("inf"), None):
        with pytest.raises(SchemaError, match=r"row 2 of the train set has the score (nan|inf|None), expected finite"):
            trainer(base, broken(scores=[1.0, bad, 2.0]), tmp_path / "a")
    equal = trainer(base, broken(scores=[1.0, 1.0, 1.0]), tmp_path / "a")
    assert equal.dropped == {"train": {"all scores equal": 1}}
    empty = broken(responses=[message("assistant", t) for t in ("a", " ", "b")])
    assert trainer(base, empty, tmp_path / "a").dropped == {"train": {"empty text": 1}}
    long = Dataset.from_list([record("p", "a", "Why?", "yes" + " very" * 30, "no" + " very" * 30)] * 2)
    with pytest.raises(SchemaError, match=r"nothing is left of the train set's 2 rows: \{'the same text after trunc"):
        trainer(base, long, tmp_path / "a", max_length=20)
    with pytest.raises(SchemaError, match="expected prompt, chosen and rejected, or prompt, responses"):
        trainer(base, good.remove_columns("scores"), tmp_path / "a")
    with pytest.raises(SchemaError, match="margin"):
        trainer(base, good.add_column("margin", [1.0, 2.0]), tmp_path / "a")


def test_stages_go_on_from_each_other(base, pairs, tmp_path):
    """CRFT starts from exactly GRFT's model, and a training from another start is not taken for it."""
    pairs.save_to_disk(tmp_path / "pairs")

    def recipe(model, out, lm=0.1):
        return reward_stages.RewardRecipe(
            model=str(model),
            pairs=str(tmp_path / "pairs"),
            out=str(tmp_path / out),
            adapter=LORA,
            evaluation={"own": str(tmp_path / "pairs")},
            settings=settings(tmp_path / f"{out}-checkpoints", lm_loss_coeff=lm, eval_strategy="epoch"),
        )

    reward_stages.train_reward(recipe(base, "grft"))
    general, _ = load_reward_model(str(tmp_path / "grft"))
    start = reward_stages.build_reward_trainer(recipe(tmp_path / "grft", "crft")).model.eval()
    ids = torch.randint(5, 100, (2, 9))
    assert torch.equal(start(input_ids=ids).logits, general(input_ids=ids).logits)
    found = reward_stages.train_reward(recipe(tmp_path / "grft", "crft"))
    assert found.step.unique().tolist() == [0, 3]
    trained, _ = load_reward_model(str(tmp_path / "crft"))
    assert not torch.equal(trained(input_ids=ids).logits, general(input_ids=ids).logits)
    frozen = dict(general.get_base_model().model.named_parameters())
    for name, p in trained.get_base_model().model.named_parameters():
        if "lora" not in name:
            assert torch.equal(p, frozen[name]), name
    for change in ({"pooling": "mean"}, {"adapter": None}, {"user_model": "individual"}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}=.* does not go with"):
            reward_stages.build_reward_trainer(replace(recipe(tmp_path / "grft", "x"), **change))
    with pytest.raises(ValueError, match="pooling"):  # the same folder, another pooling
        reward_stages.train_reward(replace(recipe(base, "grft"), pooling="mean"))
    reward_stages.train_reward(recipe(base, "other", lm=0.0))
    with pytest.raises(ValueError, match="starts_from"):
        reward_stages.train_reward(recipe(tmp_path / "other", "crft"))


def test_two_processes_equal_one(base, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pairs.save_to_disk(tmp_path / "pairs")

    def recipe(out, batch):
        return reward_stages.RewardRecipe(
            model=base,
            pairs=str(tmp_path / "pairs"),
            out=str(tmp_path / out),
            adapter=LORA,
            user_model="individual",
            user_model_options={"num_tokens": 2},
            evaluation={"own": str(tmp_path / "pairs")},
            settings=settings(
                tmp_path / f"{out}-checkpoints",
                lm_loss_coeff=0.1,
                eval_strategy="epoch",
                per_device_train_batch_size=batch,
                per_device_eval_batch_size=5,
            ),
        )

    one = reward_stages.train_reward(recipe("one", 4))
    config = str(Path(__file__).parents[2] / "configs" / "ddp.yaml")
    launched = ["--config_file", config, "--num_processes", "2"]
    write_json(tmp_path / "recipe.json", vars(recipe("two", 2)))
    launch_file(tmp_path / "recipe.json", reward_stages.__name__, launched)
    two = pd.read_parquet(tmp_path / "two" / EVALUATIONS)
    order = ["step", "row"]
    assert one.sort_values(order).right.tolist() == two.sort_values(order).right.tolist()
    assert len(two) == 2 * len(pairs)  # no pair twice, though 5 does not divide 12
    reward = [
        SequenceReward(load_reward_model(str(tmp_path / out))[0], kit.load_tokenizer(base)) for out in ("one", "two")
    ]
    found = [r.score(pairs["prompt"], pairs["chosen"]).tolist() for r in reward]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("peft", [True, False])
def test_killed_it_resumes_to_the_same_model(base, pairs, tmp_path, peft):
    """The whole model with its LM head too."""
    more = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "lm_loss_coeff": 0.5}
    whole = trainer(base, pairs, tmp_path / "a", eval_dataset={"own": pairs}, peft=peft, **more)
    fit(whole, tmp_path / "whole")
    killed = trainer(base, pairs, tmp_path / "b", eval_dataset={"own": pairs}, peft=peft, **more)
    killed.add_callback(Kill(2))
    with pytest.raises(KeyboardInterrupt):
        fit(killed, tmp_path / "resumed")
    again = trainer(base, pairs, tmp_path / "b", eval_dataset={"own": pairs}, peft=peft, **more)
    fit(again, tmp_path / "resumed")
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(again.model.named_parameters())[name]), name
    loaded, _ = load_reward_model(str(tmp_path / "resumed"), lm_head=True)
    for name, p in loaded.named_parameters():
        assert torch.equal(p, dict(again.model.named_parameters())[name]), name
    tables = [pd.read_parquet(tmp_path / n / EVALUATIONS).sort_values(["step", "row"]) for n in ("whole", "resumed")]
    assert tables[0].reset_index(drop=True).equals(tables[1].reset_index(drop=True))


def test_a_resumed_training_stops_where_it_would_have(base, pairs, tmp_path):
    more = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_train_epochs": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "own_margin",
        "greater_is_better": True,
    }

    def stopped(folder, *kills):
        for kill in (*kills, None):
            one = trainer(base, pairs, folder / "c", eval_dataset={"own": pairs, "x": pairs}, **more)
            one.add_callback(StopEarly(1))
            if kill is None:
                fit(one, folder / "out")
                return one.state.global_step
            one.add_callback(Kill(kill))
            with pytest.raises(KeyboardInterrupt):
                fit(one, folder / "out")

    assert stopped(tmp_path / "resumed", 2) == stopped(tmp_path / "whole") > 2
    for wrong in ("eval_other_accuracy", "eval_loss"):
        with pytest.raises(ValueError, match="belongs to no evaluation set"):
            trainer(base, pairs, tmp_path, eval_dataset={"own": pairs}, **{**more, "metric_for_best_model": wrong})


@pytest.mark.parametrize("peft", [True, False])
def test_an_encoder_is_trained_as_it_is_scored(bert, tmp_path, peft):
    """With its pooler new as well, as it comes from a masked language model."""
    folder, tokenizer = bert
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(tmp_path / "mlm")
    texts = [("water first .", "no ."), ("pour it over the leaves .", "rain ."), ("boil it first .", "what ?")]
    pairs = Dataset.from_list([record(f"p{i}", "a", "how do i make tea ?", *t) for i, t in enumerate(texts * 2)])
    trained = PersonalizedRewardTrainer(
        new_reward_model(str(tmp_path / "mlm")),
        PersonalizedRewardConfig(**settings(tmp_path / "c", num_train_epochs=3, eval_strategy="epoch", seed=5)),
        pairs,
        {"own": pairs},
        tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]) if peft else None,
    )
    fit(trained, tmp_path / "out")
    reward = load_reward(str(tmp_path / "out"))
    gap = reward.score(pairs["prompt"], pairs["chosen"]) - reward.score(pairs["prompt"], pairs["rejected"])
    last = [entry for entry in trained.state.log_history if "eval_own_margin" in entry][-1]
    assert gap.mean().item() == pytest.approx(last["eval_own_margin"], abs=1e-5)


@pytest.mark.parametrize("peft", [True, False])
def test_users_in_front_of_the_backbone_are_learned(base, tmp_path, peft):
    """Two users who want the opposite: without users at most half of the pairs can be right."""
    texts = [("Short.", "A long answer with many words.")[:: 1 if i % 2 else -1] for i in range(24)]
    pairs = Dataset.from_list([record(f"p{i}", "ab"[i % 2], f"Question {i // 2}?", *t) for i, t in enumerate(texts)])
    model = new_reward_model(base)
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 4))
    before = model.user_model.own.detach().clone()
    trained = trainer(
        base,
        pairs,
        tmp_path / "a",
        model=model,
        peft=peft,
        num_train_epochs=20,
        learning_rate=3e-3,
        user_learning_rate=3e-2,
        eval_dataset=pairs,
        eval_strategy="epoch",
    )
    fit(trained, tmp_path / "out")
    again, index = load_reward_model(str(tmp_path / "out"))
    assert trained.optimizer.param_groups[-1]["initial_lr"] == 3e-2
    reward = SequenceReward(again, kit.load_tokenizer(base), index)
    gap = reward.score(pairs["prompt"], pairs["chosen"], pairs["user_id"]) - reward.score(
        pairs["prompt"], pairs["rejected"], pairs["user_id"]
    )
    assert (gap > 0).float().mean() > 0.9
    table = again.get_base_model().user_model.modules_to_save["default"] if peft else again.user_model
    assert not torch.equal(table.own, before)
    stranger = Dataset.from_list([record("q", "c", "Why?", "Yes.", "No.")])
    with pytest.raises(ValueError, match="first 'c'"):
        PersonalizedRewardTrainer(
            trained.accelerator.unwrap_model(trained.model),
            PersonalizedRewardConfig(**settings(tmp_path)),
            stranger,
            processing_class=kit.load_tokenizer(base),
            user_index=index,
        )


def test_sets_of_the_notebook(pairs, tokenizer, capsys):
    data = DatasetDict(train=pairs, test_seen=pairs)
    found = reward_stages.domain_sets(data, "user_id", ["a", "b"], tokenizer, 200, 3, 2, seed=0)
    assert {name: len(part) for name, part in found.items()} == {"a": 3, "a/test": 2, "b": 3, "b/test": 2}
    assert set(found["a/test"]["user_id"]) == {"a"}
    with pytest.raises(ValueError, match=r"no training pair has user_id='law'\. Known: a, b, c"):
        reward_stages.domain_sets(data, "user_id", ["law"], tokenizer, 200, 3, 2, seed=0)
    with pytest.raises(ValueError, match="Raise max_length"):
        reward_stages.domain_sets(data, "user_id", ["a"], tokenizer, 5, 3, 2, seed=0)
    assert "12 of 12 pairs are longer than max_length=5: left out" in capsys.readouterr().out
    general = reward_stages.general_sets({"x": data, "y": data}, ["y"], tokenizer, 200, 6, 20, seed=0)
    assert {name: len(part) for name, part in general.items()} == {"x/test": 12, "y/test": 20, reward_stages.GENERAL: 6}
    with pytest.raises(ValueError, match="none is left to train on"):
        reward_stages.general_sets({"x": data}, ["x"], tokenizer, 200, 6, 20, seed=0)
    with pytest.raises(ValueError, match="9 general pairs are asked for"):
        reward_stages.drawn(general[reward_stages.GENERAL], 9, 0)
    assert reward_stages.general_stages(reward_stages.STRATEGIES) == {"grft": 0.0, "grft-lm0.1": 0.1}
