"""What trainers settle about users: where their tokens go, who row 0 is, who reads their words."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import logsigmoid

import prlhf_kit as kit
from prlhf_kit.data.chat import with_user_text
from prlhf_kit.evaluation.accuracy import GENERIC_ROW, PERSONAL, ranked_by_method
from prlhf_kit.models.conditioning import user_models
from prlhf_kit.models.logprobs import add_reference_logps, as_read, score_pairs
from prlhf_kit.models.reward_model import load_reward_model
from prlhf_kit.models.tokenize import begins_with_bos
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.training.reward_stages import RewardRecipe, train_reward
from training.conftest import SETTINGS, make_trainer

OWN_ROW_0 = [("cluster", {"clusters": 3}), ("individual", {"add_generic_user": False})]


@pytest.mark.parametrize(("given", "writes", "after"), [(None, False, False), (None, True, True), (False, True, False)])
def test_user_tokens_go_after_bos_if_written(make_tiny, base, tokenizer, pairs, tmp_path, given, writes, after):
    if writes:
        tokenizer = copy.deepcopy(tokenizer)
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    trainer = make_trainer(make_tiny(users=3, after_bos=given), tokenizer, pairs, tmp_path)
    trainer.save_model()
    loaded, _ = kit.load_personalized(tmp_path, base)
    assert [table.after_bos for m in (trainer.model, loaded) for table in user_models(m)] == [after] * 4
    if writes:  # a template that leaves BOS out, as Tulu's: behind the first token would be inside a mark
        tokenizer.chat_template = "<|user|>\n{{ messages[0]['content'] }}"
        assert not begins_with_bos(tokenizer)


@pytest.mark.parametrize(("kind", "options"), OWN_ROW_0)
def test_row_0_is_what_training_makes_of_it(make_tiny, base, tokenizer, pairs, tmp_path, kind, options):
    """At alpha = 1 no term trains it: the mean of the users, in evaluation and when saved. Below, its own numbers."""
    for alpha in (1.0, 0.5):
        trainer = make_trainer(make_tiny(users=3, kind=kind, **options), tokenizer, pairs, tmp_path, alpha=alpha)
        table = user_models(trainer.model)[-1]
        before = table(torch.tensor([0])).detach()
        trainer.train()
        now = table(torch.tensor([0])).detach()
        assert (now - before).abs().max() > 1e-3
        own = table.own[1:].mean(0, keepdim=True) if alpha == 1 else table.own[:1]
        torch.testing.assert_close(now, table.tokens(own).detach())
        trainer.save_model()
        loaded, _ = kit.load_personalized(tmp_path, base)
        assert torch.equal(user_models(loaded)[-1](torch.tensor([0])), now)


@pytest.mark.parametrize(("kind", "options"), OWN_ROW_0)
def test_so_it_is_in_a_reward_model(base, pairs, tmp_path, kind, options):
    adapter = {"r": 2, "target_modules": ["q_proj"]}
    users = {"user_model": kind, "user_model_options": {"num_tokens": 3, **options}}
    train_reward(RewardRecipe(adapter=adapter, settings=SETTINGS, **users), base, pairs, tmp_path / "out")
    table = user_models(load_reward_model(str(tmp_path / "out"))[0])[-1]
    start = USER_MODELS[kind](4, kit.load_model(base).get_input_embeddings(), 3, **options)
    found = table(torch.tensor([0]))
    torch.testing.assert_close(found, table.tokens(table.own[1:].mean(0, keepdim=True)))
    assert (found - start(torch.tensor([0]))).abs().max() > 1e-3


@pytest.mark.parametrize(("user_text", "given"), [(True, True), ("authors", True), ("authors", False)])
def test_who_reads_the_users_words(make_tiny, tokenizer, pairs, tmp_path, user_text, given):
    """Policy and generic user, not the reference; or as P-RLHF's code: policy and reference, not the generic user."""
    told = pairs.remove_columns("user_text").add_column("user_text", [f"I am {u}." for u in pairs["user_id"]])
    mute = told.map(lambda _: {"user_text": None})
    base, authors = make_tiny(), user_text == "authors"
    asked = add_reference_logps(told, base, tokenizer) if given else told
    model = make_tiny(users=3, offsets=0.5, user_text=user_text)
    trainer = make_trainer(model, tokenizer, asked, tmp_path, alpha=0.25, beta=0.5)
    batch = trainer.data_collator(list(trainer.train_dataset))
    for part, words in ((batch, True), (batch.get("generic", batch), not authors)):
        assert all(("I am" in text) is words for text in tokenizer.batch_decode(part["prompt_ids"]))

    def gap(scored, pairs, rows=None):
        scores = score_pairs(scored, tokenizer, pairs, rows)
        return torch.tensor((scores.chosen_logp - scores.rejected_logp).to_numpy())

    policy, rows = trainer.model.eval(), trainer.user_index.rows(told["user_id"])
    silent = gap(base, told)
    reference = gap(base, with_user_text(told)) if authors else silent
    own = gap(policy, told, rows) - reference
    generic = gap(policy, mute if authors else told, [0] * len(told)) - silent
    wanted = -0.25 * logsigmoid(0.5 * own).mean() - 0.75 * logsigmoid(0.5 * generic).mean()
    assert trainer.compute_loss(policy, batch).item() == pytest.approx(wanted.item(), abs=1e-5)
    if not authors:  # who has no row of their own is not told who asks in words either
        everybody = ranked_by_method(policy, [], tokenizer, trainer.user_index, told, told)
        strangers = ranked_by_method(policy, [], tokenizer, kit.UserIndex([]), mute, told)
        found = [t[t.method == m].value.tolist() for t, m in ((everybody, GENERIC_ROW), (strangers, PERSONAL))]
        assert found[0] == found[1]
    read = as_read(policy, told, reference=True)
    assert read["prompt"][0] == (with_user_text(told) if authors else told)["prompt"][0]
