"""The comparison, driven by its controls: what it writes, refuses, hides, stops at and counts."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from compare.conftest import Says, votes_in
from prlhf_kit.compare import widget
from prlhf_kit.compare.systems import ANYONE
from prlhf_kit.data.schema import message


@pytest.fixture
def panel(offered, tmp_path):
    """`panel(systems=None, users=None, **options)`: a comparison of the run's systems, with short answers."""

    def make(systems=None, users=None, prompts=None, **options):
        some = {"systems": systems, "users": users, "prompts": prompts}
        found = replace(offered, **{name: value for name, value in some.items() if value is not None})
        return widget.Comparison(found, **{"votes": tmp_path / "votes.jsonl", "max_new_tokens": 6} | options)

    return make


def generated(comparison):
    comparison.generate.click()
    comparison.thread.join(60)
    return comparison


def bodies(comparison):
    return [card.children[0].value for card in comparison.cards.children]


def vote(comparison, number):
    comparison.cards.children[number].children[1].click()
    return comparison.status.value


class Waits:
    """Stops a system at its second token until it may `go` on."""

    def __init__(self):
        self.reached, self.go, self.tokens = threading.Event(), threading.Event(), 0

    def __call__(self, n):
        self.tokens = n
        if n == 2:
            self.reached.set()
            assert self.go.wait(30)


def test_users_by_systems_then_a_vote(panel, offered, tmp_path):
    comparison = panel()
    comparison.generate.click()
    comparison.weight.value = 3.0  # a slider's last move comes after the click
    comparison.thread.join(60)
    a, b = (user.name for user in offered.users[:2])
    personal = [(system, who) for system in ("P-DPO", "PAD, w = 3", "prompt with user text") for who in (a, b)]
    assert [(card.title, card.whom) for card in comparison.shown] == [
        ("base model", "anyone"),
        ("vanilla DPO", "anyone"),
        *personal,
    ]
    assert {card.state for card in comparison.shown} == {"done"}
    assert {name for _, name, _ in comparison.shown[4].rewards} == set(offered.rewards)
    assert len({user for user, _, _ in comparison.shown[0].rewards}) == 2  # judged for both

    comparison.prompt.value = "Too late"
    assert "Type your name" in vote(comparison, 4)
    assert votes_in(tmp_path / "votes.jsonl") == []
    comparison.voter.value, comparison.about.value = "ann", "I like tea."
    assert 'data-state="voted"' in vote(comparison, 4)
    assert "You have voted" in vote(comparison, 4)
    rows = votes_in(tmp_path / "votes.jsonl")
    best = comparison.shown[4].text.strip()
    others = [card.text for card in comparison.shown if card.text.strip() != best]
    assert [row["rejected"][0]["content"] for row in rows] == others
    row = rows[0]
    assert (row["user_id"], row["user_text"], row["blind"]) == ("ann", "I like tea.", False)
    pad = {"system": "PAD", "user": "structured-1", "for": "structured-1", "weight": 3.0, "top_k": 10}
    assert row["chosen_from"] == pad | {"ended": comparison.shown[4].ended}
    assert row["models"] == offered.fingerprints
    assert row["settings"] == {"max_new_tokens": 6, "do_sample": False}
    assert row["kit"]["version"]
    assert row["prompt"] == comparison.asked == offered.prompts[0]


def test_drafts_appear_while_the_kernel_is_free_and_stop_ends_it_within_a_token(panel, tokenizer):
    each = Waits()
    comparison = panel([Says("slow", "One two three four", tokenizer, each=each), Says("next", "x", tokenizer)])
    comparison.generate.click()
    assert each.reached.wait(30)
    assert 'aria-busy="true"' in bodies(comparison)[0]
    assert "still being written" in vote(comparison, 0)
    comparison.reveal.click()
    assert "still being written" in comparison.status.value
    comparison.stop.click()
    each.go.set()
    comparison.thread.join(60)
    assert each.tokens == 2
    assert [card.state for card in comparison.shown] == ["stopped", "stopped"]
    assert 'data-state="stopped"' in comparison.status.value
    assert "not written" in bodies(comparison)[1]
    assert "not complete" in vote(comparison, 0)
    generated(comparison)  # and it can go on
    assert [card.state for card in comparison.shown] == ["done", "done"]
    assert "One two three four" in bodies(comparison)[0]


def test_comparisons_take_turns(panel, tokenizer):
    """They switch adapters in models that they share."""
    each, log = Waits(), []
    first = panel([Says("slow", "One two three", tokenizer, each=each)])
    first.generate.click()
    assert each.reached.wait(30)
    second = panel([Says("next", "Four", tokenizer, each=log.append)])  # the cell is run again
    second.generate.click()
    assert "Waiting until other answers stop" in second.status.value
    assert log == []
    each.go.set()
    first.thread.join(60)
    second.thread.join(60)
    assert (first.shown[0].state, each.tokens, second.shown[0].state) == ("stopped", 2, "done")
    generated(first)  # and it can be used again
    assert first.shown[0].state == "done"


