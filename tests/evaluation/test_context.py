"""Multiple choice by likelihood, contexts against each other, and judges who know who really asked."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from faults import ALWAYS_A, FaultServer

import prlhf_kit as kit
from prlhf_kit.data.context import Contexts, people_of, with_context
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.data.sources import rows_of
from prlhf_kit.evaluation.accuracy import LENGTH, USER_LENGTH, ranked_right
from prlhf_kit.evaluation.communities import about
from prlhf_kit.evaluation.context import (
    BOTH,
    CONTEXT_COMPARISONS,
    FOUR_WAY_COMPARISONS,
    NEITHER,
    NUMBERS,
    PROMPT,
    SOFT,
    by_context,
    clusters,
    context_matrix,
    four_way,
    items,
    rewarded,
)
from prlhf_kit.evaluation.intervals import differences, intervals, with_all
from prlhf_kit.evaluation.judges import judged
from prlhf_kit.evaluation.llm_judge import LLMJudge
from prlhf_kit.evaluation.options import RULES, choose, questions
from prlhf_kit.evaluation.paid_answers import JudgeError
from prlhf_kit.evaluation.reward_models import reward_accuracy
from prlhf_kit.evaluation.statistics import cluster_bootstrap, crossed_interval, holm, permutation_test
from prlhf_kit.evaluation.win_rate import win_rates_by_community
from prlhf_kit.models.hub import load_tokenizer
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.rewards import SequenceReward
from prlhf_kit.models.tokenize import tokenize_completion

REAL = Path(__file__).parents[3] / "shared" / "data" / "prefeval"


# ---- multiple choice

OPTIONS = {
    "a": ["Tea.", "A cup of coffee."],
    "b": ["Go by train.", "Take the car, it is faster.", "Fly."],
    "c": ["Soup.", "Steak with fries.", "Sushi.", "Ham."],
    "d": ["A novel about the sea.", "Poems.", "A comic.", "A play in five acts.", "News."],
}


@pytest.fixture
def asked():
    """Four users' questions of two to five options, as preference pairs."""
    rows = [record(f"{user}-{i}", user, f"What would you advise, {user}?", options[0], other, f"I like {user}.", "g")
            for user, options in OPTIONS.items() for i, other in enumerate(options[1:])]  # fmt: skip
    return Dataset.from_list(rows)


def test_questions_come_back_from_their_pairs(asked):
    found = questions(asked)
    assert [[option[0]["content"] for option in row] for row in found["options"]] == list(OPTIONS.values())
    assert found["right_option"] == [0] * 4
    assert found["user_id"] == list(OPTIONS)
    assert found["question_id"] == [f"{user}-0" for user in OPTIONS]
    assert found["user_text"] == [f"I like {user}." for user in OPTIONS]
    assert found[1]["prompt"] == message("user", "What would you advise, b?")
    shuffled = questions(asked.select([5, 0, 4, 3, 2, 1]))  # whatever the order: options with their own question
    assert {row["user_id"]: {o[0]["content"] for o in row["options"]} for row in shuffled} == {
        user: set(options) for user, options in list(OPTIONS.items())[:3]
    }


def test_one_prompt_asked_under_two_preferences_is_two_questions():
    rows = [record(f"{user}{i}", user, "Same?", right, other) for user, right, others in ("uxy", "vyx")
            for i, other in enumerate(others + "z")]  # fmt: skip
    found = questions(Dataset.from_list(rows))
    assert [[o[0]["content"] for o in row] for row in found["options"]] == [["x", "y", "z"], ["y", "x", "z"]]


def test_questions_keep_the_context_of_their_pairs(asked):
    told = questions(with_context(asked, Contexts("true", people_of(asked))))
    assert told["context_user"] == list("abcd")
    assert told[0]["prompt"][0]["role"] == "system"
    again = with_context(questions(asked), Contexts("true", people_of(asked)))  # the other way round
    assert again["prompt"] == told["prompt"]


def test_a_question_of_one_option_is_refused():
    with pytest.raises(SchemaError, match=r"1 questions have one option only, first the pair 'p'"):
        questions(Dataset.from_list([record("p", "u", "Why?", "same", "same")]))


