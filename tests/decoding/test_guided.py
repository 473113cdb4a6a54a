"""Guided decoding against plain uncached, unbatched loops of the papers' formulas, token for token in float32."""

import copy
import json
import math

import pytest
import torch
from conftest import TARGETS, build_tiny
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

import prlhf_kit as kit
from prlhf_kit.data.chat import tell
from prlhf_kit.decoding import answers as formats
from prlhf_kit.decoding.answers import GuidedAnswer, add_lines, read_lines
from prlhf_kit.decoding.implicit import ImplicitReward
from prlhf_kit.decoding.readers import FewRows
from prlhf_kit.decoding.steered import Steered
from prlhf_kit.models.preference_head import attach_head, heads_on
from prlhf_kit.models.reward_model import reward_class
from prlhf_kit.models.rewards import SequenceReward

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("Hi", "Tell me something about the sea, please", "Why not?")
]
USERS = kit.UserIndex(["ann", "bob", "eve"])
WHO = ["ann", "bob", None]
LENGTH = {"max_new_tokens": 12, "top_k": 5}
ON_ONE = pytest.mark.parametrize("architecture", ["llama"])  # where models of another architecture do nothing else


def ids_of(tokenizer, prompt, told=None):
    layout = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return tokenizer.apply_chat_template(tell(prompt, told), **layout)["input_ids"]


def logps(model, prompt_ids, new, **inputs):
    """`[V]`: of the token after the prompt and `new`, from the whole text."""
    text = torch.cat([prompt_ids, torch.tensor([new], dtype=torch.long)], 1)
    return model(input_ids=text, **inputs).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def plain(base, reward, tokenizer, k, steps, weight=1.0, own=1.0, draws=None, temperature=1.0):
    """Token by token: `base(new)` `[V]` log-probs, `reward(new, candidates)` `[k]`."""
    new = []
    for step in range(steps):
        w = weight[min(step, len(weight) - 1)] if isinstance(weight, list) else weight
        values = base(new)
        candidates = values.topk(k).indices.sort().values
        score = (1 - w if own is None else own) * values[candidates] + w * reward(new, candidates)
        if draws is None:
            pick = score.argmax()
        else:
            bounds = (score / temperature).softmax(-1).cumsum(-1)
            pick = int((bounds <= draws[step] * bounds[-1]).sum())
        new.append(candidates[pick].item())
        if new[-1] == tokenizer.eos_token_id:
            break
    return new


def draws(decoder, prompt, who=None):
    """The random numbers of an answer's sampling."""
    [job] = decoder._jobs([prompt], [who])
    return torch.rand(12, generator=torch.Generator().manual_seed(int(job.key[:15], 16)))


def plain_user_pad(personal, base, tokenizer, prompt, user, steps=12, **options):
    """PAD, the paper's form, with a user's soft tokens (`user` is their row)."""
    ids = ids_of(tokenizer, prompt)

    def reference(new):
        with personal.disable_adapter():
            return logps(personal, ids, new)

    def reward(new, candidates):
        policy = logps(personal, ids, new, user_rows=torch.tensor([user]))
        return (policy - reference(new))[candidates]

    own = reference if base is None else lambda new: logps(base, ids, new)
    return plain(own, reward, tokenizer, 5, steps, **options)


def another(make_tiny, architecture="llama", seed=2):
    base = make_tiny(architecture)
    with torch.no_grad():
        for p in base.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return base


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_pad_with_users_and_a_shared_base(personal, tokenizer, weight):
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=weight, **LENGTH)
    out = decoder.generate(PROMPTS, WHO)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 0], out, strict=True):
        assert answer.tokens == plain_user_pad(personal, None, tokenizer, prompt, row, weight=weight)
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
    changed = any(any(answer.changed) for answer in out)
    assert changed == (weight > 0)
    below = kit.GuidedDecoder(personal.get_base_model(), tokenizer, kit.PAD(personal, USERS), weight=weight, **LENGTH)
    assert [a.tokens for a in below.generate(PROMPTS, WHO)] == [a.tokens for a in out]  # the model below the adapter


def test_pad_with_a_base_of_its_own(personal, make_tiny, tokenizer, architecture):
    base = another(make_tiny, architecture)
    decoder = kit.GuidedDecoder(base, tokenizer, kit.PAD(personal, USERS, tokenizer=tokenizer), weight=1.5, **LENGTH)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 0], decoder.generate(PROMPTS, WHO), strict=True):
        assert answer.tokens == plain_user_pad(personal, base, tokenizer, prompt, row, weight=1.5)