def test_an_error_is_shown_on_its_card_and_others_go_on(panel, tokenizer, offered):
    broken = Says("broken", "a b c d", tokenizer, error=RuntimeError("<b>CUDA out of memory</b>"))
    comparison = generated(panel([broken, offered.systems[0]]))
    assert [card.state for card in comparison.shown] == ["failed", "done"]
    assert "RuntimeError: &lt;b&gt;CUDA out of memory" in bodies(comparison)[0]
    assert "1 failed" in comparison.status.value
    assert not any(box.description_allow_html for box in [*comparison.users.values(), *comparison.systems.values()])


def test_what_can_not_be_asked_is_refused_in_place(panel, offered):
    words = next(s for s in offered.systems if s.reads == "words")
    comparison = panel([words], [ANYONE, offered.users[0]], prompts=[])
    assert comparison.choose.value == -1
    assert "prompt is empty" in generated(comparison).status.value
    comparison.prompt.value = "Why?"
    generated(comparison)
    assert [(card.whom, card.state) for card in comparison.shown] == [(offered.users[0].name, "done")]
    assert (
        f"Left out, because these users have no text about themselves: {words.name} for anyone"
        in comparison.status.value
    )
    comparison.users[offered.users[0]].value = False
    assert "one system that can answer them. Left out" in generated(comparison).status.value
    comparison.users[ANYONE].value = False
    assert "at least one user" in generated(comparison).status.value


def test_prompts_are_chosen_or_typed(panel, tokenizer):
    dialogue = [*message("user", "<i>Hi</i>"), *message("assistant", "Hello."), *message("user", "And tea?")]
    system = Says("x", "yes", tokenizer)
    comparison = panel([system], prompts=[message("user", "How do I make tea?"), dialogue])
    assert comparison.prompt.value == "How do I make tea?"
    for choice, typed in ((1, None), (1, "And coffee?"), (-1, "Why?")):
        comparison.choose.value = choice
        assert ("&lt;i&gt;Hi" in comparison.earlier.value) == (choice == 1)
        if typed:
            comparison.prompt.value = typed
        comparison.length.max = comparison.length.value = 10**9  # as a hostile page could
        assert generated(comparison).settings["max_new_tokens"] == widget.LONGEST
        comparison.choose.value = 0
    assert system.asked == [dialogue, [*dialogue[:2], *message("user", "And coffee?")], message("user", "Why?")]


def test_blind_mode_hides_until_the_vote(panel, offered, tmp_path, tokenizer):
    broken = Says("secret", "a b c d", tokenizer, error=RuntimeError("secret is out of memory"))
    systems = [offered.systems[0], offered.systems[3], broken]
    comparison = panel(systems, blind=True)
    comparison.weight.value = 3.0
    orders = []
    for _ in range(6):
        generated(comparison)
        orders.append([(card.system.name, card.whom) for card in comparison.shown])
        for told in ("base model", "PAD", "structured", "companion", "reward", "moved", "prlhf-token", "secret"):
            assert not any(told in html for html in bodies(comparison)), told
        assert sum("This answer could not be written." in html for html in bodies(comparison)) == 1
    assert len({tuple(order) for order in orders}) > 1
    assert comparison.reveal.layout.display is None
    comparison.voter.value = "ann"
    pad = next(i for i, card in enumerate(comparison.shown) if card.system.name == "PAD")
    vote(comparison, pad)
    assert "<b>PAD, w = 3</b>" in bodies(comparison)[pad]  # now it is told
    row = votes_in(tmp_path / "votes.jsonl")[0]
    assert row["blind"] is True
    assert [(made["system"], made["for"]) for made in row["order"]] == orders[-1]


def test_who_wrote_what_can_be_asked_for_and_ends_the_vote(panel, tokenizer):
    comparison = panel([Says("a", "x", tokenizer), Says("b", "y", tokenizer)], blind=True)
    generated(comparison).reveal.click()
    assert "<b>a</b>" in "".join(bodies(comparison))
    assert 'data-state="revealed"' in comparison.status.value
    assert "or seen who wrote them" in vote(comparison, 0)
    comparison.blind.value = False
    assert generated(comparison).reveal.layout.display == "none"  # nothing is hidden


def test_a_file_that_can_not_be_written_is_said_in_place(panel, tokenizer, tmp_path):
    comparison = panel([Says("a", "x", tokenizer), Says("b", "y", tokenizer)], votes=tmp_path)
    comparison.voter.value = "ann"
    assert "Not counted." in vote(generated(comparison), 0)
    assert not comparison.voted


def test_live_is_where_somebody_may_be_at_the_screen(monkeypatch):
    """What JupyterLab, voila, and papermill or `jupyter execute` set; in a real kernel for the last."""
    for typed, server, runner, wanted in (
        (True, "", "", True),
        (True, "", "1", False),
        (False, "", "", False),
        (False, "voila/0.5.13", "", True),
    ):
        monkeypatch.setenv("SERVER_SOFTWARE", server)
        monkeypatch.setenv("PRLHF_KIT_RUNNER", runner)
        shell = SimpleNamespace(get_parent=lambda typed=typed: {"content": {"allow_stdin": typed}})
        monkeypatch.setattr(widget, "get_ipython", lambda shell=shell: shell)
        assert widget.live() == wanted
