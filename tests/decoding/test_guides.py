"""PAD, ARGS and a guide of one's own against plain loops of their formulas, token for token in float32."""

import re
from pathlib import Path

import pytest
import torch
from conftest import build_tiny, with_lora
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

import prlhf_kit as kit
from decoding.plain import PROMPTS, ids_of, reader, steered, summed
from prlhf_kit.data.context import Contexts
from prlhf_kit.data.schema import record
from prlhf_kit.decoding.guides import ImplicitReward
from prlhf_kit.decoding.readers import mixes
from prlhf_kit.models.preference_head import attach_head
from prlhf_kit.models.reward_model import pooled_by_mask
from prlhf_kit.models.rewards import SequenceReward

USERS = kit.UserIndex(["ann", "bob", "eve"])
WHO, ROWS = ["ann", "bob", None], [1, 2, 0]
SAID = ["Be brief.", "Ask me something back, and be kind.", "Be brief."]
LENGTH = {"max_new_tokens": 12, "top_k": 5}


def another(make_tiny, architecture="llama"):
    base = make_tiny(architecture)
    with torch.no_grad():
        for p in base.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return base


def check_users(personal, tokenizer, base=None, weight=2.0):
    """PAD, the paper's form, with users' soft tokens."""
    guide = kit.PAD(personal, USERS, tokenizer=tokenizer)
    out = kit.GuidedDecoder(base, tokenizer, guide, weight=weight, **LENGTH).generate(PROMPTS, WHO)
    for prompt, row, answer in zip(PROMPTS, ROWS, out, strict=True):
        reference = reader(personal, tokenizer, prompt, adapter=False)
        own = reference if base is None else reader(base, tokenizer, prompt)
        terms = [(reader(personal, tokenizer, prompt, user=row), 1.0), (reference, -1.0)]
        assert answer.tokens == steered(tokenizer, own, terms, weight)
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
    return out


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_pad_with_users_and_a_shared_base(personal, tokenizer):
    out = check_users(personal, tokenizer, weight=3.0)
    assert any(any(answer.changed) for answer in out)
    guide = kit.PAD(personal, USERS)  # its base is the model below the adapter
    below = kit.GuidedDecoder(personal.get_base_model(), tokenizer, guide, weight=3.0, **LENGTH)
    assert [a.tokens for a in below.generate(PROMPTS, WHO)] == [a.tokens for a in out]


def test_pad_with_a_base_of_its_own(personal, make_tiny, tokenizer):
    check_users(personal, tokenizer, another(make_tiny), weight=1.5)


def test_an_adapter_that_can_not_act_on_some_rows_is_read_apart(make_tiny, tokenizer):
    """DoRA, whose output is no sum of the base's and the adapter's; OPT, whose layers see a batch as one list."""
    check_users(with_lora(make_tiny(users=3, offsets=0.8), use_dora=True), tokenizer)
    size = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.2}
    torch.manual_seed(0)
    opt = OPTForCausalLM(OPTConfig(vocab_size=600, word_embed_proj_dim=32, bos_token_id=1, **size)).eval()
    for model, mixed in ((opt, False), (make_tiny(), True)):
        assert mixes(with_lora(model, target_modules="all-linear").get_base_model()) is mixed


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_texts_longer_than_the_window(make_tiny, tokenizer, family):
    check_users(with_lora(make_tiny(family, users=3, offsets=0.8), family), tokenizer)


@pytest.fixture
def persrm(make_tiny, architecture):
    """A PersRM as after both stages: adapter and preference head are not what they were."""
    return with_lora(attach_head(make_tiny(architecture)), architecture)


def plain_persrm(persrm, base, tokenizer, prompt, said, form="paper", **options):
    """PAD with a PersRM: `said` is {preference: weight}. The reference is its backbone, adapter and all, without its
    head; the base has no adapter."""
    told = " ".join(said) if form == "released" else None
    own = reader(base or persrm, tokenizer, prompt, told, adapter=base is not None)
    terms = [(reader(persrm, tokenizer, prompt, text), share) for text, share in said.items()]
    if form == "paper":
        terms.append((reader(persrm, tokenizer, prompt, head=False), -sum(said.values())))
    return steered(tokenizer, own, terms, released=form == "released", **options)


@pytest.mark.parametrize(
    ("architecture", "form", "shared"),
    [("llama", "paper", True), ("gpt_neox", "paper", True), ("gpt2", "paper", False), ("llama", "released", True)],
)
def test_pad_with_preferences_in_words(persrm, make_tiny, tokenizer, architecture, form, shared):
    base = None if shared else another(make_tiny, architecture)
    guide = kit.PAD(persrm, form=form, tokenizer=tokenizer)
    out = kit.GuidedDecoder(base, tokenizer, guide, weight=0.8, **LENGTH).generate(PROMPTS, SAID)
    assert any(any(answer.changed) for answer in out)
    for prompt, said, answer in zip(PROMPTS, SAID, out, strict=True):
        assert answer.tokens == plain_persrm(persrm, base, tokenizer, prompt, {said: 1.0}, form, weight=0.8)