@torch.no_grad()
def plainly(model, tokenizer, prompt, option):
    """Log-probs (nats) of an option's tokens, by itself and without padding."""
    before, after = tokenize_completion(tokenizer, prompt, option)
    logps = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return [logps[len(before) + i - 1, token].item() for i, token in enumerate(after)]


def test_choose_is_a_plain_loop_over_options(asked, make_tiny, tokenizer):
    model, rows = make_tiny(), questions(asked)
    table = choose(model, tokenizer, rows, batch_size=3)
    assert table.options.tolist() == [2, 3, 4, 5]
    for row, found in zip(rows, table.itertuples(), strict=True):
        logps = [plainly(model, tokenizer, row["prompt"], option) for option in row["options"]]
        means, sums, lengths = ([f(p) for p in logps] for f in (np.mean, np.sum, len))
        assert found.logps == pytest.approx(means, abs=1e-4)
        assert found.picked == np.argmax(means)
        assert found.right == (np.argmax(means) == 0)
        assert found.right_sum == (np.argmax(sums) == 0)
        for rule, best in ((found.right_shortest, min(lengths)), (found.right_longest, max(lengths))):
            assert rule == (lengths[0] == best) / lengths.count(best)


def test_the_place_of_the_right_option_does_not_matter(asked, make_tiny, tokenizer):
    model, rows = make_tiny(), questions(asked)
    turned = rows.map(lambda row: {"options": row["options"][::-1], "right_option": len(row["options"]) - 1})
    one, other = (choose(model, tokenizer, table) for table in (rows, turned))
    rules = ["right", "right_sum", "right_shortest", "right_longest"]
    pd.testing.assert_frame_equal(one[rules], other[rules])
    assert other.picked.tolist() == (one.options - 1 - one.picked).tolist()


def test_ties_share_the_point(make_tiny, tokenizer):
    same = {"question_id": "q", "user_id": "u", "prompt": message("user", "Which?")}
    rows = [same | {"options": [message("assistant", text) for text in texts], "right_option": right}
            for texts, right in ((["x", "x", "x"], 2), (["x", "x"], 0))]  # fmt: skip
    table = choose(make_tiny(), tokenizer, Dataset.from_list(rows))
    assert table.right.tolist() == pytest.approx([1 / 3, 1 / 2])
    assert table.right_longest.tolist() == pytest.approx([1 / 3, 1 / 2])
    assert table.picked.isna().all()
    assert table[[*RULES.values()]].mean().tolist() == pytest.approx([5 / 12] * 4)


def test_choose_hears_the_user_and_the_context(asked, make_tiny, tokenizer):
    model, rows = make_tiny(users=3, offsets=0.8), questions(asked)
    nobody, first, second = (choose(model, tokenizer, rows, users) for users in (None, [1] * 4, [2] * 4))
    mixed = choose(model, tokenizer, rows, [1, 2, 1, 2])
    assert mixed.logps[0] == pytest.approx(first.logps[0], abs=1e-4)
    assert mixed.logps[3] == pytest.approx(second.logps[3], abs=1e-4)
    told = choose(model, tokenizer, with_context(rows, Contexts("true", people_of(asked))))
    for one, other in ((nobody, first), (first, second), (nobody, told)):
        assert abs(one.logps[0][0] - other.logps[0][0]) > 1e-3


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")
def test_prefeval_has_its_questions_again():
    stated = {(row["preference"], row["question"]): row["classification_task_options"]
              for row in rows_of([REAL / "mcq_options.json"])}  # fmt: skip
    total = 0
    for pairs in kit.data.load("prefeval", REAL).values():
        rows = questions(pairs)
        total += len(rows)
        for row in rows:
            source = stated[row["user_text"], row["prompt"][0]["content"]]
            assert [option[0]["content"] for option in row["options"]] == [text.strip() for text in source]
            assert len(row["options"]) == 4
    assert total == 2_541 / 3


# ---- contexts


