"""Training of reward models: against TRL's, its parts, lists and users."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BertConfig, BertForMaskedLM
from trl import RewardConfig, RewardTrainer

import prlhf_kit as kit
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.models.reward_model import load_reward_model, new_reward_model
from prlhf_kit.models.rewards import SequenceReward, load_reward
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.resume import HISTORY, fit
from prlhf_kit.training.reward import EVALUATIONS, PersonalizedRewardTrainer
from training.conftest import SETTINGS as QUICK

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
SETTINGS = QUICK | {"num_train_epochs": 1, "max_steps": -1, "learning_rate": 1e-2}


def trainer(base, pairs, folder, model=None, eval_dataset=None, peft=True, **more):
    return PersonalizedRewardTrainer(
        model or new_reward_model(base, lm_head=bool(more.get("lm_loss_coeff"))),
        PersonalizedRewardConfig(**{"output_dir": str(folder), **SETTINGS, **more}),
        pairs,
        eval_dataset,
        kit.load_tokenizer(base),
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
    args = RewardConfig(str(tmp_path / "b"), bf16=False, dataloader_pin_memory=False, **SETTINGS, **more)
    theirs = RewardTrainer(new_reward_model(base), args, train_dataset=pair, processing_class=kit.load_tokenizer(base))
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    assert len(losses(ours)) == 3


def test_total_is_ranking_plus_weighted_lm_and_no_lm_head_runs_at_zero(base, pairs, tmp_path, monkeypatch):
    with_lm = trainer(base, pairs, tmp_path / "a", lm_loss_coeff=0.1)
    with_lm.train()
    for entry in with_lm.state.log_history:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["ranking_loss"] + 0.1 * entry["lm_loss"], rel=1e-5)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *_, **__: pytest.fail("the LM head ran"))
    plain = trainer(base, pairs, tmp_path / "b")
    plain.train()
    assert "lm_loss" not in plain.state.log_history[0]
    with pytest.raises(TypeError, match="expected one of kit"):
        trainer(base, pairs, tmp_path / "c", model=kit.load_model(base))
    with pytest.raises(ValueError, match="lm_head=True"):
        trainer(base, pairs, tmp_path / "c", model=new_reward_model(base), lm_loss_coeff=0.1)


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
    assert found.user_id.tolist() == [sets[name]["user_id"][i] for name, i in zip(found.set, found.row, strict=True)]


def lists(n=4):
    """Of two and three responses."""
    scores, said = [0.0, -1.0, 2.0], [message("assistant", text) for text in ("A drink.", "No.", "Leaves in water.")]
    rows = [(message("user", f"Question {i}?"), 2 + i % 2) for i in range(n)]
    return Dataset.from_list(
        [{"user_id": "a", "prompt": asked, "scores": scores[:k], "responses": said[:k]} for asked, k in rows]
    )


def test_several_training_sets_are_mixed_and_lists_have_both_accuracies(base, pairs, tmp_path):
    held_out = lists(8)
    trained = trainer(base, {"pairs": pairs, "lists": lists()}, tmp_path / "a", eval_dataset={"own": held_out})
    found = trained.evaluate()
    reward = SequenceReward(trained.model.eval(), kit.load_tokenizer(base))
    first = []
    for row in held_out:
        values = reward.score([row["prompt"]] * len(row["scores"]), row["responses"]).tolist()
        best, second, *_ = sorted(range(len(values)), key=row["scores"].__getitem__, reverse=True)
        first.append(values[best] > values[second])
    assert found["eval_own_first_two"] == pytest.approx(sum(first) / len(first))
    trained.train()
    assert len(trained.train_dataset) == len(pairs) + 4
    assert set(trained.dropped) == {"pairs", "lists", "own"}


def test_bad_lists_are_refused_or_dropped_by_name_and_count(base, tokenizer, tmp_path):
    good = lists(2)

    def broken(**change):
        return Dataset.from_list([*good.to_list(), {**good[1], **change}])

    for bad in ([1.0, 2.0], [1.0, float("nan"), 2.0], [1.0, None, 2.0]):
        with pytest.raises(SchemaError, match="row 2 of the train set has 3 responses and the scores"):
            trainer(base, broken(scores=bad), tmp_path / "a")
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


def test_cut_off_it_resumes_to_the_same_model(base, pairs, tmp_path):
    """The whole model with its LM head; adapters: `test_recipe.py`."""
    more = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "lm_loss_coeff": 0.5}

    def trained(out):
        one = trainer(base, pairs, tmp_path / "c", eval_dataset={"own": pairs}, peft=False, **more)
        fit(one, tmp_path / out)
        table = pd.read_parquet(tmp_path / out / EVALUATIONS).sort_values(["step", "row"]).reset_index(drop=True)
        return dict(one.model.named_parameters()), table

    whole, table = trained("whole")
    (tmp_path / "c" / "checkpoint-3" / "checkpoint_complete").unlink()
    resumed, again = trained("resumed")
    loaded, _ = load_reward_model(str(tmp_path / "resumed"), lm_head=True)
    for found in (resumed, dict(loaded.named_parameters())):
        assert all(torch.equal(p, found[name]) for name, p in whole.items())
    assert table.equals(again)


def test_an_encoder_is_trained_as_it_is_scored(bert, tmp_path):
    """With its pooler new as well, as it comes from a masked language model."""
    folder, tokenizer = bert
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(tmp_path / "mlm")
    texts = [("water first .", "no ."), ("pour it over the leaves .", "rain ."), ("boil it first .", "what ?")]
    pairs = Dataset.from_list([record(f"p{i}", "a", "how do i make tea ?", *t) for i, t in enumerate(texts * 2)])
    trained = PersonalizedRewardTrainer(
        new_reward_model(str(tmp_path / "mlm")),
        PersonalizedRewardConfig(str(tmp_path / "c"), **SETTINGS | {"eval_strategy": "epoch", "seed": 5}),
        pairs,
        {"own": pairs},
        tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    )
    fit(trained, tmp_path / "out")
    reward = load_reward(str(tmp_path / "out"))
    gap = reward.score(pairs["prompt"], pairs["chosen"]) - reward.score(pairs["prompt"], pairs["rejected"])
    last = [entry for entry in trained.state.log_history if "eval_own_margin" in entry][-1]
    assert gap.mean().item() == pytest.approx(last["eval_own_margin"], abs=1e-5)


def test_users_in_front_of_the_backbone_are_learned(base, tmp_path):
    """Two users who want the opposite: without users at most half of the pairs can be right."""
    texts = [("Short.", "A long answer with many words.")[:: 1 if i % 2 else -1] for i in range(24)]
    pairs = Dataset.from_list([record(f"p{i}", "ab"[i % 2], f"Question {i // 2}?", *t) for i, t in enumerate(texts)])
    model = new_reward_model(base)
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 4))
    rates = {"num_train_epochs": 20, "learning_rate": 3e-3, "user_learning_rate": 3e-2}
    trained = trainer(base, pairs, tmp_path / "a", model=model, **rates)
    fit(trained, tmp_path / "out")
    again, index = load_reward_model(str(tmp_path / "out"))
    assert trained.optimizer.param_groups[-1]["initial_lr"] == 3e-2
    reward = SequenceReward(again, kit.load_tokenizer(base), index)
    chosen, rejected = (reward.score(pairs["prompt"], pairs[c], pairs["user_id"]) for c in ("chosen", "rejected"))
    assert (chosen > rejected).float().mean() > 0.9
