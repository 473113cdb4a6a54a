"""Reward models on disk, of any backbone, and in use."""

import json
import math

import pytest
import torch
from conftest import ALL_FAMILIES, build_tiny
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from transformers.modeling_outputs import ModelOutput

import prlhf_kit as kit
from prlhf_kit.data.schema import message
from prlhf_kit.files import in_chunks
from prlhf_kit.models.conditioning import ConditioningError
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.reward_model import load_reward_model, new_reward_model, pool, save_beside
from prlhf_kit.models.rewards import SequenceReward, best_of_n, load_reward, preference
from prlhf_kit.models.tokenize import encode, padded
from prlhf_kit.models.user_index import UserIndex

PROMPTS = ["How do I make tea?", "What is rain?", "How do I make tea?"]
RESPONSES = ["Boil water first, then pour it over the leaves.", "Water.", "No."]


def save(model, tokenizer, folder, users=None):
    """As the trainer does."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_beside(model, folder, users)


def test_saved_models_come_back_and_others_can_load_them(base, tokenizer, tmp_path):
    model = new_reward_model(base, "mean", lm_head=True)
    users = UserIndex(["ann", "bob"])
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    save(model, tokenizer, tmp_path / "rm", users)
    again, index = load_reward_model(str(tmp_path / "rm"), lm_head=True)
    assert index.user_ids == users.user_ids
    ids, rows = torch.randint(5, 100, (2, 7)), torch.tensor([1, 2])
    asked = torch.ones_like(ids)
    ours, theirs = (m(input_ids=ids, user_rows=rows, lm_asked=asked) for m in (model, again))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.nll, theirs.nll)
    assert ours.logits[0] != again(input_ids=ids, user_rows=rows.flip(0)).logits[0]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")  # of transformers, its own pooling
    assert torch.equal(plain.score.weight, model.score.weight)
    save(again, tokenizer, tmp_path)  # a second stage still knows where the base is
    assert json.loads((tmp_path / "reward.json").read_text())["base_model"] == base


def test_scores_are_the_same_in_any_batch(tokenizer, tmp_path):
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=len(tokenizer), num_labels=1, pad_token_id=7)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)  # whose padding token is not the tokenizer's
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward(str(tmp_path), batch_size=2)
    together = reward.score(PROMPTS, RESPONSES)
    assert together.shape == (3,)
    alone = [load_reward(str(tmp_path)).score([p], [r]).item() for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    mean = SequenceReward(new_reward_model(str(tmp_path), "mean"), tokenizer)
    assert not torch.allclose(mean.score(PROMPTS, RESPONSES), together)
    assert reward.score([], []).shape == (0,)


def test_killed_in_the_middle_only_the_rest_is_computed(tmp_path):
    done = []

    def compute(items):
        if len(done) == 2 and items[0] == 4:
            raise KeyboardInterrupt
        done.extend(items)
        return [[item] for item in items]

    with pytest.raises(KeyboardInterrupt):
        in_chunks(compute, [1, 2, 4, 5, 6], tmp_path / "x", size=2)
    done.append(0)
    assert in_chunks(compute, [1, 2, 4, 5, 6], tmp_path / "x", size=2).tolist() == [[1], [2], [4], [5], [6]]
    assert done == [1, 2, 0, 4, 5, 6]


def test_judge_and_best_of_n_follow_the_user(base):
    model = new_reward_model(base)
    table = kit.IndividualUserModel(3, model.get_input_embeddings(), 2)
    with torch.no_grad():
        table.own += torch.randn(table.own.shape, generator=torch.Generator().manual_seed(3))
    kit.condition(model, table)
    reward = SequenceReward(model, kit.load_tokenizer(base), UserIndex(["ann", "bob"]))
    one, other = (reward.score(PROMPTS[:1] * 3, RESPONSES, [user] * 3) for user in ("ann", "bob"))
    assert not torch.allclose(one, other)
    p = preference(reward, PROMPTS[:1], RESPONSES[:1], RESPONSES[1:2], ["ann"]).item()
    assert p == pytest.approx(1 / (1 + math.exp(one[1] - one[0])), abs=1e-5)
    [(number, value)] = best_of_n(reward, PROMPTS[:1], [RESPONSES], ["ann"])
    assert (number, value) == (one.argmax().item(), pytest.approx(one.max().item()))
    generic = reward.score(PROMPTS[:1], RESPONSES[:1])
    assert generic == reward.score(PROMPTS[:1], RESPONSES[:1], ["a stranger"])
    with pytest.raises(ValueError, match="an empty response"):
        reward.score(PROMPTS[:1], [" "])


def test_a_model_of_armorms_shape(base, tokenizer):
    """Several `rewards`, one logit that is their mean, a head of another name, and a decoder below."""

    class ArmoShape(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.model, self.regression_layer = kit.load_model(base).model, torch.nn.Linear(32, 4, bias=False)
            self.config = self.model.config
            self.config.num_labels = 1

        def forward(self, input_ids, attention_mask):
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            rewards = self.regression_layer(hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1])
            return ModelOutput(rewards=rewards, logits=rewards.mean(1))

    model = ArmoShape().eval()
    texts = zip(PROMPTS, RESPONSES, strict=True)
    ids = [torch.tensor([encode(tokenizer, message("user", p), message("assistant", r))[0]]) for p, r in texts]
    own = torch.cat([model(text, torch.ones_like(text)).rewards for text in ids])
    for dimension, rewards in ((3, own[:, 3]), (None, own.mean(1))):
        found = SequenceReward(model, tokenizer, dimension=dimension).score(PROMPTS, RESPONSES)
        assert found.tolist() == pytest.approx(rewards.tolist(), abs=1e-5)
    model.config.num_labels = 4
    with pytest.raises(ValueError, match="dimension=0 to 3"):
        SequenceReward(model, tokenizer)


def test_an_encoder_reads_prompt_and_response_as_its_tokenizer_joins_them(bert):
    folder, tokenizer = bert
    ids, start = encode(tokenizer, message("user", PROMPTS[0]), message("assistant", RESPONSES[0]), decoder=False)
    joined = tokenizer(PROMPTS[0], RESPONSES[0])
    assert ids == joined["input_ids"]
    assert start == joined["token_type_ids"].index(1)
    words = joined["input_ids"]
    for length in (len(words) - 2, 6):  # a part of one text, and more than that
        cut, start = encode(tokenizer, message("user", PROMPTS[0]), message("assistant", RESPONSES[0]), length, False)
        assert (len(cut), cut[0], cut[-1]) == (length, tokenizer.cls_token_id, tokenizer.sep_token_id)
        if length > 6:  # the prompt's beginning
            assert cut[1:] == words[3:]
    alone, start = encode(tokenizer, [], message("assistant", RESPONSES[0]), decoder=False)
    assert (alone, start) == (tokenizer(RESPONSES[0])["input_ids"], 0)
    scores = load_reward(folder).score(PROMPTS, RESPONSES)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = [model(**tokenizer(p, r, return_tensors="pt")).logits.item() for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert scores.tolist() == pytest.approx(own, abs=1e-5)


def test_what_does_not_go_together_is_refused(bert, base):
    folder, _ = bert
    with pytest.raises(ModelError, match="lm_loss_coeff=0"):
        new_reward_model(folder, lm_head=True)
    with pytest.raises(ValueError, match="expected one of last, before_eos, mean, max, own"):
        new_reward_model(base, "first")
    with pytest.raises(ConditioningError, match="has an encoder"):
        kit.condition(new_reward_model(folder), torch.nn.Embedding(2, 32))


def test_pooling_by_hand_on_either_side():
    hidden = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]], [[9.0, 9.0], [1.0, -5.0], [3.0, -1.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, "max").tolist() == [[3, -1], [3, -1]]  # not the 0 of a zeroed padding
    assert pool(hidden, mask, "mean").tolist() == [[2, -3], [2, -3]]
    assert pool(hidden, mask, "last").tolist() == [[3, -1], [3, -1]]
    assert pool(hidden, mask, "before_eos").tolist() == [[1, -5], [1, -5]]
    single = torch.tensor([[1, 0, 0], [0, 0, 1]])
    assert pool(hidden, single, "before_eos").tolist() == [[1, -5], [3, -1]]  # texts of one token


@pytest.mark.parametrize("architecture", ALL_FAMILIES)
def test_padding_side_and_lm_head_on_every_family(architecture, tokenizer, tmp_path):
    """A padded batch gives the rewards of single texts, and the LM term is the base model's own loss."""
    lm = build_tiny(architecture, len(tokenizer))
    lm.save_pretrained(tmp_path)
    texts = [[7, 8, 9, 10, 11, 2], [12, 13, 2]]  # ending with the token that pads, too
    model = new_reward_model(str(tmp_path), lm_head=True)
    model.config.pad_token_id = 2
    alone = [model(input_ids=torch.tensor([t])).logits.item() for t in texts]
    losses = [lm(input_ids=torch.tensor([t]), labels=torch.tensor([t])).loss.item() for t in texts]
    for side in ("left", "right"):
        ids, mask = padded(texts, 2, side)
        output = model(input_ids=ids, attention_mask=mask, lm_asked=mask)
        assert output.logits.flatten().tolist() == pytest.approx(alone, abs=1e-4), side
        assert output.nll.tolist() == pytest.approx(losses, abs=1e-4), side
