"""Cards: what is written on them, and that it is text. Marks of the tokens that a reward moved."""

from dataclasses import replace

import pytest

from compare.conftest import Says, answered
from prlhf_kit.compare import cards
from prlhf_kit.compare.systems import ANYONE, User
from prlhf_kit.data.schema import message

PROMPT = message("user", "How do I make tea?")


@pytest.fixture
def card(offered, tokenizer):
    """`card(tokens, base_tokens, name="PAD", **more)`: a card that is done; tokens as texts."""

    def make(tokens, base_tokens, name="PAD", rewards=None, base_rewards=None, **more):
        ids = [[i for text in texts for i in tokenizer(text)["input_ids"]] for texts in (tokens, base_tokens)]
        system = next(system for system in offered.systems if system.name == name)
        answer = answered(tokenizer, *ids, rewards, base_rewards)
        return cards.Card(system, offered.users[:1], 1.5, "done", answer, **more)

    return make


def html(card, hidden=False):
    return cards.LOOKS.card_html(card, 1, hidden)


def test_model_text_is_text(tokenizer):
    text = "</article><script>alert(1)</script><img src=x onerror=alert(1)>&lt;"
    tokens = tokenizer(text)["input_ids"]
    answer = answered(tokenizer, tokens, [t + 3 for t in tokens], [1.0] * len(tokens))
    system = Says(f"name {text}", text, tokenizer)
    system.reads = "user_id"
    card = cards.Card(system, [User(f"user {text}", None, f"words {text}")], 1.0, "done", answer, text, ended=True)
    card.rewards = [(card.users[0], f"reward {text}", 1.0)]
    page = cards.LOOKS.static_html(text, [card])
    picture = cards.picture(answer, tokenizer)
    assert picture.count('class="prlhf-token"') == len(tokens)
    for shown in (html(card), html(card, hidden=True), page):
        assert text not in shown
        assert "<script" not in shown
        assert "<img" not in shown
        assert shown.count("<article") == shown.count("</article>") == 1


def test_tokens_that_the_reward_moved(card, tokenizer):
    emoji = tokenizer(" 🙂")["input_ids"]
    assert len(emoji) > 2  # of which one was moved
    n = sum(len(tokenizer(text)["input_ids"]) for text in (" tea", " is", " 🙂"))
    one = card([" tea", " is", " 🙂"], [" tea", " is", " 🙂"], rewards=[2.0] * n, base_rewards=[0.5] * n)
    one.answer.base_tokens[0], one.answer.base_tokens[-1] = tokenizer(" it")["input_ids"][0], emoji[0]
    shown = html(one)
    assert shown.count('class="prlhf-token"') == 2
    assert shown.count('data-gain="+1.50"') == 2
    assert 'tabindex="0"' in shown
    assert "; reward +1.50" in shown
    assert ">🙂</span>" in shown
    assert "\ufffd" not in shown
    assert "".join(piece.text for piece in one.pieces) == " tea is 🙂"
    nan = card(["x"], ["y"], rewards=[float("nan")])
    assert "+0.00" in html(nan)
    assert "the base model would say: y" in html(nan)


def test_what_can_not_be_seen_is_given_a_sign(card, tokenizer):
    ended = html(card(["a", tokenizer.eos_token], ["a", "x"]))
    assert ">∎</span>" in ended
    assert "end of the answer; the base model would say: x" in ended
    assert 'aria-label="line break; ' in html(card(["a", "\n"], ["a", "b"]))


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("PAD", "2 moved by the reward", "unlike"),
        ("vanilla DPO", "2 unlike the base model’s", "reward"),
        ("prompt with user text", "2 unlike the base model’s", "reward"),
        ("base model", "2 tokens<", "unlike"),
    ],
)
def test_what_no_personal_reward_moved_is_not_said_to_be(card, name, there, absent):
    shown = html(card(["a", "b"], ["c", "d"], name))
    assert there in shown
    assert absent not in shown
    assert ("data-gain" in shown) == ("moved" in there)


def test_a_card_says_whose_it_is_and_whether_it_was_cut_off(card, offered, tokenizer):
    shown = html(card(["a"], ["a"], ended=True))
    assert "<b>PAD, w = 1.5</b><br>for structured-1" in shown
    assert "“I am structured-1.”" in shown
    assert "cut off" not in shown
    cut = card(["a", "b"], ["a", "b"], "base model")
    cut.rewards += [(cut.users[0], "true utility, SD", -0.5)]
    assert "cut off at 2 tokens" in html(cut)
    assert "true utility, SD<br>of structured-1</dt><dd>-0.50" in html(cut)  # the answer is not theirs
    half = answered(tokenizer, tokenizer("Tea 🙂")["input_ids"][:-1], [])
    assert cards.Card(cut.system, [ANYONE], 0.0, answer=half).text == "Tea "


def test_where_nobody_is_at_the_screen_there_is_a_page_and_a_table(offered, tokenizer):
    who = [*offered.users[:1], ANYONE]
    page, table = cards.answered(offered, PROMPT, who, 1.5, 5)
    assert [*zip(table.system, table["for"] == "structured-1", strict=True)] == [
        ("base model", False),
        ("vanilla DPO", False),
        ("P-DPO", True),
        ("P-DPO", False),
        ("PAD", True),
        ("PAD", False),
        ("prompt with user text", True),  # the generic user says nothing
    ]
    assert (table.prompt == "How do I make tea?").all()
    assert table["personal reward, nats"].notna().all()
    assert table["true utility, SD"].isna().tolist() == [False, False, False, True, False, True, False]
    both = [offered.rewards["personal reward, nats"](user, PROMPT, table.answer[0]) for user in who]
    assert table["personal reward, nats"][0] == pytest.approx(sum(both) / 2)  # the base's answer is judged for both
    assert page.count("<article") == 7
    broken = replace(offered, systems=[Says("broken", "a b c", tokenizer, error=RuntimeError("lost"))])
    with pytest.raises(RuntimeError, match=r"broken has no answer for anyone. RuntimeError: lost"):
        cards.answered(broken, PROMPT, who, 1.0, 5)
