"""vLLM as an engine, against a stand-in of its interface: vLLM itself needs a GPU and is not installed here.

The stand-in loads the folder that was written for vLLM with transformers and decodes with plain uncached loops.
"""

import copy
import sys
import threading
import types
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.generate import generation_config, identity
from prlhf_kit.decoding.respond import respond
from prlhf_kit.decoding.vllm_engine import load_vllm, prompt_for_vllm, sampling_options, write_for_vllm
from prlhf_kit.models import conditioning
from prlhf_kit.models.preference_head import attach_head

INDEX = kit.UserIndex(["ann", "bob", "eve"])
JOBS = [
    {"user_id": user, "prompt": message("user", text)}
    for text in ("Hi", "Tell me something about the sea, please", "Why not?")
    for user in ("ann", "bob", "zoe")
]
LENGTH = {"max_new_tokens": 10}


@dataclass
class SamplingParams:
    """The fields of vLLM's that are used, with its names, defaults and checks."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    max_tokens: int | None = 16
    min_tokens: int = 0

    def __post_init__(self):
        assert 0 <= self.temperature <= 2
        assert 0 < self.top_p <= 1
        assert isinstance(self.top_k, int)
        assert self.top_k >= -1
        assert self.min_tokens <= self.max_tokens


class LLM:
    """Loads a folder and decodes prompts one by one, from token ids or embeddings `[L, d_model]`."""

    made: list["LLM"] = []  # noqa: RUF012

    def __init__(self, model, *, dtype, generation_config, enable_prompt_embeds=False, enable_prefix_caching=True,
                 gpu_memory_utilization=0.9):  # fmt: skip
        assert generation_config == "vllm"
        assert not (enable_prompt_embeds and enable_prefix_caching)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.end = AutoTokenizer.from_pretrained(model).eos_token_id
        self.embeds, self.share, self.calls = enable_prompt_embeds, gpu_memory_utilization, []
        self.made.append(self)

    @torch.no_grad()
    def generate(self, prompts, sampling_params):
        assert len(prompts) == len(sampling_params)
        self.calls.append(list(sampling_params))
        return [self.answer(p, s) for p, s in zip(prompts, sampling_params, strict=True)]

    def answer(self, prompt, params):
        words = self.model.get_input_embeddings()
        if "prompt_embeds" in prompt:
            assert self.embeds
            text = prompt["prompt_embeds"]
            assert text.dim() == 2
            assert text.dtype == self.model.dtype
            assert text.device.type == "cpu"
            assert not text.requires_grad
        else:
            text = words(torch.tensor(prompt["prompt_token_ids"]))
        ends, ids, reason = {self.end, *params.stop_token_ids}, [], "length"
        draw = torch.Generator().manual_seed(params.seed)
        while len(ids) < params.max_tokens:
            logits = self.model(inputs_embeds=text[None]).logits[0, -1]
            if len(ids) < params.min_tokens:
                logits[list(ends)] = -torch.inf
            if params.temperature == 0:
                ids.append(int(logits.argmax()))
            else:
                ids.append(int(torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=draw)))
            text = torch.cat([text, words(torch.tensor(ids[-1:]))])
            if ids[-1] in ends:
                reason = "stop"
                break
        one = types.SimpleNamespace(text="not read", token_ids=tuple(ids), finish_reason=reason)
        return types.SimpleNamespace(outputs=[one])


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    """The stand-in where `vllm` would be; models are written into a cache of this test's."""
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, LLM.made = LLM, SamplingParams, []
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path / "cache"))
    return module