def test_an_adapter_that_can_not_be_gated_by_row_is_read_apart(make_tiny, tokenizer):
    """DoRA, whose output is no sum of the base's and the adapter's."""
    model = make_tiny(users=3, offsets=0.8)
    personal = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["user_model"], use_dora=True)
    ).eval()
    with torch.no_grad():
        for name, p in personal.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.4)
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=2.0, **LENGTH)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 0], decoder.generate(PROMPTS, WHO), strict=True):
        assert answer.tokens == plain_user_pad(personal, None, tokenizer, prompt, row, weight=2.0)


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


def test_models_that_flatten_rows_are_read_apart(tokenizer):
    """OPT's layers see all tokens of a batch as one list, in which an adapter can't tell rows apart."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=600, word_embed_proj_dim=32, **size, **ends)).eval()
    policy = get_peft_model(model, LoraConfig(target_modules="all-linear")).eval()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(policy), weight=2.0, **LENGTH)
    for prompt, said, answer in zip(PROMPTS, SAID, decoder.generate(PROMPTS, SAID), strict=True):
        ids, told = ids_of(tokenizer, prompt), ids_of(tokenizer, prompt, said)

        def reference(new, ids=ids):
            with policy.disable_adapter():
                return logps(policy, ids, new)

        def reward(new, candidates, told=told, reference=reference):
            return (logps(policy, told, new) - reference(new))[candidates]

        assert answer.tokens == plain(reference, reward, tokenizer, 5, 12, weight=2.0)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_texts_longer_than_the_window(make_tiny, tokenizer, family):
    model = make_tiny(family, users=3, offsets=0.8)
    personal = get_peft_model(model, LoraConfig(target_modules=TARGETS[family], modules_to_save=["user_model"])).eval()
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=2.0, **LENGTH)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 0], decoder.generate(PROMPTS, WHO), strict=True):
        assert answer.tokens == plain_user_pad(personal, None, tokenizer, prompt, row, weight=2.0)


@pytest.fixture
def persrm(make_tiny, tokenizer, architecture):
    """A PersRM as after both stages: adapter and preference head are not what they were."""
    model = attach_head(make_tiny(architecture))
    config = LoraConfig(
        target_modules=TARGETS[architecture],
        modules_to_save=["preference_head"],
        fan_in_fan_out=architecture == "gpt2",
    )
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or ("preference_head" in name and "modules_to_save" in name):
                p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    return model


SAID = ["Be brief.", "Ask me something back, and be kind.", "Be brief."]


def plain_persrm(persrm, base, tokenizer, prompt, said, form="paper", **options):
    """PAD with a PersRM: `said` is {preference: weight}."""
    seen, ids = {text: ids_of(tokenizer, prompt, text) for text in said}, ids_of(tokenizer, prompt)

    def reference(new):
        with heads_on(persrm.get_base_model(), torch.tensor([False])):
            return logps(persrm, ids, new)

    def start(new):
        told = ids_of(tokenizer, prompt, " ".join(said)) if form == "released" else ids
        if base is not None:
            return logps(base, told, new)
        with persrm.disable_adapter():
            return logps(persrm, told, new)

    def reward(new, candidates):
        policy = sum(share * logps(persrm, seen[text], new) for text, share in said.items())
        if form == "released":  # log-softmax over the candidates only, as in the authors' code
            return sum(
                share * logps(persrm, seen[text], new)[candidates].log_softmax(-1) for text, share in said.items()
            )
        return (policy - sum(said.values()) * reference(new))[candidates]

    return plain(start, reward, tokenizer, 5, 12, own=None if form == "released" else 1.0, **options)


@pytest.mark.parametrize(("form", "shared"), [("paper", True), ("paper", False), ("released", True)])
def test_pad_with_preferences_in_words(persrm, make_tiny, tokenizer, architecture, form, shared):
    """The reference is the PersRM's backbone, adapter and all, without its head; the base has no adapter."""
    base = None if shared else another(make_tiny, architecture)
    guide = kit.PAD(persrm, form=form, tokenizer=tokenizer)
    decoder = kit.GuidedDecoder(base, tokenizer, guide, weight=0.8, **LENGTH)
    out = decoder.generate(PROMPTS, SAID)
    for prompt, said, answer in zip(PROMPTS, SAID, out, strict=True):
        assert answer.tokens == plain_persrm(persrm, base, tokenizer, prompt, {said: 1.0}, form, weight=0.8)
    assert any(any(answer.changed) for answer in out)
    sampler = kit.GuidedDecoder(base, tokenizer, guide, weight=0.8, do_sample=True, temperature=1.4, **LENGTH)
    for prompt, said, answer in zip(PROMPTS, SAID, sampler.generate(PROMPTS, SAID), strict=True):
        drawn = {"draws": draws(sampler, prompt, said), "temperature": 1.4}
        assert answer.tokens == plain_persrm(persrm, base, tokenizer, prompt, {said: 1.0}, form, weight=0.8, **drawn)


