"""Conditioning a model on users, and what is refused."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import prlhf_kit as kit


def test_conditioning_refusals(make_tiny):
    model = make_tiny(users=2)
    with pytest.raises(kit.ConditioningError, match="user model already"):
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    with pytest.raises(kit.ConditioningError, match=r"shape \(2,\), expected one row a sequence"):
        model(input_ids=torch.tensor([[5]]), user_rows=torch.tensor([1, 2]))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20))
    with pytest.raises(kit.ConditioningError, match="T5ForConditionalGeneration has an encoder"):
        kit.condition(t5, kit.IndividualUserModel(3, t5.get_input_embeddings(), 2))


def test_a_model_that_swallows_users_is_refused(make_tiny, monkeypatch):
    model = make_tiny()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, user_rows=None, **kwargs: forward(*args, **kwargs))
    with pytest.raises(kit.ConditioningError, match="does not hand user_rows on"):
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    assert not hasattr(model, "user_model")