def test_several_preferences(persrm, tokenizer):
    """Joined in the prompt, or read one by one with weights of their own for every prompt (negative ones, too)."""
    a, b = SAID[:2]
    asked = [[a, b], {a: 0.7, b: 0.6}, {a: 1.0, b: -0.5}]
    for form in ("paper", "released"):  # the latter is multi-objective decoding
        out = kit.GuidedDecoder(None, tokenizer, kit.PAD(persrm, form=form), **LENGTH).generate([PROMPTS[1]] * 3, asked)
        for said, answer in zip([{f"{a} {b}": 1.0}, *asked[1:]], out, strict=True):
            assert answer.tokens == plain_persrm(persrm, None, tokenizer, PROMPTS[1], said, form)


def test_any_language_model_reads_a_preference_against_itself(make_tiny, tokenizer):
    model = make_tiny()
    decoder = kit.GuidedDecoder(model, tokenizer, kit.PAD(model), weight=1.5, **LENGTH)
    told, nothing = decoder.generate([PROMPTS[0]] * 2, [SAID[0], None])
    own = reader(model, tokenizer, PROMPTS[0])
    assert told.tokens == steered(tokenizer, own, [(reader(model, tokenizer, PROMPTS[0], SAID[0]), 1), (own, -1)], 1.5)
    assert not any(nothing.changed)


def test_choices_in_context_are_a_preference_in_words(make_tiny, tokenizer):
    pairs = Dataset.from_list([record(f"p{i}", "ann", f"Question {i}?", "Yes.", "No.") for i in range(3)])
    contexts = Contexts("choices", {"ann": None}, earlier=[pairs], k=2)
    for prompt in PROMPTS:
        told = contexts.put(prompt, "ann")
        rows = kit.PAD(make_tiny()).rows(0, prompt, told[0]["content"], tokenizer)
        assert [list(row.ids) for row, _ in rows] == [ids_of(tokenizer, asked)[0].tolist() for asked in (told, prompt)]
        assert [factor for _, factor in rows] == [1, -1]


def test_users_words_and_soft_tokens(make_tiny, tokenizer):
    """The policy sees both, the base neither."""
    personal = with_lora(make_tiny(users=3, num_tokens=2, offsets=0.8, user_text=True))
    decoder = kit.GuidedDecoder(None, tokenizer, kit.PAD(personal, USERS, {"ann": SAID[0]}), weight=2.0, **LENGTH)
    [answer] = decoder.generate(PROMPTS[1:2], ["ann"])
    reference = reader(personal, tokenizer, PROMPTS[1], adapter=False)
    terms = [(reader(personal, tokenizer, PROMPTS[1], SAID[0], user=1), 1.0), (reference, -1.0)]
    assert answer.tokens == steered(tokenizer, reference, terms, 2.0)
    with pytest.raises(kit.DecodingError, match="none of 'bob'"):
        decoder.generate(PROMPTS[:1], ["bob"])


def test_implied_rewards_of_responses(personal, persrm, tokenizer):
    """Those of all its tokens added up; best-of-n takes them as any other reward."""
    texts = ["No, thanks.", "Yes!", "It depends on the weather, my friend."]
    with_users = ImplicitReward(kit.PAD(personal, USERS), tokenizer, batch_size=2).score(PROMPTS, texts, WHO)
    in_words = ImplicitReward(kit.PAD(persrm), tokenizer).score(PROMPTS, texts, SAID)
    for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        whole = tokenizer(text + "<|im_end|>\n")["input_ids"]
        read = tokenizer, prompt, whole
        wanted = summed(personal, *read, user=ROWS[i]) - summed(personal, *read, adapter=False)
        assert with_users[i].item() == pytest.approx(wanted, abs=1e-3)
        wanted = summed(persrm, *read, SAID[i]) - summed(persrm, *read, head=False)
        assert in_words[i].item() == pytest.approx(wanted, abs=1e-3)
    reward = ImplicitReward(kit.PAD(personal, USERS), tokenizer)
    alone = reward.score([PROMPTS[0]] * 3, texts, ["ann"] * 3)
    assert kit.best_of_n(reward, PROMPTS[:1], [texts], ["ann"])[0][0] == alone.argmax()