def test_rewarded_by_hand():
    anchor = pd.DataFrame({"pair_id": ["p", "q"], "chosen_logp": [-10.0, -5.0], "rejected_logp": [-20.0, -5.0]})
    scores = pd.DataFrame({"pair_id": ["q", "p", "p", "p"], "chosen_logp": [-4.0, -9.0, -12.0, -11.0],
                           "rejected_logp": [-4.5, -18.0, -21.0, -21.0]})  # fmt: skip
    # gains of chosen and rejected: 1 and .5; 1 and 2; -2 and -1; -1 and -1
    assert rewarded(scores, anchor).tolist() == [1, 0, 0, 0.5]
    assert rewarded(scores[:2], anchor).tolist() == [1, 0]  # by pair, not by place
    nearly = scores.assign(rejected_logp=scores.rejected_logp + 0.0005)  # rounding apart
    assert rewarded(nearly, anchor).tolist() == [1, 0, 0, 0.5]
    assert rewarded(nearly.assign(chosen_logp=nearly.chosen_logp + 0.002), anchor).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="1 of 4 reward differences are NaN"):
        rewarded(scores, anchor[1:].assign(pair_id="p"))
    with pytest.raises(ValueError, match="not unique"):
        rewarded(scores, pd.concat([anchor, anchor]))


@pytest.fixture
def people(pairs):
    return people_of(pairs)


def by_rule(rows):
    """Right where the prompt speaks of who asks, half right where it speaks of nobody."""
    who = [re.search(r"community: (\w+)", row[0]["content"]) for row in rows["prompt"]]
    return [0.5 if w is None else float(w[1] == user) for w, user in zip(who, rows["user_id"], strict=True)]


def test_context_matrix_asks_every_pair_in_every_context_once(pairs, people):
    calls = []

    def rank(rows):
        calls.append(rows)
        return by_rule(rows)

    table = context_matrix(rank, pairs, Contexts("true", people))
    assert len(calls) == 1
    assert len(calls[0]) == 12 * 4
    asked = {(row["pair_id"], row["prompt"][0]["content"] if len(row["prompt"]) > 1 else "") for row in calls[0]}
    assert len(asked) == 48
    table = intervals(table, by=["community", "context"], cluster="prompt")
    cells = table.pivot(index="community", columns="context", values="value")
    assert cells[["none", "a", "b", "c"]].to_numpy().tolist() == [
        [0.5, 1, 0, 0], [0.5, 0, 1, 0], [0.5, 0, 0, 1]
    ]  # fmt: skip
    assert (table.n == 4).all()


def test_the_diagonal_is_the_right_context(pairs, people, make_tiny, tokenizer):
    model = make_tiny()
    anchor = score_pairs(model, tokenizer, pairs)

    def rank(rows):
        return rewarded(score_pairs(model, tokenizer, rows), anchor)

    contexts = Contexts("shuffled", people)
    matrix = context_matrix(rank, pairs, contexts).groupby(["community", "context"]).value.mean()
    single = by_context(rank, pairs, contexts, method="m")
    table = single.groupby(["context", "user_id"]).value.mean()
    for user in "abc":
        assert matrix[user, user] == table["true", user]
        assert matrix[user, "none"] == table["none", user] == 0.5  # the anchor against itself
        whose = contexts.whose(user, pairs[0]["prompt"])
        assert matrix[user, whose] == table["shuffled", user]
    # and the same as without any of this, pair by pair
    told = with_context(pairs, Contexts("random", people))
    assert single[single.context == "random"].value.tolist() == rank(told).tolist()
    assert set(rank(told)) <= {0, 0.5, 1}


def test_by_context_and_its_differences(pairs, people):
    table = by_context(by_rule, pairs, Contexts("true", people), dataset="d")
    assert {"dataset", "context", "user_id", "prompt", "item", "value", "chance"} <= set(table)
    found = intervals(table, by=["context"], **NUMBERS)
    assert dict(zip(found.context, found.value, strict=True)) == {
        "true": 1, "none": 0.5, "random": 0, "shuffled": 0
    }  # fmt: skip
    assert (found.chance == 0.5).all()
    gaps = differences(table, CONTEXT_COMPARISONS, ["dataset"], clusters(named=True), column="context")
    assert gaps[["one", "other", "difference", "users"]].to_numpy().tolist() == [
        ["true", "none", 0.5, 3], ["true", "random", 1, 3], ["true", "shuffled", 1, 3]
    ]  # fmt: skip
    assert gaps.p.tolist() == [permutation_test([0.5] * 12, range(12))] * 3
    assert gaps.p_holm.tolist() == holm(gaps.p.tolist())
    # of users that are a sample, three can show nothing
    assert (differences(table, CONTEXT_COMPARISONS, ["dataset"], clusters(False), column="context").p >= 0.25).all()