@ON_ONE
def test_several_preferences(persrm, tokenizer):
    """Joined in the prompt, or read one by one with weights of their own for every prompt (negative ones, too)."""
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(persrm), **LENGTH)
    a, b = SAID[:2]
    asked = [[a, b], {a: 0.7, b: 0.6}, {a: 1.0, b: -0.5}]
    out = decoder.generate([PROMPTS[1]] * 3, asked)
    wanted = [{f"{a} {b}": 1.0}, *asked[1:]]
    for said, answer in zip(wanted, out, strict=True):
        assert answer.tokens == plain_persrm(persrm, None, tokenizer, PROMPTS[1], said)


@ON_ONE
def test_mixing_users_policies(personal, tokenizer):
    """Multi-objective decoding: at w = 1 of the released form the base only picks the candidates."""
    guide = kit.PAD(personal, USERS, form="released")
    decoder = kit.GuidedDecoder(None, tokenizer, guide, top_k=600, max_new_tokens=8)
    [answer] = decoder.generate(PROMPTS[1:2], [{"ann": 0.6, "bob": 0.4}])
    ids = ids_of(tokenizer, PROMPTS[1])

    def mixed(new):
        return sum(s * logps(personal, ids, new, user_rows=torch.tensor([u])) for u, s in ((1, 0.6), (2, 0.4)))

    assert answer.tokens == plain(mixed, lambda new, c: 0 * c, tokenizer, 600, 8)


def test_any_language_model_reads_a_preference_against_itself(make_tiny, tokenizer):
    model = make_tiny()
    [answer] = kit.GuidedDecoder(model, tokenizer, kit.PAD(model), weight=1.5, **LENGTH).generate(PROMPTS[:1], SAID[:1])
    ids, told = ids_of(tokenizer, PROMPTS[0]), ids_of(tokenizer, PROMPTS[0], SAID[0])

    def reward(new, candidates):
        return (logps(model, told, new) - logps(model, ids, new))[candidates]

    assert answer.tokens == plain(lambda new: logps(model, ids, new), reward, tokenizer, 5, 12, weight=1.5)
    [nothing] = kit.GuidedDecoder(model, tokenizer, kit.PAD(model), weight=1.5, **LENGTH).generate(PROMPTS[:1])
    assert not any(nothing.changed)


def test_users_words_and_soft_tokens(make_tiny, tokenizer):
    """The policy sees both, the base neither."""
    model = make_tiny()
    kit.condition(model, kit.IndividualUserModel(4, model.get_input_embeddings().weight, 2, user_text=True))
    with torch.no_grad():
        model.user_model.own.normal_(0, 0.8)
    personal = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["user_model"])).eval()
    guide = kit.PAD(personal, USERS, words={"ann": SAID[0]})
    [answer] = kit.GuidedDecoder(None, tokenizer, guide, weight=2.0, **LENGTH).generate(PROMPTS[1:2], ["ann"])
    ids, told = ids_of(tokenizer, PROMPTS[1]), ids_of(tokenizer, PROMPTS[1], SAID[0])

    def reference(new):
        with personal.disable_adapter():
            return logps(personal, ids, new)

    def reward(new, candidates):
        return (logps(personal, told, new, user_rows=torch.tensor([1])) - reference(new))[candidates]

    assert answer.tokens == plain(reference, reward, tokenizer, 5, 12, weight=2.0)
    with pytest.raises(kit.DecodingError, match="none of 'bob'"):
        kit.GuidedDecoder(None, tokenizer, guide).generate(PROMPTS[:1], ["bob"])


@ON_ONE
def test_implied_rewards_of_responses(personal, persrm, tokenizer):
    """Those of all its tokens added up; best-of-n takes them as any other reward."""
    texts = ["No, thanks.", "Yes!", "It depends on the weather, my friend."]
    with_users = ImplicitReward(kit.PAD(personal, USERS), tokenizer, batch_size=2).score(PROMPTS, texts, WHO)
    in_words = ImplicitReward(kit.PAD(persrm), tokenizer).score(PROMPTS, texts, SAID)

    def summed(model, prompt, text, told=None, **inputs):
        ids, whole = (ids_of(tokenizer, prompt, told), tokenizer(text + "<|im_end|>\n")["input_ids"])
        found = model(input_ids=torch.cat([ids, torch.tensor([whole])], 1), **inputs).logits[0].log_softmax(-1)
        return sum(found[ids.shape[1] - 1 + t, token].item() for t, token in enumerate(whole))

    with torch.no_grad():
        for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
            own = summed(personal, prompt, text, user_rows=torch.tensor([[1, 2, 0][i]]))
            with personal.disable_adapter():
                own -= summed(personal, prompt, text)
            assert with_users[i].item() == pytest.approx(own, abs=1e-3)
            own = summed(persrm, prompt, text, SAID[i])
            with heads_on(persrm.get_base_model(), torch.tensor([False])):
                own -= summed(persrm, prompt, text)
            assert in_words[i].item() == pytest.approx(own, abs=1e-3)
    reward = ImplicitReward(kit.PAD(personal, USERS), tokenizer)
    alone = reward.score([PROMPTS[0]] * 3, texts, ["ann"] * 3)
    assert kit.best_of_n(reward, PROMPTS[:1], [texts], ["ann"])[0][0] == alone.argmax()
    with pytest.raises(ValueError, match="has no reference"):
        ImplicitReward(kit.PAD(persrm, form="released"), tokenizer)