def reward_model(tokenizer, architecture="llama", users=0, pooling="last"):
    config = build_tiny(architecture, len(tokenizer)).config
    config.num_labels = 1
    torch.manual_seed(3)
    model = pooled_by_mask(AutoModelForSequenceClassification.from_config(config), pooling).eval()
    if users:
        table = kit.IndividualUserModel(users + 1, model.get_input_embeddings(), 3)
        with torch.no_grad():
            table.own.normal_(0, 0.8)
        kit.condition(model, table)
    return SequenceReward(model, tokenizer, USERS if users else None)


def plain_args(base, reward, tokenizer, prompt, weight, rows):
    ids = ids_of(tokenizer, prompt)

    @torch.no_grad()
    def reward_of(new):
        text, found = torch.cat([ids, torch.tensor([new])], 1), 0.0
        for row, share in rows:
            inputs = {} if row is None else {"user_rows": torch.tensor([row])}
            found += share * reward.model(input_ids=text, **inputs).logits.item()
        return found

    def rewards(new, candidates):
        return torch.tensor([reward_of([*new, token]) for token in candidates.tolist()])

    return steered(tokenizer, reader(base, tokenizer, prompt), rewards, weight)


@pytest.mark.parametrize(("architecture", "users"), [("llama", 0), ("gpt2", 0), ("gemma2_wide", 0), ("llama", 3)])
def test_args_scores_candidates_on_one_cache(make_tiny, tokenizer, architecture, users):
    """At every token, and now and then: then it reads in one go what it was not asked for. With a window that texts fit
    into, and for users."""
    base, reward = make_tiny(), reward_model(tokenizer, architecture, users)
    weights = [5.0, 5.0, 0.0, 0.0, 5.0, 0.0, 2.0]
    who, rows = [None] * 3, [[(None, 1.0)]] * 3
    if users:
        who, rows = ["ann", {"ann": 0.5, "eve": 1.0}, None], [[(1, 1.0)], [(1, 0.5), (3, 1.0)], [(0, 1.0)]]
    out = kit.GuidedDecoder(base, tokenizer, kit.ARGS(reward), weight=weights, **LENGTH).generate(PROMPTS, who)
    for prompt, mine, answer in zip(PROMPTS, rows, out, strict=True):
        assert answer.tokens == plain_args(base, reward, tokenizer, prompt, weights, mine)
    assert any(any(answer.changed) for answer in out)


def test_the_guide_of_contributing(personal, tokenizer):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    [code] = re.findall(r"^## Add a guide\n.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code, names)
    guide = names["AgainstTheOthers"](personal, USERS)
    out = kit.GuidedDecoder(None, tokenizer, guide, weight=2.0, **LENGTH).generate(PROMPTS, ["ann"] * 3)
    for prompt, answer in zip(PROMPTS, out, strict=True):
        terms = [(reader(personal, tokenizer, prompt, user=row), factor) for row, factor in ((1, 1.0), (0, -1.0))]
        assert answer.tokens == steered(tokenizer, reader(personal, tokenizer, prompt, adapter=False), terms, 2.0)


def test_refusals(personal, make_tiny, tokenizer, bert):
    size = {"hidden_size": 32, "n_layer": 1, "n_head": 4}
    bloom = BloomForSequenceClassification(BloomConfig(vocab_size=600, num_labels=1, **size))
    with pytest.raises(ValueError, match="has no reference"):
        ImplicitReward(kit.PAD(personal, USERS, form="released"), tokenizer)
    for match, make in (
        ("form='authors'", lambda: kit.PAD(personal, USERS, form="authors")),
        ("pass users=index", lambda: kit.PAD(personal)),
        ("has no soft tokens", lambda: kit.PAD(make_tiny(), USERS)),
        ("BertForSequenceClassification can't be read", lambda: kit.ARGS(kit.load_reward(bert[0]))),
        ("pooling 'last', not 'before_eos'", lambda: kit.ARGS(reward_model(tokenizer, pooling="before_eos"))),
        ("BloomForSequenceClassification can't", lambda: kit.ARGS(SequenceReward(bloom.eval(), tokenizer))),
        ("no base to steer", lambda: kit.GuidedDecoder(None, tokenizer, kit.ARGS(reward_model(tokenizer)))),
    ):
        with pytest.raises(kit.DecodingError, match=match):
            make()
    for match, reward in (
        ("knows no users, so it can't steer for 'ann'", reward_model(tokenizer)),
        ("window of 16", reward_model(tokenizer, "gemma2", users=3)),  # longer texts would be scored wrongly
    ):
        with pytest.raises(kit.DecodingError, match=match):
            kit.GuidedDecoder(make_tiny(), tokenizer, kit.ARGS(reward), **LENGTH).generate(PROMPTS[:1], ["ann"])