def test_by_context_of_questions(asked, make_tiny, tokenizer):
    model, rows = make_tiny(), questions(asked)
    contexts = Contexts("user_text", people_of(asked))
    table = by_context(lambda told: choose(model, tokenizer, told).right, rows, contexts, ("user_text", "none"))
    told = choose(model, tokenizer, with_context(rows, contexts))
    assert table[table.context == "user_text"].value.tolist() == told.right.tolist()
    assert table.chance.tolist() == [1 / 2, 1 / 3, 1 / 4, 1 / 5] * 2
    assert table.prompt[:4].tolist() == [f"What would you advise, {user}?" for user in "abcd"]


def test_rows_with_a_context_are_not_scored_as_if_without(pairs, people):
    told = with_context(pairs, Contexts("true", people))
    with pytest.raises(AssertionError, match="have a context already"):
        items(told, [1.0] * 12)
    with pytest.raises(SchemaError, match="context=False"):
        by_context(by_rule, pairs, Contexts("true", people), kinds=(False,))


# ---- prompt only, soft tokens, both, neither


def results(dataset, rates, users, prompts, seed=0):
    """Every user asked every prompt; each method is right at its rate."""
    rng = np.random.default_rng(seed)
    asked = [(f"u{u}", f"{dataset} {p}", f"{u}-{p}") for u in range(users) for p in range(prompts)]
    tables = [pd.DataFrame(asked, columns=["user_id", "prompt", "item"]).assign(
        dataset=dataset, method=method, value=(rng.random(len(asked)) < rate).astype(float), chance=0.5
    ) for method, rate in rates.items()]  # fmt: skip
    return pd.concat(tables)


def test_four_way():
    rates = {NEITHER: 0.5, PROMPT: 0.9, SOFT: 0.7, BOTH: 0.9, "length rule": 0.4}
    table = pd.concat([results("dsp", rates, 4, 60), results("other", {NEITHER: 0.5, SOFT: 0.8}, 30, 4)])
    found, gaps = four_way(table, named=("dsp",))
    dsp, other = (table[table.dataset == name] for name in ("dsp", "other"))
    assert found[["dataset", "method"]].to_numpy().tolist() == [
        *[["dsp", method] for method in rates], ["other", NEITHER], ["other", SOFT],
    ]  # fmt: skip
    assert found.n.tolist() == [240] * 5 + [120] * 2
    assert found.users.tolist() == [4] * 5 + [30] * 2
    first = dsp[dsp.method == NEITHER]
    i = cluster_bootstrap(first.value, first.prompt)  # the communities are named
    assert found.loc[0, ["value", "low", "high"]].tolist() == [i.estimate, i.low, i.high]
    last = other[other.method == SOFT]
    i = crossed_interval(last.value, last.user_id, last.prompt)
    assert found.loc[6, ["value", "low", "high"]].tolist() == [i.estimate, i.low, i.high]

    assert list(zip(gaps.one[:6], gaps.other[:6], strict=True)) == list(FOUR_WAY_COMPARISONS)
    assert gaps.iloc[6:][["dataset", "one", "other"]].to_numpy().tolist() == [["other", SOFT, NEITHER]]
    wide = dsp.pivot(index="item", columns="method", values="value")
    for row in gaps[:6].itertuples():
        assert row.difference == pytest.approx((wide[row.one] - wide[row.other]).mean())
    assert gaps.p_holm[:6].tolist() == holm(gaps.p[:6].tolist())
    assert gaps.p_holm[6] == gaps.p[6]  # a family of its own
    assert gaps.p_holm[0] < 0.01 < gaps.p_holm[3]
    # four users as a sample of users can't show even the greatest difference
    assert (four_way(dsp)[1].p >= 0.125).all()


# ---- judges

COMMUNITIES = {"askculinary": None, "AskHistorians": None, "legaladvice": None, "changemyview": None}