# ARGS -----------------------------------------------------------------------------------------------------------


def reward_model(tokenizer, architecture="llama", pooling="last", users=0, seed=3):
    language_model = build_tiny(architecture, len(tokenizer))
    config = language_model.config
    config.num_labels = 1
    torch.manual_seed(seed)
    model = reward_class(config)(config).eval()
    model.pooling = pooling
    if users:
        table = kit.IndividualUserModel(users + 1, model.get_input_embeddings().weight, 3)
        with torch.no_grad():
            table.own.normal_(0, 0.8)
        kit.condition(model, table)
    return SequenceReward(model, tokenizer, USERS if users else None, unfinished=True)


def plain_args(base, reward, tokenizer, prompt, rows=None, steps=12, **options):
    ids = ids_of(tokenizer, prompt)

    def rewards(new, candidates):
        found = []
        for token in candidates.tolist():
            text = torch.cat([ids, torch.tensor([[*new, token]])], 1)
            known = [{}] if rows is None else [{"user_rows": torch.tensor([row])} for row, _ in rows]
            shares = [1.0] if rows is None else [share for _, share in rows]
            said = [reward.model(input_ids=text, **k).logits.item() for k in known]
            found.append(sum(s * r for s, r in zip(shares, said, strict=True)))
        return torch.tensor(found)

    return plain(lambda new: logps(base, ids, new), rewards, tokenizer, 5, steps, **options)


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [("llama", "mean"), ("llama", "max"), ("gpt2", "last"), ("gpt2", "max"), ("gpt_neox", "mean")],
)
def test_args_scores_candidates_on_one_cache(make_tiny, tokenizer, architecture, pooling):
    base, reward = make_tiny(architecture), reward_model(tokenizer, architecture, pooling)
    decoder = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward), weight=5.0, **LENGTH)
    out = decoder.generate(PROMPTS)
    for prompt, answer in zip(PROMPTS, out, strict=True):
        assert answer.tokens == plain_args(base, reward, tokenizer, prompt, weight=5.0)
    assert any(any(answer.changed) for answer in out)
    sampler = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward), weight=5.0, do_sample=True, **LENGTH)
    for prompt, answer in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        assert answer.tokens == plain_args(base, reward, tokenizer, prompt, weight=5.0, draws=draws(sampler, prompt))


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_args_in_bfloat16(make_tiny, tokenizer, pooling):
    """Rounding differs with the order of sums, so rewards are compared, not tokens."""
    base, reward = make_tiny().bfloat16(), reward_model(tokenizer, pooling=pooling)
    reward.model.bfloat16()
    [answer] = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward), weight=2.0, **LENGTH).generate(PROMPTS[1:2])
    ids = ids_of(tokenizer, PROMPTS[1])
    with torch.no_grad():
        for t, found in enumerate(answer.rewards):
            text = torch.cat([ids, torch.tensor([answer.tokens[: t + 1]])], 1)
            assert found == pytest.approx(reward.model(input_ids=text).logits.item(), abs=0.05)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_args_with_a_window(make_tiny, tokenizer, family):
    """A reward model with a window: while texts fit into it; longer ones are refused, not scored wrongly."""
    base, wide = make_tiny("llama"), reward_model(tokenizer, f"{family}_wide")
    decoder = kit.GuidedDecoder(base, tokenizer, kit.ARGS(wide), weight=1.5, **LENGTH)
    for prompt, answer in zip(PROMPTS, decoder.generate(PROMPTS), strict=True):
        assert answer.tokens == plain_args(base, wide, tokenizer, prompt, weight=1.5)
    narrow = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward_model(tokenizer, family)), **LENGTH)
    with pytest.raises(kit.DecodingError, match="window of 16"):
        narrow.generate(PROMPTS)


