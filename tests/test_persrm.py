"""PAD's personalised reward model, and vocabulary-wide rewards: what is trained, what stays, and what is refused."""

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel
from safetensors.torch import load_file, save_file

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.decoding.guides import Vocabulary
from prlhf_kit.decoding.implicit import ImplicitReward
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.preference_head import HEAD, attach_head
from prlhf_kit.training.persrm import PersRMRecipe, load_persrm, train_persrm
from prlhf_kit.training.resume import fit
from prlhf_kit.training.reward_config import PersonalizedRewardConfig
from prlhf_kit.training.vocabulary import (
    VocabularyRewardTrainer,
    load_vocabulary_reward,
    new_vocabulary_reward,
    token_rewards,
)

SHORT, LONG = "Short answers, please.", "Tell me everything at length."
FAST = {"learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 4, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}  # fmt: skip


@pytest.fixture
def wishes():
    """The same prompts and responses, ranked by two preferences in opposite ways."""
    rows = []
    for i in range(8):
        brief, full = "No.", f"Well, let me tell you all about number {i} and more."
        rows.append(record(f"s{i}", "ann", f"Question {i}?", brief, full, SHORT))
        rows.append(record(f"l{i}", "bob", f"Question {i}?", full, brief, LONG))
    return Dataset.from_list(rows)


@pytest.fixture
def recipe(base, tmp_path):
    adapter = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    return PersRMRecipe(base, str(tmp_path / "persrm"), backbone=FAST, head=FAST, adapter=adapter)


def test_two_stages(recipe, wishes, tokenizer, tmp_path):
    logs = train_persrm(recipe, wishes)
    assert set(logs) == {"backbone", "head"}
    stages = tmp_path / "persrm-stages"
    first, joined = (
        load_file(folder / "adapter_model.safetensors") for folder in (stages / "backbone", tmp_path / "persrm")
    )
    heads = [key for key in first if HEAD in key]
    weight = next(first[key] for key in heads if key.endswith("weight"))
    assert torch.equal(weight, torch.eye(len(weight)))  # stage 1 leaves the head the identity
    assert not any(first[key].any() for key in heads if key.endswith("bias"))
    for key in first:
        assert torch.equal(first[key], joined[key]) == (key not in heads)  # stage 2 changes the head alone
    model = load_persrm(tmp_path / "persrm")
    reward = ImplicitReward(kit.PAD(model), tokenizer, batch_size=5)
    chosen, rejected = (reward.score(wishes["prompt"], wishes[c], wishes["user_text"]) for c in ("chosen", "rejected"))
    assert (chosen > rejected).float().mean() > 0.9
    # the reference of stage 2 is the stage-1 backbone, that of stage 1 the model before; neither sees preferences
    backbone = PeftModel.from_pretrained(attach_head(kit.load_model(recipe.model)), stages / "backbone").eval()
    unseen = score_pairs(backbone, tokenizer, wishes)
    stored = load_from_disk(str(stages / "pairs-head"))
    assert stored["ref_chosen_logps"] == pytest.approx(unseen.chosen_logp.tolist(), abs=1e-3)
    assert stored["ref_rejected_logps"] == pytest.approx(unseen.rejected_logp.tolist(), abs=1e-3)
    start = score_pairs(kit.load_model(recipe.model), tokenizer, wishes)
    stored = load_from_disk(str(stages / "pairs-backbone"))
    assert stored["ref_chosen_logps"] == pytest.approx(start.chosen_logp.tolist(), abs=1e-3)
    # nothing is trained twice, and nothing passes for another training
    before = (tmp_path / "persrm" / "adapter_model.safetensors").stat().st_mtime_ns
    train_persrm(recipe, wishes)
    assert (tmp_path / "persrm" / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="belongs to a training on other pairs"):
        train_persrm(recipe, wishes.select(range(8)))


def test_a_killed_training_goes_on(recipe, wishes, tmp_path, monkeypatch):
    """Killed between the stages: stage 1 is not trained again, and the result is the same."""
    from prlhf_kit.training import persrm

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(persrm.PeftModel, "merge_and_unload", killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        train_persrm(recipe, wishes)
    assert not (tmp_path / "persrm").exists()
    monkeypatch.undo()
    train_persrm(recipe, wishes)
    other = PersRMRecipe(recipe.model, str(tmp_path / "other"), backbone=FAST, head=FAST, adapter=recipe.adapter)
    train_persrm(other, wishes)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("persrm", "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_steers_and_its_wording_is_that_of_its_training(recipe, wishes, tokenizer, tmp_path):
    train_persrm(recipe, wishes)
    model = load_persrm(tmp_path / "persrm")
    guide = kit.PAD(model)
    row = guide.rows(0, wishes[0]["prompt"], SHORT, tokenizer)[0][0]
    assert tokenizer.decode(row.ids).count(recipe.wording.format(SHORT)) == 1
    decoder = kit.GuidedDecoder(None, tokenizer, guide, max_new_tokens=6, top_k=50, weight=3.0)
    short, long = decoder.generate([wishes[0]["prompt"]] * 2, [SHORT, LONG])
    assert short.tokens != long.tokens


def test_a_persrm_without_its_head_is_an_error(recipe, wishes, tmp_path):
    train_persrm(recipe, wishes)
    weights = tmp_path / "persrm" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(weights).items() if HEAD not in key}, weights)
    with pytest.raises(kit.ModelError, match="preference head is missing"):
        load_persrm(tmp_path / "persrm")
    weights.unlink()
    with pytest.raises(kit.ModelError, match="preference head is missing"):
        load_persrm(tmp_path / "persrm")
    with pytest.raises(kit.ModelError, match="holds no PersRM"):
        load_persrm(tmp_path)


def test_bad_recipes_and_pairs(base, wishes, tmp_path):
    with pytest.raises(ValueError, match=r"expected a text with one \{\}"):
        PersRMRecipe(base, str(tmp_path / "x"), wording="Be good.")
    silent = wishes.map(lambda row, i: {"user_text": row["user_text"] if i else None}, with_indices=True)
    with pytest.raises(ValueError, match="1 of 16 pairs have no user_text"):
        train_persrm(PersRMRecipe(base, str(tmp_path / "x")), silent)
    with pytest.raises(ValueError, match="no pairs to train on"):
        train_persrm(PersRMRecipe(base, str(tmp_path / "x")), wishes.select([]))
    with pytest.raises(TypeError, match="learning_rat"):  # before stage 1
        train_persrm(PersRMRecipe(base, str(tmp_path / "x"), head={"learning_rat": 1.0}), wishes)
    assert not (tmp_path / "x-stages").exists()
    with pytest.raises(ValueError, match="a preference head already"):
        attach_head(attach_head(kit.load_model(base)))


# Vocabulary-wide rewards ------------------------------------------------------------------------------------------


def test_rewards_of_tokens():
    logits = torch.arange(2 * 4 * 3, dtype=torch.float32).view(2, 4, 3)
    ids = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0]])
    asked = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    found, counts = token_rewards(logits, ids, asked)
    assert counts.tolist() == [2, 1]
    assert found[0].tolist() == [logits[0, 1, 2], logits[0, 2, 0]]
    assert found[1, 0] == logits[1, 0, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_beginnings(base, wishes, tokenizer, tmp_path, side):
    model = new_vocabulary_reward(base)
    args = PersonalizedRewardConfig(**FAST, output_dir=str(tmp_path / "c"), use_cpu=True, padding_side=side)
    trainer = VocabularyRewardTrainer(model, args, wishes.select([0, 3, 4]), None, tokenizer)
    rows = [trainer.train_dataset[i] for i in range(3)]
    wanted = []
    for row in rows:
        rewards = []
        for ids, start in zip(row["text_ids"], row["prompt_tokens"], strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0]
            rewards.append(torch.stack([logits[t - 1, ids[t]] for t in range(start, len(ids))]))
        n = min(map(len, rewards))
        wanted.append(torch.nn.functional.softplus(rewards[1][:n] - rewards[0][:n]).mean())
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)


