"""The guided decoder's settings, records and files; the guides' formulas are in `test_guides.py`."""

import copy
import json

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import prlhf_kit as kit
from decoding.plain import PROMPTS, ids_of, reader, steered
from decoding.test_guides import LENGTH, ROWS, USERS, WHO, another, reward_model
from prlhf_kit.decoding.steered import Steered


@pytest.fixture
def steering(personal, tokenizer):
    """Either kind of guide, for a base of its own."""
    return {
        "pad": kit.PAD(personal, USERS, tokenizer=tokenizer),
        "args": kit.ARGS(reward_model(tokenizer, users=3)),
    }


def tokens(answers):
    return [answer.tokens for answer in answers]


def test_without_weight_it_is_the_bases_own_decoding(steering, make_tiny, tokenizer):
    base, ids = another(make_tiny), ids_of(tokenizer, PROMPTS[1])

    def own(**settings):
        return base.generate(ids, do_sample=False, **settings)[0, ids.shape[1] :].tolist()

    stop = tokenizer.decode(own(max_new_tokens=24)[5:7])
    for settings, name in (
        ({"repetition_penalty": 1.7, "min_new_tokens": 20}, {}),
        ({"stop_strings": stop}, {"tokenizer": tokenizer}),
    ):
        wanted = own(max_new_tokens=24, **settings, **name)
        for guide in steering.values():
            decoder = kit.GuidedDecoder(base, tokenizer, guide, weight=0.0, max_new_tokens=24, **settings)
            assert decoder.generate(PROMPTS)[1].tokens == wanted
    assert len(wanted) < 12  # the stop string did stop


def test_without_weight_in_bfloat16(make_tiny, tokenizer):
    """Where logits are equal, which half precision brings about, the token is the one that generate takes."""
    base = make_tiny().bfloat16()
    with torch.no_grad():
        base.lm_head.weight[300:] = base.lm_head.weight[:300]  # every logit twice
    decoder = kit.GuidedDecoder(base, tokenizer, kit.PAD(base), weight=0.0, max_new_tokens=12, top_k=6)
    for prompt in PROMPTS:
        ids = ids_of(tokenizer, prompt)
        own = base.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
        assert decoder.generate([prompt])[0].tokens == own


def test_sampling(personal, tokenizer):
    """Seeded; the same alone, in a batch, and in another order; repeated questions get other answers."""

    def decoder(**settings):
        drawn = {"do_sample": True, "temperature": 1.5, "seed": 4, **LENGTH}
        return kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **drawn | settings)

    out = tokens(decoder().generate(PROMPTS, WHO))
    for prompt, who, row, answer in zip(PROMPTS, WHO, ROWS, out, strict=True):
        [job] = decoder()._jobs([prompt], [who])
        drawn = torch.rand(12, generator=torch.Generator().manual_seed(int(job.key[:15], 16)))
        reference = reader(personal, tokenizer, prompt, adapter=False)
        terms = [(reader(personal, tokenizer, prompt, user=row), 1.0), (reference, -1.0)]
        assert answer == steered(tokenizer, reference, terms, draws=drawn, temperature=1.5)
        assert tokens(decoder().generate([prompt], [who])) == [answer]
    assert tokens(decoder().generate(PROMPTS[::-1], WHO[::-1])) == out[::-1]
    one, two = tokens(decoder().generate([PROMPTS[1]] * 2, ["ann"] * 2))
    assert one != two
    assert tokens(decoder(seed=5).generate(PROMPTS, WHO)) != out
    narrow, greedy = decoder(top_p=1e-6), decoder(do_sample=False)
    assert tokens(narrow.generate(PROMPTS, WHO)) == tokens(greedy.generate(PROMPTS, WHO))


@pytest.mark.parametrize("kind", ["pad", "args"])
def test_answers_that_end_do_not_disturb_the_others(steering, make_tiny, tokenizer, kind):
    base = another(make_tiny)
    decoder = kit.GuidedDecoder(base, tokenizer, steering[kind], **LENGTH)
    free = tokens(decoder.generate(PROMPTS, WHO))
    base.generation_config.eos_token_id = end = free[0][3]
    out = tokens(decoder.generate(PROMPTS, WHO))
    assert out == [answer[: answer.index(end) + 1] if end in answer else answer for answer in free]
    assert len(out[0]) <= 4 < max(map(len, out))


def test_a_record_of_every_token(personal, tokenizer):
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=2.0, **LENGTH)
    [answer] = decoder.generate(PROMPTS[1:2], ["ann"])
    reference = reader(personal, tokenizer, PROMPTS[1], adapter=False)
    personals = reader(personal, tokenizer, PROMPTS[1], user=1)
    for t, (token, own) in enumerate(zip(answer.tokens, answer.base_tokens, strict=True)):
        base, policy = reference(answer.tokens[:t]), personals(answer.tokens[:t])
        assert own == base.argmax()
        found = [answer.logps[t], answer.base_logps[t], answer.rewards[t], answer.base_rewards[t]]
        wanted = [base[token], base[own], (policy - base)[token], (policy - base)[own]]
        assert found == pytest.approx([w.item() for w in wanted], abs=1e-4)