def test_args_for_users(make_tiny, tokenizer):
    base, reward = make_tiny(), reward_model(tokenizer, users=3)
    decoder = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward), weight=2.0, **LENGTH)
    who = ["ann", {"ann": 0.5, "eve": 1.0}, None]
    rows = [[(1, 1.0)], [(1, 0.5), (3, 1.0)], [(0, 1.0)]]
    for prompt, mine, answer in zip(PROMPTS, rows, decoder.generate(PROMPTS, who), strict=True):
        assert answer.tokens == plain_args(base, reward, tokenizer, prompt, mine, weight=2.0)


# Settings -------------------------------------------------------------------------------------------------------


@ON_ONE
def test_without_weight_it_is_the_bases_own_decoding(personal, make_tiny, tokenizer):
    base = another(make_tiny)
    ids = ids_of(tokenizer, PROMPTS[1])
    free = base.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
    stop = tokenizer.decode(free[5:7])
    for settings, name in (
        ({"max_new_tokens": 24}, {}),
        ({"max_new_tokens": 24, "repetition_penalty": 1.7}, {}),
        ({"max_new_tokens": 24, "min_new_tokens": 20}, {}),
        ({"max_new_tokens": 24, "stop_strings": stop}, {"tokenizer": tokenizer}),
    ):
        own = base.generate(ids, do_sample=False, **settings, **name)[0, ids.shape[1] :].tolist()
        for guide in (kit.PAD(personal, USERS, tokenizer=tokenizer), kit.ARGS(reward_model(tokenizer))):
            decoder = kit.GuidedDecoder(base, tokenizer, guide, weight=0.0, **settings)
            assert decoder.generate(PROMPTS)[1].tokens == own
    assert len(own) < 12  # the stop string did stop


def test_sampling(personal, tokenizer):
    """Seeded; the same alone, in a batch, and in another order; repeated questions get other answers."""
    options = {**LENGTH, "do_sample": True, "temperature": 1.5}
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), seed=4, **options)
    out = decoder.generate(PROMPTS, WHO)
    for prompt, who, row, answer in zip(PROMPTS, WHO, [1, 2, 0], out, strict=True):
        drawn = {"draws": draws(decoder, prompt, who), "temperature": 1.5}
        assert answer.tokens == plain_user_pad(personal, None, tokenizer, prompt, row, **drawn)
        assert decoder.generate([prompt], [who])[0].tokens == answer.tokens
    assert [a.tokens for a in decoder.generate(PROMPTS[::-1], WHO[::-1])] == [a.tokens for a in out[::-1]]
    one, two = decoder.generate([PROMPTS[1]] * 2, ["ann"] * 2)
    assert one.tokens != two.tokens
    other = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), seed=5, **options)
    assert [a.tokens for a in other.generate(PROMPTS, WHO)] != [a.tokens for a in out]
    narrow = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), seed=4, top_p=1e-6, **options)
    greedy = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **LENGTH)
    assert [a.tokens for a in narrow.generate(PROMPTS, WHO)] == [a.tokens for a in greedy.generate(PROMPTS, WHO)]


def test_sampled_tokens_follow_the_scores(make_tiny, tokenizer):
    """One token, drawn 2,000 times at w = 0: its shares are the base's own probabilities among k, cut to top_p."""
    base = make_tiny()
    decoder = kit.GuidedDecoder(
        base, tokenizer, kit.PAD(base), weight=0.0, top_k=6, top_p=0.8, max_new_tokens=1, do_sample=True, batch_size=500
    )
    drawn = torch.tensor([a.tokens[0] for a in decoder.generate([PROMPTS[0]] * 2000)])
    with torch.no_grad():
        top = logps(base, ids_of(tokenizer, PROMPTS[0]), []).topk(6)
    p = top.values.softmax(-1)
    kept = p.cumsum(-1) - p < 0.8
    p = p * kept / (p * kept).sum()
    shares = torch.stack([(drawn == token).float().mean() for token in top.indices])
    assert 1 < kept.sum() < 6
    assert (shares - p).abs().max() < 4 * math.sqrt(0.25 / 2000)
    assert shares[~kept].sum() == 0


@ON_ONE
def test_schedules(personal, tokenizer):
    guide = kit.PAD(personal, USERS)
    weights = [3.0, 0.0, 2.0]
    listed = kit.GuidedDecoder(None, tokenizer, guide, weight=weights, **LENGTH).generate(PROMPTS, WHO)
    named = kit.GuidedDecoder(None, tokenizer, guide, weight=lambda t: weights[min(t, 2)], **LENGTH)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 0], listed, strict=True):
        assert answer.tokens == plain_user_pad(personal, None, tokenizer, prompt, row, weight=weights)
    assert [a.tokens for a in named.generate(PROMPTS, WHO)] == [a.tokens for a in listed]