def test_a_whole_model_with_users_and_its_own_lm_head(base, wishes, tokenizer, tmp_path):
    """What is loaded gives the logits of what was trained, for every user."""
    model = new_vocabulary_reward(base)
    assert not model.config.tie_word_embeddings
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings().weight, 2))
    args = PersonalizedRewardConfig(**FAST, output_dir=str(tmp_path / "c"), use_cpu=True)
    fit(VocabularyRewardTrainer(model, args, wishes, None, tokenizer), tmp_path / "reward")
    found, users = load_vocabulary_reward(tmp_path / "reward")
    assert users.user_ids == ["ann", "bob"]
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        for row in range(3):
            inputs = {"input_ids": ids, "user_rows": torch.tensor([row])}
            torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits)


def test_it_learns_is_saved_and_steers(base, tokenizer, tmp_path):
    from peft import LoraConfig

    rows = [record(f"p{i}", "ann", f"Question {i}?", "Yes, sure, yes.", "No, never, no.") for i in range(8)]
    args = PersonalizedRewardConfig(
        **FAST | {"num_train_epochs": 6}, output_dir=str(tmp_path / "c"), use_cpu=True, eval_strategy="epoch"
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    pairs = Dataset.from_list(rows)
    trainer = VocabularyRewardTrainer(new_vocabulary_reward(base), args, pairs, pairs, tokenizer, peft_config=adapter)
    log = fit(trainer, tmp_path / "reward")
    losses = log.loss.dropna()
    assert losses.iloc[-1] < losses.iloc[0] / 2
    assert log.eval_accuracy.dropna().iloc[-1] == 1.0
    model, users = load_vocabulary_reward(tmp_path / "reward")
    assert users is None
    base_model, prompt = model.get_base_model(), rows[0]["prompt"]
    row = trainer.train_dataset[0]
    yes, no = (ids[start] for ids, start in zip(row["text_ids"], row["prompt_tokens"], strict=True))
    [answer] = kit.GuidedDecoder(
        base_model, tokenizer, Vocabulary(model), weight=9.0, top_k=600, max_new_tokens=4
    ).generate([prompt])
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        rewards = model(**ids).logits[0, -1]
    with torch.no_grad(), model.disable_adapter():
        before = model(**ids).logits[0, -1]
    assert rewards[yes] - rewards[no] > before[yes] - before[no] + 0.5  # of the first token, too
    assert answer.rewards[0] == pytest.approx(rewards[answer.tokens[0]].item(), abs=1e-4)
    with pytest.raises(kit.ModelError, match="no vocabulary-wide reward model"):
        load_vocabulary_reward(base)
    with pytest.raises(ValueError, match="expected one of new_vocabulary_reward"):
        VocabularyRewardTrainer(kit.load_model(base), args, pairs, None, tokenizer)
