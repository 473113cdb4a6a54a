"""The comparison, driven by its Python objects: what it writes, refuses, hides, stops at and counts."""

import json
import threading
import time

import pytest
import torch
from conftest import TARGETS, build_tiny
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model

import prlhf_kit as kit
from prlhf_kit.compare import cards, people, systems, token_marks, widget
from prlhf_kit.data import simulated
from prlhf_kit.data.schema import message, record
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.implicit import ImplicitReward
from prlhf_kit.runs.stage import StageError
from prlhf_kit.training.controls import load_control

PROMPT = message("user", "How do I make tea?")


def lora(model, seed):
    model = get_peft_model(
        model,
        LoraConfig(
            target_modules=TARGETS["llama"],
            modules_to_save=["user_model"] if hasattr(model, "user_model") else None,
        ),
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.4, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A run with a tiny P-DPO model, vanilla DPO, and simulated users; and the tiny base."""
    folder = tmp_path_factory.mktemp("run")
    base = folder / "lm"
    build_tiny("llama", len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    population = simulated.population(users_per_type=2)
    ids = [user for user in population.user_ids if user.endswith("1")]

    def pairs(split, users):
        rows = [
            record(
                f"{split}-{user}-{i}", user, f"{split} question {i}?", "Yes, very much.", "No.", f"I am {user}.", user
            )
            for user in users
            for i in range(3)
        ]
        return Dataset.from_list(rows)

    strangers = ["casual-2", "formal-2"]
    data = DatasetDict(train=pairs("train", ids), test_seen=pairs("test", ids), adapt_unseen=pairs("adapt", strangers))
    stages = folder / "r" / "01_data_preparation", folder / "r" / "03_pdpo_training"
    data.save_to_disk(stages[0] / "data")
    population.save(stages[0] / "population.json")
    model = kit.load_model(str(base))
    table = kit.IndividualUserModel(len(ids) + 1, model.get_input_embeddings().weight, 3)
    with torch.no_grad():
        table.own += 0.8 * torch.randn(table.own.shape, generator=torch.Generator().manual_seed(7))
    kit.condition(model, table)
    index = kit.UserIndex(ids)
    kit.save_personalized(lora(model, 5), index, stages[1] / "pdpo")
    kit.save_personalized(lora(kit.load_model(str(base)), 6), index, stages[1] / "dpo")
    return folder / "r", str(base)


@pytest.fixture(scope="module")
def offered(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield systems.of_run(*run, k=2, steps=1, n_prompts=3)


@pytest.fixture
def panel(offered, tmp_path):
    """`panel(...)`: a comparison of the run's systems, with short answers."""

    def make(systems=None, users=None, prompts=None, **options):
        return widget.compare(
            systems or offered.systems,
            users or offered.users,
            offered.prompts if prompts is None else prompts,
            **{"votes": tmp_path / "votes.jsonl", "rewards": offered.rewards, "max_new_tokens": 6, "seed": 3} | options,
        )

    return make


def ended(comparison):
    comparison.wait(60)
    assert not comparison.writing
    return comparison


def bodies(comparison):
    return [card.children[0].value for card in comparison.cards.children]


def votes_in(tmp_path):
    path = tmp_path / "votes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Says:
    """A system that says what it is told to: for what a tiny model can't be made to do."""

    def __init__(self, name, text, tokenizer, by_user=False, error=None, wait=None):
        self.name, self.text, self.tokenizer, self.by_user = name, text, tokenizer, by_user
        self.weight, self.top_k, self.error, self.wait = 0.0, None, error, wait
        self.reads, self.ends = ("user" if by_user else "nothing"), True

    def stream(self, prompt, user, weight, stop, max_new_tokens):
        tokens = self.tokenizer(self.text)["input_ids"]
        for n in range(1, len(tokens) + 1):
            if self.error and n > 2:
                raise self.error
            yield GuidedAnswer(
                self.tokenizer.decode(tokens[:n]), tokens[:n], tokens[:n], *[[0.0] * n for _ in range(5)]
            )
            if self.wait:
                self.wait(n)
            if stop.is_set():
                return

    def knows(self, user):
        return True

    def ended(self, tokens):
        return self.ends


# What a run offers ------------------------------------------------------------------------------------------------


def test_a_runs_systems_share_one_base(offered):
    assert [system.name for system in offered.systems] == [
        "base model",
        "vanilla DPO",
        "P-DPO",
        "PAD",
        "prompt with user text",
    ]
    base = offered.systems[0].guide.model
    wanted = {p.data_ptr() for p in base.parameters()}
    for system in offered.systems[1:]:
        assert wanted <= {p.data_ptr() for p in system.guide.model.parameters()}, system.name
    assert set(offered.fingerprints) == {"base model", "P-DPO", "vanilla DPO"}
    assert [system.by_user for system in offered.systems] == [False, False, True, True, True]


def test_people_are_users_a_new_one_and_anybody(offered, run):
    assert [user.user_id for user in offered.users] == [
        "structured-1",
        "companion-1",
        "formal-1",
        "casual-1",
        "casual-2",
        None,
    ]
    new = offered.users[-2]
    assert new.fitted == people.Fitted(pairs=2, steps=1, seed=0)
    assert (new.words, new.name) == ("I am casual-2.", "casual-2 (new: fitted to 2 pairs)")
    guide = offered.systems[2].guide
    assert guide.users.row("casual-2") == 5  # behind those of the saved model
    again = systems.of_run(*run, k=2, steps=1, users=["formal-1"])  # from the cache
    assert [user.user_id for user in again.users] == ["formal-1", "casual-2", None]
    rows = [one.systems[2].guide.model.state_dict() for one in (offered, again)]
    own = next(name for name in rows[0] if name.endswith("default.own"))
    assert torch.equal(rows[0][own][5], rows[1][own][5])
    assert again.fingerprints == offered.fingerprints
    other = systems.of_run(*run, k=1, steps=1)  # the same user, fitted to another number of pairs
    assert other.users[-2].name == "casual-2 (new: fitted to 1 pair)"
    assert {n for n, f in other.fingerprints.items() if f != offered.fingerprints[n]} == {"P-DPO"}
    few = systems.of_run(*run, k=5, steps=0).users[-2]
    assert few.name == "casual-2 (new: fitted to 3 pairs, 5 were asked for)"
    assert len(systems.of_run(*run, k=0).users) == 5


@pytest.mark.parametrize(("system", "row"), [("vanilla DPO", None), ("P-DPO", 2), ("P-DPO", 0)])
def test_at_full_vocabulary_and_w_1_a_system_is_its_policy(offered, run, tokenizer, system, row):
    one = next(s for s in offered.systems if s.name == system)
    user = people.ANYONE if row == 0 else offered.users[1]
    *_, last = one.stream(PROMPT, user, weight=7.0, max_new_tokens=8)  # its own weight counts
    if row is None:
        model = load_control(run[0] / "03_pdpo_training" / "dpo", run[1]).model
    else:
        model, _ = kit.load_personalized(run[0] / "03_pdpo_training" / "pdpo", run[1])
    [wanted] = kit.generate(model, tokenizer, [PROMPT], None if row is None else [row], max_new_tokens=8)
    assert last.text == wanted


def test_what_can_not_be_offered_is_said(run, tmp_path):
    with pytest.raises(StageError, match="written by notebook 01_data_preparation"):
        systems.of_run(tmp_path / "none", run[1])
    with pytest.raises(ValueError, match="no system 'gpt'"):
        systems.of_run(*run, systems=["gpt"])
    with pytest.raises(ValueError, match="has no 'PAD, PersRM', only base model"):
        systems.of_run(*run, systems=["PAD, PersRM"], k=0)
    with pytest.raises(ValueError, match="'zoe' has no row"):
        systems.of_run(*run, users=["zoe"])
    some = systems.of_run(*run, systems=["PAD"], prompts=["Why?"], k=0)
    assert ([s.name for s in some.systems], some.prompts) == (["PAD"], [message("user", "Why?")])


def test_names_must_differ(offered):
    with pytest.raises(ValueError, match="names must differ"):
        widget.compare(offered.systems[:1] * 2, offered.users, [])
    with pytest.raises(ValueError, match="0 users"):
        widget.compare(offered.systems, [], [])


# Writing ----------------------------------------------------------------------------------------------------------


def test_users_by_systems(panel, offered, run, tokenizer):
    comparison = panel()
    comparison.generate.click()
    assert comparison.generate.disabled
    comparison.weight.value = 2.0  # a slider's last move comes after the click
    ended(comparison)
    found = [(card.title, card.whom) for card in comparison.shown]
    a, b = (user.name for user in offered.users[:2])
    assert found == [
        ("base model", "anyone"),
        ("vanilla DPO", "anyone"),
        ("P-DPO", a),
        ("P-DPO", b),
        ("PAD, w = 2", a),
        ("PAD, w = 2", b),
        ("prompt with user text", a),
        ("prompt with user text", b),
    ]
    assert {card.state for card in comparison.shown} == {"done"}
    assert 'data-state="done"' in comparison.status.value
    assert not comparison.generate.disabled
    assert comparison.stop.disabled
    pad = comparison.shown[4]
    assert {name for _, name, _ in pad.rewards} == {"personal reward, nats", "true utility, SD"}
    population = simulated.population(users_per_type=2)
    utility = next(value for _, name, value in pad.rewards if name.startswith("true"))
    assert utility == pytest.approx(population.utility([offered.users[0].user_id], [pad.text])[0])
    base = comparison.shown[0]  # judged for both
    assert len({user.name for user, _, _ in base.rewards}) == 2
    model, index = kit.load_personalized(run[0] / "03_pdpo_training" / "pdpo", run[1])
    reward = ImplicitReward(kit.PAD(model, index), tokenizer, unfinished=True)
    for user, name, value in base.rewards:
        if name.startswith("personal"):
            wanted = reward.score([comparison.asked], [base.text], [user.user_id]).item()
            assert value == pytest.approx(wanted, abs=1e-4)
    html = bodies(comparison)[4]
    assert 'data-system="PAD"' in html
    assert 'data-reward="true utility, SD"' in html
    assert "“I am structured-1.”" in html


def test_drafts_appear_while_the_kernel_is_free(panel, tokenizer):
    seen, go = threading.Event(), threading.Event()

    def wait(n):
        if n == 2:
            seen.set()
            assert go.wait(30)

    comparison = panel([Says("slow", "One two three four", tokenizer, wait=wait)])
    comparison.generate.click()
    assert seen.wait(30)
    assert comparison.writing
    assert 'aria-busy="true"' in bodies(comparison)[0]
    comparison.generate.click()  # refused in place
    assert "still being written" in comparison.status.value
    comparison._vote(0)
    assert "still being written" in comparison.status.value
    go.set()
    ended(comparison)
    assert "One two three four" in bodies(comparison)[0]
    assert 'aria-busy="false"' in bodies(comparison)[0]


def test_stop_ends_it_within_a_token(panel, tokenizer):
    told = []

    def wait(n):
        told.append(n)
        if len(told) == 3:
            comparison.stop.click()

    comparison = panel([Says("first", "a b c d e f g h", tokenizer, wait=wait), Says("second", "x", tokenizer)])
    comparison.generate.click()
    ended(comparison)
    assert told == [1, 2, 3]
    assert [card.state for card in comparison.shown] == ["stopped", "stopped"]
    assert 'data-state="stopped"' in comparison.status.value
    assert "not written" in bodies(comparison)[1]
    comparison.voter.value = "ann"
    comparison._vote(0)
    assert "not complete" in comparison.status.value
    comparison.generate.click()  # and it can go on
    ended(comparison)
    assert comparison.shown[1].state == "done"


def test_an_error_is_shown_on_its_card_and_others_go_on(panel, tokenizer, offered):
    broken = Says("broken", "a b c d", tokenizer, error=RuntimeError("<b>CUDA out of memory</b>"))
    comparison = panel([broken, offered.systems[0]])
    comparison.generate.click()
    ended(comparison)
    assert [card.state for card in comparison.shown] == ["failed", "done"]
    assert "RuntimeError: &lt;b&gt;CUDA out of memory" in bodies(comparison)[0]
    assert "1 failed" in comparison.status.value
    comparison = panel(offered.systems[:1])
    comparison.prompt.value = "word " * 400
    comparison.generate.click()
    ended(comparison)
    assert "exceed the model&#x27;s context" in bodies(comparison)[0]


def test_who_says_nothing_of_themselves_is_left_out_of_what_goes_by_words(panel, offered):
    words = next(s for s in offered.systems if s.reads == "words")
    comparison = panel([words], [people.ANYONE])
    comparison.generate.click()
    ended(comparison)
    assert "say nothing of themselves" in comparison.status.value
    assert not comparison.shown
    comparison = panel([words], [people.ANYONE, offered.users[0]])
    comparison.generate.click()
    ended(comparison)
    assert [(card.whom, card.state) for card in comparison.shown] == [(offered.users[0].name, "done")]
    assert f"Left out, since they say nothing of themselves: {words.name} for anyone" in comparison.status.value
    with pytest.raises(kit.DecodingError, match="says nothing of themselves"):
        next(words.stream(PROMPT, people.ANYONE))


def test_comparisons_take_turns(panel, tokenizer):
    """They switch adapters in models that they share."""
    seen, go, log = threading.Event(), threading.Event(), []

    def slow(n):
        log.append("first")
        seen.set()
        assert go.wait(30)

    first = panel([Says("slow", "One two three", tokenizer, wait=slow)])
    first.generate.click()
    assert seen.wait(30)
    second = panel([Says("next", "Four", tokenizer, wait=lambda _: log.append("second"))])  # the cell is run again
    assert first.stopping.is_set()
    second.generate.click()
    for _ in range(100):
        if "Waiting until another" in second.status.value:
            break
        time.sleep(0.05)
    assert log == ["first"]
    go.set()
    ended(first)
    ended(second)
    assert log == ["first", *["second"] * (len(log) - 1)]
    assert first.shown[0].state == "stopped"
    assert second.shown[0].state == "done"
    assert not widget.ACTIVE
    first.generate.click()  # and it can be used again
    ended(first)
    assert first.shown[0].state == "done"


def test_what_can_not_be_asked_is_refused_in_place(panel):
    comparison = panel()
    comparison.prompt.value = "  "
    comparison.generate.click()
    ended(comparison)
    assert "prompt is empty" in comparison.status.value
    comparison.prompt.value = "Why?"
    for box in comparison.users.values():
        box.value = False
    comparison.generate.click()
    ended(comparison)
    assert "at least one user" in comparison.status.value
    assert not comparison.cards.children


def test_prompts_are_chosen_or_typed(panel, tokenizer):
    dialogue = [*message("user", "<i>Hi</i>"), *message("assistant", "Hello."), *message("user", "And tea?")]
    asked = []

    class Listens(Says):
        def stream(self, prompt, *rest):
            asked.append(prompt)
            return super().stream(prompt, *rest)

    comparison = panel([Listens("x", "yes", tokenizer)], prompts=[PROMPT, dialogue])
    assert comparison.prompt.value == "How do I make tea?"
    for choice, typed in ((1, None), (1, "And coffee?"), (-1, "Why?")):
        comparison.choose.value = choice
        if typed:
            comparison.prompt.value = typed
        comparison.generate.click()
        ended(comparison)
        comparison.choose.value = 0
    assert asked == [dialogue, [*dialogue[:2], *message("user", "And coffee?")], message("user", "Why?")]
    comparison.choose.value = 1
    assert "&lt;i&gt;Hi" in comparison.earlier.value
    assert panel([Says("x", "yes", tokenizer)], prompts=[]).choose.value == -1


# How it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["</article><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;"])
def test_model_text_is_text(panel, tokenizer, text):
    system = Says(f"name {text}", text, tokenizer)
    comparison = panel([system], [people.User(f"user {text}", None, f"words {text}")])
    comparison.generate.click()
    ended(comparison)
    card = comparison.shown[0]
    moved = [t + 3 for t in card.answer.tokens]
    card.answer = GuidedAnswer(
        text, card.answer.tokens, moved, rewards=[1.0] * len(moved), base_rewards=[0.0] * len(moved)
    )
    card.error = text
    for html in (*bodies(comparison), cards.as_html(card, 0), cards.static(message("user", text), [card])):
        assert text not in html.replace(cards.STYLE, "")
        assert "<script" not in html
        assert "<img" not in html
        assert html.count("<article") == html.count("</article>") == 1
    assert text not in comparison.status.value


def test_tokens_that_the_reward_moved(tokenizer):
    tokens, base = (
        [tokenizer(t)["input_ids"] for t in texts] for texts in ([" tea", " is", " 🙂"], [" it", " is", " !"])
    )
    flat = [t for part in tokens for t in part]
    assert len(tokens[2]) > 2  # the emoji is several tokens, of which one was moved
    own = [*base[0][:1], *flat[1:]]
    own[-1] = base[2][-1]
    rewards = [2.0] * (len(flat) - 1) + [1.0]
    answer = GuidedAnswer("tea is 🙂", flat, own, rewards=rewards, base_rewards=[0.5] * len(flat))
    found = token_marks.pieces(tokenizer, flat)
    assert "".join(p.text for p in found) == " tea is 🙂"
    assert [p.text for p in found if token_marks.UNFINISHED in p.text] == []
    assert found[-1].stop - found[-1].start > 1
    html = token_marks.marked(answer, tokenizer)
    assert html.count('class="prlhf-token"') == 2
    assert 'data-gain="+1.50"' in html
    assert 'tabindex="0"' in html
    assert "the base model would say: it; reward +1.50" in html
    assert ">🙂</span>" in html
    assert "\ufffd" not in html
    nan = GuidedAnswer("x", flat[:1], base[0][:1], rewards=[float("nan")], base_rewards=[float("nan")])
    assert "+0.00" in token_marks.marked(nan, tokenizer)


def test_an_end_that_the_reward_chose_can_be_seen(tokenizer):
    word = tokenizer(" tea")["input_ids"]
    answer = GuidedAnswer(
        "tea", [*word, 2], [*word, word[0]], rewards=[0.0] * (len(word) + 1), base_rewards=[0.0] * (len(word) + 1)
    )
    html = token_marks.marked(answer, tokenizer)
    assert html.endswith(">∎</span>")
    assert 'aria-label="end of the answer;' in html


def test_what_no_personal_reward_moved_is_not_said_to_be(panel, offered):
    comparison = panel()
    comparison.weight.value = 3.0
    comparison.generate.click()
    ended(comparison)
    found = {card.system.name: html for card, html in zip(comparison.shown, bodies(comparison), strict=True)}
    assert any(sum(card.answer.changed) for card in comparison.shown if card.system.name == "vanilla DPO")
    for name in ("vanilla DPO", "prompt with user text"):
        assert " unlike the base model’s" in found[name], name
        assert "moved by" not in found[name]
        assert "; reward" not in found[name]
        assert "data-gain" not in found[name]
    for name in ("P-DPO", "PAD"):
        assert " moved by the reward" in found[name], name
        assert "data-gain" in found[name]
    assert "unlike" not in found["base model"]
    assert "moved" not in found["base model"]


def test_a_reward_names_its_user_unless_the_answer_is_theirs(panel, offered):
    comparison = panel([offered.systems[0], offered.systems[3]], offered.users[:1])
    comparison.generate.click()
    ended(comparison)
    assert [f"<br>of {offered.users[0].name}" in html for html in bodies(comparison)] == [True, False]


def test_an_answer_that_was_cut_off_says_so(panel, offered, tokenizer):
    whole, cut = Says("whole", "Tea.", tokenizer), Says("cut", "Tea is", tokenizer)
    cut.ends = False
    comparison = panel([whole, cut])
    comparison.generate.click()
    ended(comparison)
    n = len(comparison.shown[1].answer.tokens)
    assert ["cut off at" in html for html in bodies(comparison)] == [False, True]
    assert f"cut off at {n} tokens" in bodies(comparison)[1]
    assert cards.table(PROMPT, comparison.shown).ended.tolist() == [True, False]
    base = offered.systems[0]
    assert [base.ended(t) for t in ([], [5], [5, tokenizer.eos_token_id])] == [False, False, True]
    *_, last = base.stream(PROMPT, people.ANYONE, max_new_tokens=3)
    assert base.ended(last.tokens) == (last.tokens[-1] == tokenizer.eos_token_id)
    half = GuidedAnswer("Tea 🙂\ufffd\ufffd", [1], [1], [0.0], [0.0], [0.0], [0.0])
    assert cards.Card(cut, [people.ANYONE], 0.0, answer=half).text == "Tea 🙂"


# Blind, and votes -------------------------------------------------------------------------------------------------


def test_a_vote_is_added_to_the_file(panel, offered, tmp_path):
    comparison = panel([offered.systems[0], offered.systems[3]], fingerprints=offered.fingerprints)
    comparison.weight.value = 3.0
    comparison.generate.click()
    ended(comparison)
    assert len({card.text for card in comparison.shown}) == 3
    vote = comparison.cards.children[1].children[1]
    vote.click()
    assert "Type your name" in comparison.status.value
    assert votes_in(tmp_path) == []
    comparison.voter.value, comparison.about.value = "ann", "I like tea."
    vote.click()
    assert 'data-state="voted"' in comparison.status.value
    vote.click()
    assert "You have voted" in comparison.status.value
    rows = votes_in(tmp_path)
    assert len(rows) == 2
    row = rows[0]
    assert (row["user_id"], row["user_text"], row["blind"], row["round"]) == ("ann", "I like tea.", False, 1)
    assert row["chosen"][0]["content"] == comparison.shown[1].text
    assert row["chosen_from"] == {
        "system": "PAD",
        "user": "structured-1",
        "for": "structured-1",
        "weight": 3.0,
        "top_k": 10,
        "fitted": None,
        "ended": comparison.shown[1].ended,
    }
    assert row["rejected_from"]["system"] == "base model"
    assert row["models"] == offered.fingerprints
    assert row["settings"] == {"max_new_tokens": 6, "do_sample": False}
    assert row["kit"]["version"]
    assert row["prompt"] == comparison.asked
    data = kit.data.load("files", tmp_path / "votes.jsonl", test_share=0.0)
    assert len(data["train"]) == 2
    assert all(card.children[1].disabled for card in comparison.cards.children)


def test_blind_mode_hides_until_the_vote(panel, offered, tmp_path):
    comparison = panel([offered.systems[0], offered.systems[3]], blind=True)
    comparison.weight.value = 3.0
    orders = []
    for _ in range(4):
        comparison.generate.click()
        ended(comparison)
        orders.append([(card.system.name, card.whom) for card in comparison.shown])
        for html in bodies(comparison):
            for told in (
                "base model",
                "PAD",
                "structured",
                "companion",
                "reward",
                "moved",
                "prlhf-token",
                "data-system",
            ):
                assert told not in html
    assert len({tuple(order) for order in orders}) > 1
    comparison.voter.value = "ann"
    comparison.cards.children[0].children[1].click()
    assert any('data-system="PAD"' in html for html in bodies(comparison))  # now it is told
    row = votes_in(tmp_path)[0]
    assert (row["blind"], row["seed"], row["round"]) == (True, 3, 4)
    assert [(made["system"], made["for"]) for made in row["order"]] == orders[-1]
    again = panel([offered.systems[0], offered.systems[3]], blind=True)
    again.weight.value = 3.0
    again.generate.click()
    ended(again)
    assert [(card.system.name, card.whom) for card in again.shown] == orders[0]  # seeded
    assert panel(seed=None).seed != panel(seed=None).seed


def test_a_vote_says_what_a_new_user_was_fitted_with(offered):
    made = cards.Card(offered.systems[3], [offered.users[-2]], 1.0).made_by()
    assert made["fitted"] == {"pairs": 2, "steps": 1, "seed": 0}
    assert cards.Card(offered.systems[0], [offered.users[-2]], 1.0).made_by()["fitted"] is None  # it does not know them


def test_blind_mode_hides_names_in_errors(panel, tokenizer):
    broken = Says("secret", "a b c d", tokenizer, error=RuntimeError("secret is out of memory"))
    comparison = panel([broken, Says("other", "x", tokenizer)], blind=True)
    comparison.generate.click()
    ended(comparison)
    assert sorted(card.state for card in comparison.shown) == ["done", "failed"]
    assert not any("secret" in html for html in bodies(comparison))
    assert sum("This answer could not be written." in html for html in bodies(comparison)) == 1
    comparison.reveal.click()
    assert sum("secret is out of memory" in html for html in bodies(comparison)) == 1


@pytest.mark.parametrize("votes", [True, False])
def test_who_wrote_what_can_be_asked_for_and_ends_the_vote(panel, tokenizer, tmp_path, votes):
    options = {} if votes else {"votes": None}
    comparison = panel([Says("a", "x", tokenizer), Says("b", "y", tokenizer)], blind=True, **options)
    assert comparison.reveal.disabled
    comparison.generate.click()
    assert comparison.reveal.disabled
    ended(comparison)
    assert not comparison.reveal.disabled
    comparison.reveal.click()
    assert comparison.reveal.disabled
    assert all("data-system" in html for html in bodies(comparison))
    assert 'data-state="revealed"' in comparison.status.value
    assert all(vote.disabled for box in comparison.cards.children for vote in box.children[1:])
    comparison.voter.value = "ann"
    comparison._vote(0)
    assert "or seen who wrote them" in comparison.status.value
    assert votes_in(tmp_path) == []
    comparison.blind.value = False
    comparison.generate.click()
    ended(comparison)
    assert comparison.reveal.disabled  # nothing is hidden


def test_a_file_that_can_not_be_written_is_said_in_place(panel, tokenizer, tmp_path):
    (tmp_path / "folder").mkdir()
    comparison = panel([Says("a", "x", tokenizer), Says("b", "y", tokenizer)], votes=None)
    assert [len(card.children) for card in comparison.cards.children] == []
    comparison.generate.click()
    ended(comparison)
    assert [len(card.children) for card in comparison.cards.children] == [1, 1]  # no votes, no buttons
    comparison.votes = tmp_path / "folder"
    comparison.voter.value = "ann"
    comparison._vote(0)
    assert "Not counted." in comparison.status.value
    assert not comparison.voted


# Where nobody is at the screen ------------------------------------------------------------------------------------


def test_static_table_and_page(offered):
    who = [*offered.users[:1], people.ANYONE]
    written = cards.write_all(PROMPT, offered.systems, who, 1.5, offered.rewards, 5)
    table = cards.table(PROMPT, written)
    assert list(table.system) == [
        "base model",
        "vanilla DPO",
        "P-DPO",
        "P-DPO",
        "PAD, w = 1.5",
        "PAD, w = 1.5",
        "prompt with user text",
    ]
    assert (table.prompt == "How do I make tea?").all()
    assert table["personal reward, nats"].notna().all()
    assert table["true utility, SD"].isna().tolist() == [False, False, False, True, False, True, False]
    page = cards.static(PROMPT, written)
    assert page.count("<article") == 7
    assert "How do I make tea?" in page
    broken = Says("broken", "a b c", offered.systems[0].tokenizer, error=RuntimeError("lost"))
    with pytest.raises(RuntimeError, match=r"broken has no answer for anyone. RuntimeError: lost"):
        cards.write_all(PROMPT, [broken], who, 1.0, {}, 5)


def test_live_is_where_somebody_may_be_at_the_screen(monkeypatch):
    """What JupyterLab, voila, and papermill or `jupyter execute` set; in a real kernel for the last."""
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    monkeypatch.delenv("PRLHF_KIT_RUNNER", raising=False)

    class Shell:
        def __init__(self, typed):
            self.get_parent = lambda: {"content": {"allow_stdin": typed}}

    monkeypatch.setattr(cards, "get_ipython", lambda: None)
    assert not cards.live()
    monkeypatch.setattr(cards, "get_ipython", lambda: Shell(True))
    assert cards.live()
    monkeypatch.setenv("PRLHF_KIT_RUNNER", "1")
    assert not cards.live()
    monkeypatch.delenv("PRLHF_KIT_RUNNER")
    monkeypatch.setattr(cards, "get_ipython", lambda: Shell(False))
    assert not cards.live()
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert cards.live()
