"""Conditioning a model on users, and what is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

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


def test_a_model_that_would_ignore_users_is_refused():
    """OPT's forward calls the decoder inside its backbone, where no user token is."""
    size = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=20, word_embed_proj_dim=16, **size))
    forward = model.forward
    with pytest.raises(kit.ConditioningError, match="does not call its backbone"):
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    assert not hasattr(model, "user_model")
    assert model.forward == forward


SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "hidden_size": 16, "vocab_size": 50, "rotary_dim": 4}
SIZES |= {"d_model": 16, "n_heads": 2, "n_layers": 2}


# of the last three `forward` takes no users; P-RLHF's GPT-J is among them
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gptj", "bloom", "mpt"])
@pytest.mark.parametrize("after_bos", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_where_the_tokens_go(make_tiny, family, after_bos, adapter):
    """Logits with users equal those of embeddings that are put together by hand, for left and right padding."""
    torch.manual_seed(0)
    made = family in ("gptj", "bloom", "mpt")
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval() if made else make_tiny(family)
    )
    words = model.get_input_embeddings()
    users = kit.IndividualUserModel(4, words, 3, after_bos=after_bos)
    kit.condition(model, users)
    called = get_peft_model(model, LoraConfig(target_modules="all-linear")).eval() if adapter else model
    ids, rows, at = torch.tensor([[1, 7, 8, 9], [1, 11, 12, 13]]), torch.tensor([1, 3]), int(after_bos)
    with torch.no_grad():
        joined = torch.cat([words(ids)[:, :at], users(rows), words(ids)[:, at:]], 1)
        expected = called(inputs_embeds=joined).logits
        kept = torch.cat([expected[:, :at], expected[:, at + 3 :]], 1)
        found = called(ids, user_rows=rows, output_hidden_states=True)
        pad, mask = torch.full((2, 2), 2), torch.tensor([[0, 0, 1, 1, 1, 1]] * 2)
        left = called(torch.cat([pad, ids], 1), attention_mask=mask, user_rows=rows).logits[:, 2:]
        right = called(torch.cat([ids, pad], 1), attention_mask=mask.flip(1), user_rows=rows).logits[:, :4]
        assert not torch.allclose(found.logits, called(ids).logits)
    assert {states.shape[1] for states in found.hidden_states} == {4}
    for logits in (found.logits, left, right):
        torch.testing.assert_close(logits, kept, atol=1e-5, rtol=1e-5)
