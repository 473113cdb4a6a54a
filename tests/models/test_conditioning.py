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


@pytest.mark.parametrize("family", ["gptj", "bloom", "mpt"])
@pytest.mark.parametrize("adapter", [False, True])
def test_families_whose_forward_takes_no_users(family, adapter):
    """P-RLHF's GPT-J among them: what they see is the user's tokens and the words, padded or not, with LoRA or not."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    model = kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    called = get_peft_model(model, LoraConfig(target_modules="all-linear")).eval() if adapter else model
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        found = called(ids, user_rows=torch.tensor([1])).logits
        padded, mask = torch.tensor([[0, 0, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1, 1]])
        left = called(padded, attention_mask=mask, user_rows=torch.tensor([1])).logits[:, 2:]
        words = torch.cat([model.user_model(torch.tensor([1])), model.get_input_embeddings()(ids)], 1)
        torch.testing.assert_close(found, called(inputs_embeds=words).logits[:, 2:])
        torch.testing.assert_close(found, left)
        assert not torch.allclose(found, called(ids).logits)