@ON_ONE
@pytest.mark.parametrize("guide", ["pad", "args"])
def test_the_guide_may_be_asked_for_some_tokens_only(personal, make_tiny, tokenizer, guide):
    """Every third token: as with w = 0 at the others, whatever the guide has not read it reads in one go."""
    base = another(make_tiny)
    steering = kit.PAD(personal, USERS, tokenizer=tokenizer) if guide == "pad" else kit.ARGS(reward_model(tokenizer))
    who = WHO if guide == "pad" else None
    weights = [2.0 if t % 3 == 0 else 0.0 for t in range(12)]
    whole = kit.GuidedDecoder(base, tokenizer, steering, weight=weights, **LENGTH).generate(PROMPTS, who)
    some = kit.GuidedDecoder(base, tokenizer, steering, weight=2.0, every=3, **LENGTH).generate(PROMPTS, who)
    assert [a.tokens for a in some] == [a.tokens for a in whole]
    assert [math.isnan(r) for r in some[0].rewards] == [t % 3 != 0 for t in range(len(some[0].tokens))]
    # only where the base is unsure: the threshold is amid the entropies that were met
    with torch.no_grad():
        met = [
            logps(base, ids_of(tokenizer, prompt), answer.tokens[:t])
            for prompt, answer in zip(PROMPTS, some, strict=True)
            for t in range(len(answer.tokens))
        ]
    entropy = torch.special.entr(torch.stack(met).exp()).sum(-1).median().item() + 1e-4
    sure = kit.GuidedDecoder(base, tokenizer, steering, weight=2.0, unsure_above=entropy, **LENGTH)
    out = sure.generate(PROMPTS, who)
    asked = 0
    for prompt, answer in zip(PROMPTS, out, strict=True):
        for t, reward in enumerate(answer.rewards):
            with torch.no_grad():
                p = logps(base, ids_of(tokenizer, prompt), answer.tokens[:t]).exp()
            assert math.isnan(reward) == (torch.special.entr(p).sum().item() <= entropy)
            asked += not math.isnan(reward)
    assert 0 < asked < sum(len(a.tokens) for a in out)
    alone = [sure.generate([p], [w])[0].tokens for p, w in zip(PROMPTS, who or [None] * 3, strict=True)]
    assert alone == [a.tokens for a in out]


@ON_ONE
@pytest.mark.parametrize("guide", ["pad", "args"])
def test_answers_that_end_leave_the_batch(personal, make_tiny, tokenizer, guide):
    """The others go on as if alone."""
    base = another(make_tiny)
    steering = (
        kit.PAD(personal, USERS, tokenizer=tokenizer)
        if guide == "pad"
        else kit.ARGS(reward_model(tokenizer, pooling="mean", users=3))
    )
    decoder = kit.GuidedDecoder(base, tokenizer, steering, **LENGTH)
    free = decoder.generate(PROMPTS, WHO)
    eos = free[0].tokens[3]
    base.generation_config.eos_token_id = eos
    out = decoder.generate(PROMPTS, WHO)
    for before, after in zip(free, out, strict=True):
        cut = before.tokens.index(eos) + 1 if eos in before.tokens else len(before.tokens)
        assert after.tokens == before.tokens[:cut]
    assert len(out[0].tokens) <= 4 < max(len(a.tokens) for a in out)


@ON_ONE
def test_a_record_of_every_token(personal, tokenizer):
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=2.0, **LENGTH)
    [answer] = decoder.generate(PROMPTS[1:2], ["ann"])
    ids = ids_of(tokenizer, PROMPTS[1])
    with torch.no_grad():
        for t, (token, own) in enumerate(zip(answer.tokens, answer.base_tokens, strict=True)):
            with personal.disable_adapter():
                base = logps(personal, ids, answer.tokens[:t])
            policy = logps(personal, ids, answer.tokens[:t], user_rows=torch.tensor([1]))
            assert own == base.argmax()
            found = [answer.logps[t], answer.base_logps[t], answer.rewards[t], answer.base_rewards[t]]
            wanted = [base[token], base[own], (policy - base)[token], (policy - base)[own]]
            assert found == pytest.approx([w.item() for w in wanted], abs=1e-4)
            top = base.topk(5)
            score = top.values + 2 * (policy - base)[top.indices]
            p, q = score.log_softmax(-1), top.values.log_softmax(-1)
            assert answer.divergence[t] == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-4)
    assert answer.seconds > 0
    assert answer.tokens_per_second == pytest.approx(len(answer.tokens) / answer.seconds)


@ON_ONE
def test_an_answer_as_it_grows(personal, tokenizer):
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), **LENGTH)
    grown = list(decoder.stream(PROMPTS[1], "bob"))
    assert [len(draft.tokens) for draft in grown] == list(range(1, len(grown) + 1))
    assert grown[-1].tokens == decoder.generate(PROMPTS[1:2], ["bob"])[0].tokens