def test_personalised_answers_equal_those_of_transformers(personal, tokenizer, tmp_path, vllm):
    """Soft tokens of several users, an unknown one among them, over a LoRA adapter; llama, GPT-2 and GPT-NeoX."""
    path = tmp_path / "answers.jsonl"
    contexts = Contexts("true", {"ann": None, "bob": None, "zoe": None})
    for options in ({"index": INDEX}, {}, {"index": INDEX, "contexts": contexts}):
        theirs = respond(personal, tokenizer, JOBS, path, system="a", engine="vllm", **options, **LENGTH)
        ours = respond(personal, tokenizer, JOBS, path, system="a", **options, **LENGTH)
        assert theirs.drop(columns=["key", "engine"]).equals(ours.drop(columns=["key", "engine"]))
        assert set(theirs.engine) == {"vllm"}
        assert not set(theirs.key) & set(ours.key)
        assert len(set(theirs.answer[3:6])) == (3 if "index" in options else 1)
    assert not theirs.finished.any()
    conditioning.causal_lm(personal).generation_config.eos_token_id = [2, *range(1, 600, 7)]
    for options in ({"index": INDEX}, {"index": INDEX, "contexts": contexts}):
        theirs = respond(personal, tokenizer, JOBS, path, system="a", engine="vllm", **options, **LENGTH)
        ours = respond(personal, tokenizer, JOBS, path, system="a", **options, **LENGTH)
        for column in ("answer", "finished", "tokens"):
            assert list(theirs[column]) == list(ours[column])
    assert theirs.finished.any()
    assert len(set(theirs.tokens)) > 2
    assert all(llm.embeds for llm in LLM.made)
    known = len(LLM.made)
    again = respond(personal, tokenizer, JOBS, path, system="a", engine="vllm", **options, **LENGTH)
    assert again.equals(theirs)
    assert len(LLM.made) == known  # nothing to do, nothing loaded


def test_a_users_prompt_is_its_embeddings_alone(personal, tokenizer, vllm):
    prompt = JOBS[3]["prompt"]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_for_vllm(personal, tokenizer, prompt, None) == {"prompt_token_ids": ids}
    [(name, embeds)] = prompt_for_vllm(personal, tokenizer, prompt, 2).items()
    assert name == "prompt_embeds"
    users = conditioning.user_model_of(personal)(torch.tensor([2]))[0]
    assert torch.equal(embeds, torch.cat([users, personal.get_input_embeddings()(torch.tensor(ids))]).detach())
    assert embeds.shape == (3 + len(ids), 32)


def test_a_plain_model_needs_no_embeddings(make_tiny, tokenizer, tmp_path, vllm):
    model = make_tiny()
    engine = load_vllm(model, tokenizer, tmp_path / "plain", gpu_memory_utilization=0.5)
    tables = [
        respond(model, tokenizer, JOBS, tmp_path / "a", system="a", engine=one, **LENGTH)
        for one in (engine, "transformers")
    ]
    assert list(tables[0].answer) == list(tables[1].answer)
    assert list(tables[0].tokens) == list(tables[1].tokens)
    assert len(LLM.made) == 1
    assert not engine.llm.embeds
    assert engine.llm.share == 0.5
    [params] = engine.llm.calls
    assert len(params) == 3  # equal questions once
    other = make_tiny("gpt2")
    with pytest.raises(kit.DecodingError, match="vLLM has loaded the weights"):
        respond(other, tokenizer, JOBS, tmp_path / "a", system="a", engine=engine)