def test_the_judge_knows_who_really_asked(tmp_path, monkeypatch):
    """Answers under the right and under a random community's context: every request names the true one alone."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    jobs = [(user, f"Q{i}: what about {user[::-1]}?") for i in range(3) for user in COMMUNITIES]
    tables = []
    for kind in ("true", "random"):
        contexts = Contexts(kind, COMMUNITIES, seed=3)
        put = [contexts.whose(user, message("user", prompt)) for user, prompt in jobs]
        tables.append(pd.DataFrame({"system": kind, "user_id": [u for u, _ in jobs], "prompt": [p for _, p in jobs],
                                    "answer": f"an answer, {kind}", "context": kind, "context_user": put}))  # fmt: skip
    right, wrong = tables
    assert (right.context_user == right.user_id).all()
    assert (wrong.context_user != wrong.user_id).all()
    with FaultServer(answer=ALWAYS_A) as server:
        judge = LLMJudge("m", "community", tmp_path / "c.sqlite", about("true", COMMUNITIES), base_url=server.url)
        found = judged(judge, pd.concat(tables), [("true", "random")], "llm")
        bodies = list(server.seen)
    assert len(bodies) == 2 * len(jobs)
    drawn = dict(zip(wrong.prompt, wrong.context_user, strict=True))
    for body in bodies:
        text = json.dumps(body)
        community = re.search(r"<community>\n(.*)\n</community>", body["messages"][-1]["content"])[1]
        prompt = next(p for p in drawn if p in text)
        assert prompt.endswith(f"{community[::-1]}?")
        assert drawn[prompt] not in text
    assert set(found.user_id) == set(COMMUNITIES)


def test_what_a_judge_is_told():
    people = {"a": "I cook.", "b": None}
    assert about("true", people)("b", "Why?") == {"community": "b"}
    told = about("user_text", people, "profile")("a", "Why?")
    assert told == {"profile": "I cook.", "history": "none known"}
    earlier = [record("p", "a", "Tea?", "Green.", "Black."), record("q", "b", "Rain?", "Yes.", "No.")]
    history = about("user_text", people, "profile", earlier)("a", "Why?")["history"]
    assert history == "Asked: Tea?\nChose: Green.\nRather than: Black."
    with pytest.raises(JudgeError, match="nothing is known of the user 'b'"):
        about("user_text", people, "profile")("b", "Why?")
    for user in ("z", None):
        with pytest.raises(JudgeError, match=f"nothing is known of the user {user!r}"):
            about("true", people)(user, "Why?")


def test_a_judge_told_of_nobody(tmp_path):
    template = tmp_path / "plain.txt"
    template.write_text("{prompt} {answer_a} {answer_b}")
    assert about("none", {}, str(template)) is None
    LLMJudge("m", template, tmp_path / "c.sqlite", about("none", {}, str(template)), base_url="http://localhost:1/v1")
    with pytest.raises(JudgeError, match=r"further fields \['community'\]; context='none' fills none"):
        about("none", {})


@pytest.mark.parametrize("context", ["random", "shuffled"])
def test_a_judge_is_never_told_of_somebody_else(context):
    with pytest.raises(JudgeError, match="never for judges"):
        about(context, COMMUNITIES)


@pytest.mark.parametrize("context", [False, "False", None, "right"])
def test_a_judge_is_told_by_name(context):
    with pytest.raises(SchemaError, match="expected one of 'none', 'true'"):
        about(context, COMMUNITIES)


@pytest.mark.parametrize(
    ("context", "template"), [("true", "profile"), ("user_text", "community"), ("true", "criterion")]
)
def test_a_template_that_does_not_fit_is_refused(context, template):
    with pytest.raises(JudgeError, match="Choose a template that fits"):
        about(context, COMMUNITIES, template)


def judgements(rows):
    """(user, prompt, preference) of contextual against plain."""
    table = pd.DataFrame(rows, columns=["user_id", "prompt", "preference"])
    return table.assign(judge="j", system_a="contextual", system_b="plain")


def test_win_rates_by_community_by_hand():
    verdicts = {"a": ["a"] * 10, "b": ["a", "b", "tie", "tie", None], "c": ["b"] * 6}
    rows = [(user, f"{user if user == 'c' else ''}{i}", said) for user, all_ in verdicts.items()
            for i, said in enumerate(all_)]  # fmt: skip
    table = judgements(rows)
    swapped = table.assign(system_a="right", system_b="random", preference=table.preference.map({"a": "b", "b": "a"}))
    found = win_rates_by_community(pd.concat([table, swapped]))
    part = found[found.system_a == "contextual"].set_index("community")
    assert part.win_rate.to_dict() == {"a": 1, "b": 0.5, "c": 0, "all": 12 / 20}
    assert part.n.to_dict() == {"a": 10, "b": 4, "c": 6, "all": 20}
    assert part.unread.to_dict() == {"a": 0, "b": 1, "c": 0, "all": 1}
    assert part.prompts.to_dict() == {"a": 10, "b": 4, "c": 6, "all": 16}
    assert (part.win + part.tie + part.loss == 1).all()
    # every prompt's sign swapped: exact
    assert part.p[["a", "b", "c"]].tolist() == pytest.approx([2 / 2**10, 1, 2 / 2**6])
    assert part.p_holm[["a", "b", "c"]].tolist() == pytest.approx(holm([2 / 2**10, 1, 2 / 2**6]))  # of one comparison
    assert part.p_holm["all"] == part.p["all"]
    i = cluster_bootstrap([1, 0, 0.5, 0.5], range(4))
    assert part.loc["b", ["low", "high"]].tolist() == [i.low, i.high]
    read = table.dropna()
    i = cluster_bootstrap(read.preference.map({"a": 1, "tie": 0.5, "b": 0}), read.prompt)
    assert part.loc["all", ["low", "high"]].tolist() == [i.low, i.high]
    assert found[found.system_a == "right"].set_index("community").win_rate["a"] == 0


class Counts:
    """A reward model that likes the user's own letter."""

    def score(self, prompts, responses, user_ids=None):
        return torch.tensor([text[0]["content"].count(user) for text, user in zip(responses, user_ids, strict=True)])