def test_an_answer_as_it_grows(personal, tokenizer):
    """With what depends on the whole text: a penalty, a least length."""
    settings = {"repetition_penalty": 1.3, "min_new_tokens": 12, **LENGTH}
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **settings)
    grown = list(decoder.stream(PROMPTS[1], "bob"))
    assert [len(draft.tokens) for draft in grown] == list(range(1, 13))
    assert grown[-1].tokens == decoder.generate(PROMPTS[1:2], ["bob"])[0].tokens


def test_json_lines_resume(personal, tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "deep" / "answers.jsonl"

    def lines():
        return [json.loads(line) for line in file.read_text().splitlines()]

    settings = {"weight": [1.0, 0.0], **LENGTH}  # NaN where the guide is not asked
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), batch_size=1, **settings)
    write, calls = Steered.write, []

    def counted(self, at_once):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(self.ended))
        return write(self, at_once)

    monkeypatch.setattr(Steered, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(PROMPTS, WHO, out=file)
    calls[:] = [0]
    out = decoder.generate(PROMPTS, WHO, out=file)
    assert calls == [0, 1]  # one was left
    monkeypatch.undo()
    assert {line["who"] for line in lines()} == {"ann", "bob", None}
    assert tokens(out) == tokens(decoder.generate(PROMPTS, WHO))
    assert [repr(a) for a in decoder.generate(PROMPTS, WHO, out=file)] == [repr(a) for a in out]  # NaN are kept

    # other settings and layouts: other answers
    drawn = {"do_sample": True, "top_p": 0.9, **LENGTH}
    kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **drawn).generate(PROMPTS, WHO, out=file)
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("assistant", "bot")
    kit.GuidedDecoder(None, other, kit.PAD(personal, USERS), **settings).generate(PROMPTS, WHO, out=file)
    assert len({line["key"] for line in lines()}) == len(lines()) == 9


def test_bad_settings_and_requests(personal, make_tiny, tokenizer):
    def made(**options):
        return kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **{**LENGTH, **options})

    for match, options in (
        ("top_k is 601", {"top_k": 601}),
        ("weight is nan", {"weight": float("nan")}),
        ("max_new_tokens is 0, expected at least 1", {"max_new_tokens": 0}),
        ("strictly positive float", {"do_sample": True, "temperature": 0.0}),
    ):
        with pytest.raises(ValueError, match=match):
            made(**options)
    for match, prompts, who in (
        (r"who is \['ann', 'bob'\] for 1 prompts", PROMPTS[:1], ["ann", "bob"]),
        ("who has 1, expected a user's id", PROMPTS[:1], [1]),
        ("context of 256", [PROMPTS[0], [{"role": "user", "content": "long text " * 80}]], ["ann"] * 2),
        ("'zoe' has no row in the user index", PROMPTS[:2], ["ann", "zoe"]),
        ("{user_id: weight} for several", PROMPTS[:1], [["ann", "bob"]]),
        ("weights of preferences", PROMPTS[:1], [{"ann": float("nan")}]),
    ):
        with pytest.raises(kit.ConditioningError if "context" in match else kit.DecodingError, match=match):
            made().generate(prompts, who)
    prompted = get_peft_model(make_tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(kit.DecodingError, match="PROMPT_TUNING puts its tokens in front"):
        kit.GuidedDecoder(None, tokenizer, kit.PAD(prompted))


def test_tokenizers_that_differ(personal, tokenizer):
    """Other words, the same words in another order, and the same words cut otherwise; larger embeddings are fine."""
    size = {"n_embd": 32, "n_layer": 1, "n_head": 4, "eos_token_id": 2}
    larger = GPT2LMHeadModel(GPT2Config(vocab_size=640, **size)).eval()
    decoder = kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS, tokenizer=tokenizer), **LENGTH)
    assert max(decoder.generate(PROMPTS, WHO)[0].tokens) < 600

    def changed(change):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        change(state["model"])
        backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
        return PreTrainedTokenizerFast(tokenizer_object=backend)

    with pytest.raises(kit.DecodingError, match="pass the guide's own tokenizer"):
        kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS))
    for change, where in (
        (lambda m: m["vocab"].update(a=m["vocab"]["b"], b=m["vocab"]["a"]), "in 'a', say"),
        (lambda m: m["merges"].reverse(), "in how they cut texts"),
    ):
        with pytest.raises(kit.DecodingError, match=rf"tokenizers of base and guide .* differ, {where}"):
            kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS, tokenizer=changed(change)))