def test_sampling_has_a_seed_a_request_and_survives_a_kill(make_tiny, tokenizer, tmp_path, vllm, monkeypatch):
    model = make_tiny(users=3, offsets=0.8)
    options = {"system": "a", "index": INDEX, "do_sample": True, "temperature": 1.5, "batch_size": 2, **LENGTH}
    engine = load_vllm(model, tokenizer)
    whole = respond(model, tokenizer, JOBS, tmp_path / "whole", engine=engine, **options)
    seeds = [params.seed for call in engine.llm.calls for params in call]
    assert len(set(seeds)) == len(JOBS)
    assert {params.temperature for call in engine.llm.calls for params in call} == {1.5}
    decode = LLM.generate

    def killed(self, prompts, params):
        if params[0].seed == seeds[4]:
            raise KeyboardInterrupt
        return decode(self, prompts, params)

    with monkeypatch.context() as patch:
        patch.setattr(LLM, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            respond(model, tokenizer, JOBS, tmp_path / "a", engine=engine, **options)
    assert len((tmp_path / "a").read_text().splitlines()) == 4
    assert respond(model, tokenizer, JOBS, tmp_path / "a", engine=engine, **options).equals(whole)
    other = respond(model, tokenizer, JOBS, tmp_path / "a", engine=engine, **{**options, "seed": 1})
    assert list(other.answer) != list(whole.answer)


def test_options_mean_what_they_mean_to_transformers(make_tiny, tokenizer):
    model = make_tiny()

    def options(users=False, **generation):
        return sampling_options(model, generation_config(model, tokenizer, generation), users)

    same = {"min_tokens": 0, "repetition_penalty": 1.0, "stop": None, "stop_token_ids": [2]}
    assert options() == {**same, "max_tokens": 64, "temperature": 0.0}
    assert options(max_new_tokens=9, min_new_tokens=3, repetition_penalty=1.2, stop_strings=["\n"], num_beams=1) == {
        "max_tokens": 9, "min_tokens": 3, "repetition_penalty": 1.2, "stop": ["\n"], "stop_token_ids": [2],
        "temperature": 0.0,
    }  # fmt: skip
    drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    assert options(do_sample=True, **drawn) == {**same, "max_tokens": 64, **drawn}
    assert options(do_sample=True) == {
        **same, "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": 0.0,
    }  # fmt: skip
    own = model.generation_config
    own.eos_token_id, own.temperature, own.top_k, own.do_sample = [2, 7], 0.6, 20, True
    assert options(do_sample=True, top_k=5) == {
        **same, "stop_token_ids": [2, 7], "max_tokens": 64, "temperature": 0.6, "top_p": 1.0, "top_k": 5, "min_p": 0.0,
    }  # fmt: skip
    assert options()["temperature"] == 0.0
    for found in (options(), options(do_sample=True)):
        SamplingParams(**found, seed=1)
    for name, value in {
        "num_beams": 2, "no_repeat_ngram_size": 3, "typical_p": 0.5, "penalty_alpha": 0.6, "bad_words_ids": [[3]],
        "renormalize_logits": True, "forced_eos_token_id": 1,
    }.items():  # fmt: skip
        with pytest.raises(kit.DecodingError, match=f"no counterpart of {name}="):
            options(**{name: value})
    own.no_repeat_ngram_size = 2
    with pytest.raises(kit.DecodingError, match=r"no counterpart of no_repeat_ngram_size=2.*the model's own"):
        options()
    own.no_repeat_ngram_size = None
    with pytest.raises(kit.DecodingError, match=r"repetition_penalty=1.2: .* embeddings"):
        options(users=True, repetition_penalty=1.2)


def test_the_written_model_is_the_adapted_one_without_users(personal, tokenizer, tmp_path):
    before, folder = identity(personal), tmp_path / "deep" / "model"
    weights = {name: value.clone() for name, value in personal.state_dict().items()}
    assert write_for_vllm(personal, tokenizer, folder) == folder
    assert identity(personal) == before
    assert all(torch.equal(value, weights[name]) for name, value in personal.state_dict().items())
    names = set(load_file(folder / "model.safetensors"))
    assert not any("user" in name or "lora" in name or "base_layer" in name for name in names)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(written, personal(input_ids=ids).logits)
        with personal.disable_adapter():
            plain = personal(input_ids=ids).logits
            write_for_vllm(personal, tokenizer, tmp_path / "base")
        assert not torch.allclose(written, plain)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits, plain)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    write_for_vllm(personal, tokenizer, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps


def test_a_written_model_is_whole_and_of_one_model(make_tiny, tokenizer, tmp_path, monkeypatch):
    model, folder = make_tiny(), tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_for_vllm(model, tokenizer, folder)
    assert not folder.exists()
    threads = [threading.Thread(target=write_for_vllm, args=(model, tokenizer, folder)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / "vllm.json").is_file()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight[5] += 1
    with pytest.raises(kit.DecodingError, match=f"holds {identity(model)}, expected {identity(other)}"):
        write_for_vllm(other, tokenizer, folder)
    (tmp_path / "mine").mkdir()
    with pytest.raises(kit.DecodingError, match="holds no model of respond's"):
        write_for_vllm(model, tokenizer, tmp_path / "mine")
    with pytest.raises(kit.DecodingError, match="no preference head"):
        write_for_vllm(attach_head(other), tokenizer, tmp_path / "headed")


def test_without_vllm_it_says_how_to_get_it(make_tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    with pytest.raises(kit.DecodingError, match=r"pip install 'vllm>=0.19.1'.*engine='transformers'"):
        respond(make_tiny(), tokenizer, [], tmp_path / "a", system="a", engine="vllm")
    with pytest.raises(kit.DecodingError, match="needs vLLM"):
        load_vllm(make_tiny(), tokenizer)