@ON_ONE
def test_json_lines_resume(personal, tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "deep" / "answers.jsonl"
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), batch_size=1, every=2, **LENGTH)
    write, calls = Steered.write, []

    def counted(self, at_once):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(self.ended))
        return write(self, at_once)

    monkeypatch.setattr(Steered, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(PROMPTS, WHO, out=file)
    with file.open("a") as f:
        f.write('{"key": "cut o')
    assert len(file.read_text().splitlines()) == 3
    calls[:] = [0]
    out = decoder.generate(PROMPTS, WHO, out=file)
    assert calls == [0, 1]  # one was left
    monkeypatch.undo()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 3
    assert {line["who"] for line in lines} == {"ann", "bob", None}
    assert [a.tokens for a in out] == [a.tokens for a in decoder.generate(PROMPTS, WHO)]
    assert [repr(a) for a in decoder.generate(PROMPTS, WHO, out=file)] == [repr(a) for a in out]  # NaN are kept
    stronger = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), weight=3.0, **LENGTH)
    stronger.generate(PROMPTS, WHO, out=file)
    assert len(file.read_text().splitlines()) == 6  # other settings, other answers
    lines = len(file.read_text().splitlines())
    model = personal.get_base_model()
    model.generation_config.eos_token_id = 7
    decoder.generate(PROMPTS, WHO, out=file)  # another end
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "bot")
    kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), every=2, **LENGTH).generate(PROMPTS, WHO, out=file)
    personal.add_adapter("other", LoraConfig(target_modules=["q_proj", "c_attn", "query_key_value"]))
    personal.base_model.set_adapter("other")
    words = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS), every=2, **LENGTH)
    assert len(set(words._made_by(words._jobs(PROMPTS, WHO))) & words_keys(file)) == 0
    assert len(file.read_text().splitlines()) == lines + 6
    for text in ('{"a": 1}\n', '[{"prompt": "what write_pad writes"}]'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"line 1 of .* is no answer"):
            decoder.generate(PROMPTS, WHO, out=file)
        assert file.read_text() == text  # other people's files stay as they are
    add_lines(file := tmp_path / "separators.jsonl", [{"key": "k", "text": "a\u2028b\u2029c\x85d"}])
    assert read_lines(file, lambda row: row["text"], "text") == {"k": "a\u2028b\u2029c\x85d"}


def words_keys(file):
    return {json.loads(line)["key"] for line in file.read_text().splitlines()}


def test_keys_know_how_a_reward_is_read(make_tiny, tokenizer):
    reward = reward_model(tokenizer)
    keys = []
    for pooling in ("last", "mean", "max"):
        reward.model.pooling = pooling
        decoder = kit.GuidedDecoder(make_tiny(), tokenizer, kit.ARGS(reward), **LENGTH)
        keys += decoder._made_by(decoder._jobs(PROMPTS[:1], [None]))
    assert len(set(keys)) == 3


def test_formats_of_pad_and_args(tmp_path):
    answers = [GuidedAnswer("Yes.", [1, 2], [1, 3], seconds=0.5), GuidedAnswer("Nö.", [4], [4], seconds=0.25)]
    file = tmp_path / "out_0.jsonl"
    formats.write_pad(file, ["Q1 ", "Q2 "], answers, "pad_0")
    assert json.loads(file.read_text())[1] == {
        "prompt": "Q2 ",
        "result": "Nö.",
        "response": "Q2 Nö.",
        "elapsed": 0.25,
        "method": "pad_0",
    }
    config = tmp_path / "grid.config"
    config.write_text(
        '{"rm_weight": 0.6, "topk": 10, "mode": "greedy", "sample_temp": null, "perspective": "humour"}\n'
        '{"rm_weight": 1.0, "topk": 40, "mode": "logit_mix", "sampling": "topk", "sample_temp": 0.7}\n'
    )
    first, second = formats.read_pad_config(config)
    assert first == {
        "weight": 0.6,
        "top_k": 10,
        "do_sample": False,
        "temperature": 1.0,
        "extra": {"perspective": "humour"},
    }
    assert second == {"weight": 1.0, "top_k": 40, "do_sample": True, "temperature": 0.7, "extra": {}}
    formats.write_pad_config(config, [first, second])
    assert formats.read_pad_config(config) == [first, second]
    for line in ('{"topk": 1}', '{"rm_weight": 1, "topk": 1, "mode": "beam", "sample_temp": null}'):
        config.write_text(line)
        with pytest.raises(ValueError, match=r"line 1 of .* Expected rm_weight"):
            formats.read_pad_config(config)


