"""Personalised generation against plain uncached loops, token for token in float32."""

import copy
import json

import numpy as np
import pytest
from conftest import ALL_FAMILIES

import prlhf_kit as kit
from decoding.plain import PROMPTS, reader, steered
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.guides import ImplicitReward
from prlhf_kit.decoding.respond import respond
from prlhf_kit.models.tokenize import tokenizer_hash


def test_sampling_is_seeded(personal, tokenizer):
    options = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 8}
    one = kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=1, **options)
    assert one == kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=1, **options)
    assert one != kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=2, **options)
    assert one == kit.generate(personal, tokenizer, PROMPTS, np.array([1, 2, 3]), seed=1, **options)


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(personal, base, pairs, tokenizer, tmp_path):
    """By its hash in `users.json`, wherever the model is used; without a hash by the number of its tokens."""
    personal.get_base_model().tokenizer_hash = tokenizer_hash(tokenizer)  # as the trainer leaves it
    kit.save_personalized(personal, kit.UserIndex(["ann", "bob", "eve"]), tmp_path)
    model, users = kit.load_personalized(tmp_path, base)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    other = copy.deepcopy(tokenizer)
    other._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    for use in (
        lambda: kit.generate(model, other, PROMPTS[:1], [1]),
        lambda: kit.GuidedDecoder(None, other, kit.PAD(model, users)),
        lambda: respond(model, other, [], tmp_path / "answers", system="a"),
        lambda: ImplicitReward(kit.PAD(model, users), other),
        lambda: kit.adapt(model, other, pairs),
    ):
        with pytest.raises(kit.ModelError, match=r"600 tokens.* is not the one that the model was trained with"):
            use()
    model.get_base_model().tokenizer_hash = None  # trained by an earlier version
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["zzz"])
    with pytest.raises(kit.ModelError, match="601 tokens, the model's embedding has 600"):
        kit.generate(model, longer, PROMPTS[:1], [1])


def test_bad_requests(personal, tokenizer):
    for match, prompts, rows, options in (
        (r"user_rows is \[1\] for 3 prompts", PROMPTS, [1], {}),
        (r"user_rows is \['ann'\] for 1 prompts.* index.rows", PROMPTS[:1], ["ann"], {}),
        (r"a prompt is .*'content': 'Hi'.*expected a list of messages.* list of such lists", PROMPTS[0], [1], {}),
        ("no option 'max_new_token'. Did you mean 'max_new_tokens'", PROMPTS, [1] * 3, {"max_new_token": 4}),
        ("empty prompt", [[{"role": "user", "content": " "}]], [1], {}),
        ("context of 256", [[{"role": "user", "content": "long text " * 80}]], [1], {}),
    ):
        with pytest.raises(kit.ConditioningError if "context" in match else kit.DecodingError, match=match):
            kit.generate(personal, tokenizer, prompts, rows, **options)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_generates_for_users_as_without_a_cache(make_tiny, tokenizer, family):
    """In a left-padded batch with a cache, and one by one with the whole text read again for each token."""
    model, rows, length = make_tiny(family, users=3, offsets=0.8), [1, 2, 3], {"max_new_tokens": 6}
    read = [reader(model, tokenizer, prompt, user=row) for prompt, row in zip(PROMPTS, rows, strict=True)]
    wanted = [tokenizer.decode(steered(tokenizer, one, [], steps=6), skip_special_tokens=True).strip() for one in read]
    assert kit.generate(model, tokenizer, PROMPTS, rows, **length) == wanted
    assert len(set(kit.generate(model, tokenizer, [PROMPTS[1]] * 3, rows, **length))) > 1  # users differ


@pytest.mark.parametrize("users", [True, False])
def test_penalties_do_not_depend_on_the_batch(make_tiny, tokenizer, users):
    """They go by token ids, of which padding and soft tokens have none of their own."""
    model = make_tiny(users=2, offsets=0.8)
    prompts = [message("user", "how do i make tea " * n) for n in (1, 5, 8)]
    rows, same = [1, 2, 1], {"max_new_tokens": 24, "repetition_penalty": 3.0}
    together = kit.generate(model, tokenizer, prompts, rows if users else None, **same)
    for prompt, row, answer in zip(prompts, rows, together, strict=True):
        assert kit.generate(model, tokenizer, [prompt], [row] if users else None, **same) == [answer]
    assert together != kit.generate(model, tokenizer, prompts, rows if users else None, max_new_tokens=24)