def by_community(reward, pairs, train):
    table = with_all(reward_accuracy(reward, pairs, train))
    return intervals(table, by=["method", "community"], cluster="prompt").set_index(["method", "community"])


def test_reward_accuracy_by_community_by_hand():
    pairs = [record("1", "a", "P?", "aa", "a b"), record("2", "a", "Q?", "b", "a a a"),
             record("3", "b", "P?", "b a", "ab"), record("4", "b", "R?", "b b", "x")]  # fmt: skip
    # a chose shorter texts twice, b longer ones three times: over all, longer
    train = [record(f"t{i}", user, f"{i}?", chosen, rejected) for i, (user, chosen, rejected) in enumerate(
        [("a", "x", "x x"), ("a", "x", "x x x"), ("b", "x x", "x"), ("b", "x x", "x"), ("b", "x x", "x")]
    )]  # fmt: skip
    found = by_community(Counts(), Dataset.from_list(pairs), Dataset.from_list(train))
    assert found.value.to_dict() == {
        ("reward model", "a"): 0.5, ("reward model", "b"): 0.75, ("reward model", "all"): 0.625,
        (LENGTH, "a"): 0, (LENGTH, "b"): 1, (LENGTH, "all"): 0.5,
        (USER_LENGTH, "a"): 1, (USER_LENGTH, "b"): 1, (USER_LENGTH, "all"): 1,
    }  # fmt: skip
    assert found.n.groupby("community").agg(set).to_dict() == {"a": {2}, "b": {2}, "all": {4}}
    i = cluster_bootstrap([1, 0, 0.5, 1], ["P", "Q", "P", "R"])
    assert found.loc[("reward model", "all"), ["low", "high"]].tolist() == [i.low, i.high]


def test_reward_models_are_taken_as_they_are(pairs, base):
    """A real reward model: the pooled row is its accuracy over all pairs."""
    model = kit.new_reward_model(base)
    reward = SequenceReward(model.eval(), load_tokenizer(base))
    found = by_community(reward, pairs, pairs).value
    prompts = list(pairs["prompt"])
    chosen, rejected = (reward.score(prompts, list(pairs[name])).numpy() for name in ("chosen", "rejected"))
    assert found["reward model", "all"] == ranked_right(chosen, rejected).mean()


def test_contexts_are_drawn_as_in_training(pairs, people):
    """`by_context` with "random" puts in whom `with_context` puts in for SFT and DPO."""
    seen = []
    contexts = Contexts("none", people, seed=5)
    by_context(lambda rows: seen.extend(rows["prompt"]) or [0] * len(rows), pairs, contexts, ["random"])
    assert seen == list(with_context(pairs, replace(contexts, context="random"))["prompt"])