def test_linear_maps_of_few_rows_are_the_same_product():
    torch.manual_seed(0)
    layer, bare = torch.nn.Linear(48, 96), torch.nn.Linear(48, 96, bias=False)
    for shape in ((1, 1, 48), (2, 1, 48), (1, 4, 48), (3, 48), (48,), (2, 9, 48)):
        x = torch.randn(shape)
        for one in (layer, bare):
            with FewRows():
                found = one(x)
            torch.testing.assert_close(found, one(x), rtol=1e-5, atol=1e-5)


# Refusals -------------------------------------------------------------------------------------------------------


@ON_ONE
def test_bad_settings_and_requests(personal, make_tiny, tokenizer, bert):
    guide = kit.PAD(personal, USERS)

    def made(**options):
        return kit.GuidedDecoder(None, tokenizer, guide, **{**LENGTH, **options})

    for match, options in {
        "top_k is 601": {"top_k": 601},
        "weight is nan": {"weight": float("nan")},
        "every is 0": {"every": 0},
        "strictly positive float": {"do_sample": True, "temperature": 0.0},
        "top_p.* has to be a float > 0 and < 1": {"top_p": -1.0},
    }.items():
        with pytest.raises(ValueError, match=match):
            made(**options)
    for match, prompts, who in (
        ("2 entries in who for 1 prompts", PROMPTS[:1], ["ann", "bob"]),
        ("empty prompt", [[{"role": "user", "content": " "}]], ["ann"]),
        ("context of 256", [PROMPTS[0], [{"role": "user", "content": "long text " * 80}]], ["ann"] * 2),
        ("'zoe' has no row in the user index", PROMPTS[:2], ["ann", "zoe"]),
        ("'ann bob' has no row .* {user_id: weight} for several", PROMPTS[:1], [["ann", "bob"]]),
        ("weights of preferences", PROMPTS[:1], [{"ann": float("nan")}]),
    ):
        with pytest.raises(kit.DecodingError, match=match):
            made().generate(prompts, who)
    with pytest.raises(kit.DecodingError, match="form='authors'"):
        kit.PAD(personal, USERS, form="authors")
    with pytest.raises(kit.DecodingError, match="pass users=index"):
        kit.PAD(personal)
    with pytest.raises(kit.DecodingError, match="no soft tokens"):
        kit.PAD(make_tiny(), USERS)
    with pytest.raises(kit.DecodingError, match="no base to steer"):
        kit.GuidedDecoder(None, tokenizer, kit.ARGS(reward_model(tokenizer)))
    with pytest.raises(kit.DecodingError, match="BertForSequenceClassification can't be read token by token"):
        kit.ARGS(kit.load_reward(bert[0]))
    bloom = BloomForSequenceClassification(
        BloomConfig(vocab_size=600, hidden_size=32, n_layer=1, n_head=4, num_labels=1)
    )
    with pytest.raises(kit.DecodingError, match=r"Bloom.* can't be read token by token"):
        kit.ARGS(SequenceReward(bloom.eval(), tokenizer))
    anybody = kit.GuidedDecoder(make_tiny(), tokenizer, kit.ARGS(reward_model(tokenizer)), **LENGTH)
    with pytest.raises(kit.DecodingError, match="knows no users, so it can't steer for 'ann'"):
        anybody.generate(PROMPTS[:1], ["ann"])
    prompted = get_peft_model(make_tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(kit.DecodingError, match="PROMPT_TUNING puts its tokens in front"):
        kit.GuidedDecoder(None, tokenizer, kit.PAD(prompted))


@ON_ONE
def test_tokenizers_that_differ(personal, tokenizer):
    """Other words, the same words in another order, and the same words cut otherwise; larger embeddings are fine."""
    size = {"n_embd": 32, "n_layer": 1, "n_head": 4, "eos_token_id": 2}
    larger = GPT2LMHeadModel(GPT2Config(vocab_size=640, **size)).eval()
    with pytest.raises(kit.DecodingError, match="pass the guide's own"):
        kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS))
    decoder = kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS, tokenizer=tokenizer), **LENGTH)
    assert max(decoder.generate(PROMPTS, WHO)[0].tokens) < 600
    for change, match in (
        (lambda s: s["model"]["vocab"].update({"zzz": 600}), "600 and 601 tokens"),
        (
            lambda s: s["model"]["vocab"].update(a=s["model"]["vocab"]["b"], b=s["model"]["vocab"]["a"]),
            "different ones in '[ab]'",
        ),
        (lambda s: s["model"]["merges"].reverse(), "how text is cut"),
    ):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        change(state)
        other = PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(state)),
            chat_template=tokenizer.chat_template,
        )
        with pytest.raises(kit.DecodingError, match=match):
            kit.GuidedDecoder(larger, tokenizer, kit.PAD(personal, USERS, tokenizer=other))
