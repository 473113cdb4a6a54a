"""Judges, what they are asked, and what follows from their verdicts, against numbers computed by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from prlhf_kit.data import simulated
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.evaluation import win_rate
from prlhf_kit.evaluation.intervals import intervals
from prlhf_kit.evaluation.judges import (
    UNREADABLE,
    Oracle,
    RewardJudge,
    Verdict,
    agreed,
    comparable,
    judge_agreement,
    judged,
    longer,
    verdicts,
)


def answers(systems="xyz", users="abcd", prompts="pqr"):
    """Later systems give longer answers."""
    rows = [(s, u, p, f"{s} {u} {p} " + "w " * i) for i, s in enumerate(systems) for u in users for p in prompts]
    return pd.DataFrame(rows, columns=list(ANSWERS))


def says(*letters):
    """A judge that says the same things again and again."""
    p = {"a": 1.0, "b": 0.0, "tie": 0.5}

    def judge(prompt, answer_a, answer_b, user):
        said = [letters[i % len(letters)] for i in range(len(prompt))]
        return [UNREADABLE if letter is None else Verdict(letter, p[letter]) for letter in said]

    return judge


def table(rows, judge="j"):
    """Judgements of x against y: (user, prompt, first, second)."""
    found = pd.DataFrame(rows, columns=["user_id", "prompt", "first", "second"])
    found["preference"] = [agreed(first, second) for _, _, first, second in rows]
    found["probability"] = found.preference.map(win_rate.VALUE)
    return found.assign(judge=judge, system_a="x", system_b="y", answer_a="one two", answer_b="one")


def same(letters, judge="j", users="abcd"):
    """Consistent verdicts, one a prompt, in turn for these users."""
    return table([(users[i % len(users)], f"p{i}", v, v) for i, v in enumerate(letters)], judge)


def test_a_judge_that_always_says_a_gives_one_half_and_a_position_bias_of_one():
    found = judged(says("a"), answers(), [("x", "y"), ("x", "z")], "first")
    assert (found.preference == "tie").all()
    assert (found.probability == 0.5).all()
    rates = win_rate.win_rates(found)
    assert rates.win_rate.tolist() == rates.low.tolist() == rates.high.tolist() == [0.5, 0.5]
    assert (rates[["win", "tie", "loss"]] == [0, 1, 0]).all(axis=None)
    assert rates.p.tolist() == [1, 1]
    assert win_rate.user_win_rates(found).user_win_rate.tolist() == [0.5, 0.5]
    bias = win_rate.position_bias(found)
    assert bias[["value", "low", "high", "n"]].to_numpy().tolist() == [[1, 1, 1, 24]] * 2
    assert win_rate.position_bias(judged(says("b"), answers(), [("x", "y")], "last")).value[0] == -1
    assert win_rate.length_controlled(found).lc_win_rate.tolist() == [0.5, 0.5]
    assert win_rate.bradley_terry(found).rating.tolist() == pytest.approx([1000, 1000, 1000])


def test_both_orders_are_shown_with_the_right_answers_prompts_and_users():
    asked = []

    def judge(prompt, answer_a, answer_b, user):
        asked.extend(zip(prompt, answer_a, answer_b, user, strict=True))
        return longer(prompt, answer_a, answer_b, user)

    messages = [{"role": "user", "content": "Q"}]
    found = judged(judge, answers("xy", "ab", "pq"), [("x", "y")], "words", {"p": messages})
    assert len(asked) == 2 * len(found) == 8
    assert (messages, "x a p ", "y a p w ", "a") in asked
    assert (messages, "y a p w ", "x a p ", "a") in asked
    assert ("q", "y b q w ", "x b q ", "b") in asked
    assert found["first"].tolist() == found["second"].tolist() == found.preference.tolist() == ["b"] * 4
    assert found.probability.tolist() == [0.0] * 4
    assert list(found.columns) == ["judge", "user_id", "prompt", "system_a", "system_b", "answer_a", "answer_b",
                                   "first", "second", "preference", "probability"]  # fmt: skip


def test_unreadable_verdicts_are_counted_and_win_nothing():
    found = judged(says(None, "a", "a", "a"), answers("xy", "ab", "pq"), [("x", "y")], "mumbles")
    # the first of four pairs is unreadable in both orders, the others contradict themselves
    assert found.preference.isna().tolist() == [True, False, False, False]
    assert (found.preference[1:] == "tie").all()
    assert np.isnan(found.probability[0])
    rates = win_rate.win_rates(found).iloc[0]
    assert (rates.win_rate, rates.n, rates.unread) == (0.5, 3, 1)
    silent = judged(says(None), answers("xy"), [("x", "y")], "silent")
    rates = win_rate.win_rates(silent).iloc[0]
    assert (rates.n, rates.unread) == (0, 12)
    assert np.isnan(rates.win_rate)
    assert np.isnan(rates.p_holm)
    assert win_rate.position_bias(silent).unread[0] == 12
    for measure in (win_rate.user_win_rates, win_rate.bradley_terry, win_rate.length_controlled):
        assert measure(silent).empty


def test_a_broken_judge_is_not_believed():
    assert verdicts([float("nan"), 0.5]) == [UNREADABLE, Verdict("tie", 0.5)]
    with pytest.raises(ValueError, match="'odd' prefers 'A', expected one of"):
        judged(lambda prompt, *_: [Verdict("A", 1.0)] * len(prompt), answers(), [("x", "y")], "odd")


def test_without_users_each_prompt_is_asked_by_somebody_else():
    nobody = answers(users=[None], prompts="pqrstuv")
    found = judged(longer, nobody, comparable(nobody), "words")
    assert found.user_id[0] == "somebody: p"
    rates = win_rate.win_rates(found)
    assert rates.win_rate.tolist() == [0, 0, 0]
    assert (rates.users == 7).all()
    assert win_rate.user_win_rates(found).users_lost.tolist() == [7, 7, 7]
    assert win_rate.bradley_terry(found).system.tolist() == ["z", "y", "x"]
    assert len(win_rate.length_controlled(found, resamples=3)) == 3
    assert win_rate.position_bias(found).value[0] == 0


def test_unknown_users_are_none_for_the_judge_whatever_pandas_makes_of_them(tmp_path):
    asked = []

    def judge(prompt, answer_a, answer_b, user):
        asked.extend(user)
        return longer(prompt, answer_a, answer_b, user)

    answers(users=["a", None]).to_parquet(tmp_path / "answers.parquet")
    judged(judge, pd.read_parquet(tmp_path / "answers.parquet"), [("x", "y")], "words")
    assert set(asked) == {"a", None}


def test_systems_may_be_numbers_but_answers_must_be_text():
    steps = answers().assign(system=lambda table: table.system.map({"x": 100, "y": 200, "z": 300}))
    assert win_rate.win_rates(judged(longer, steps, comparable(steps), "words")).loss.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"no answers of 7; there are 100, 200, 300"):
        judged(longer, steps, [(7, 100)], "words")
    with pytest.raises(ValueError, match="3 prompts or answers are no text, for instance nan"):
        judged(longer, answers("xy", "a").assign(answer=["w", None, None, None, "w", "w"]), [("x", "y")], "words")


def test_what_can_be_compared():
    some = pd.concat([answers("x", prompts="pq"), answers("y", prompts="q"), answers("z", prompts="r")])
    assert comparable(some) == [("x", "y")]


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="no answers of 'w'; there are x, y, z"):
        judged(longer, answers(), [("x", "w")], "words")
    with pytest.raises(ValueError, match="'x' has two answers for user 'a'"):
        judged(longer, pd.concat([answers(), answers()]), [("x", "y")], "words")
    with pytest.raises(ValueError, match="answers lack user_id"):
        judged(longer, answers().drop(columns="user_id"), [("x", "y")], "words")
    apart = pd.concat([answers("x", prompts="p"), answers("y", prompts="q")])
    with pytest.raises(ValueError, match="no user and prompt in common"):
        judged(longer, apart, [("x", "y")], "words")
    with pytest.raises(ValueError, match="gave 1 verdicts on 24 pairs"):
        judged(lambda *_: [Verdict("a", 1.0)], answers(), [("x", "y")], "lazy")


def test_the_oracle_is_the_users_own_utility():
    people = simulated.population()
    user = people.user_ids[0]
    texts = simulated.responses().response.head(4).tolist()
    found = Oracle(people)(["p"] * 3, [texts[0]] * 3, [texts[1], texts[0], texts[2]], [user] * 3)
    u = people.utility([user] * 3, texts[:3])
    assert found[0].preference == ("a" if u[0] > u[1] else "b")
    assert found[1] == Verdict("tie", 0.5)
    assert found[2].probability == pytest.approx(1 / (1 + np.exp(-(u[0] - u[2]) / people.temperature)))


class Words:
    """A reward model: so many words, and for ann the negative of it."""

    def score(self, prompts, responses, user_ids=None):
        assert all(r.strip() for r in responses), "an empty response has no reward"
        signs = [-1.0 if u == "ann" else 1.0 for u in user_ids]
        return torch.tensor([s * len(r.split()) for s, r in zip(signs, responses, strict=True)])


def test_a_reward_model_as_judge():
    a, b = ["one two", "one two", "", "", "one"], ["one", "one", "one", " ", "two"]
    found = RewardJudge(Words())(["p"] * 5, a, b, ["bob", "ann", "ann", "bob", None])
    assert [v.preference for v in found] == ["a", "b", "b", "tie", "tie"]
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-1)))
    assert RewardJudge(Words(), tie=0.3)(["p"], ["one two"], ["one"], ["bob"]) == [Verdict("tie", 0.5)]


def test_win_rates_by_hand():
    # user a: win, win, tie; user b: loss; user c: orders that disagree; user d: unreadable once
    rows = [("a", "p", "a", "a"), ("a", "q", "a", "a"), ("a", "r", "tie", "tie"), ("b", "p", "b", "b"),
            ("c", "p", "a", "b"), ("d", "p", "a", None)]  # fmt: skip
    found = win_rate.win_rates(table(rows)).iloc[0]
    assert (found.win_rate, found.n, found.unread, found.users) == (3 / 5, 5, 1, 3)
    assert (found.win, found.tie, found.loss) == (2 / 5, 2 / 5, 1 / 5)
    # signs of (1.0, -0.5, 0.0), the users' sums less one half each: |sum| >= 0.5 in all eight
    assert found.p == 1
    assert (found.prompts, found.p_holm) == (3, 1)
    own = intervals(win_rate.with_wins(table(rows)), "win_rate", ["user_id"], "prompt").dropna(subset="win_rate")
    own = own.set_index("user_id").win_rate
    assert own.to_dict() == {"a": 2.5 / 3, "b": 0, "c": 0.5}
    users = win_rate.user_win_rates(table(rows)).iloc[0]
    assert (users.users_won, users.users_tied, users.users_lost, users.n) == (1, 1, 1, 3)
    assert users.user_win_rate == 0.5
    bias = win_rate.position_bias(table(rows))
    assert bias.measure.tolist() == [win_rate.FIRST, win_rate.DISAGREE]
    assert bias[["value", "n", "unread"]].to_numpy().tolist() == [[1 / 5, 5, 1]] * 2


def test_holm_runs_over_all_comparisons_of_a_judge():
    # five users each: 5 of 5 wins has p = 2/32; corrected for two comparisons it doubles
    both = pd.concat([same("aaaaa", "j", "abcde"), same("ababa", "j", "abcde").assign(system_b="z")])
    rates = win_rate.win_rates(pd.concat([both, same("aaaaa", "k", "abcde")]))
    assert rates.p.tolist() == [2 / 32, 1, 2 / 32]
    assert rates.p_holm.tolist() == [4 / 32, 1, 2 / 32]


def test_bradley_terry_by_hand():
    votes = same("aaab" * 20)
    found = win_rate.bradley_terry(votes, resamples=20).set_index("system")
    assert found.rating.x - found.rating.y == pytest.approx(400 * np.log10(3), abs=0.5)
    assert found.rating.mean() == pytest.approx(1000)
    assert (found.low < found.rating).all()
    # x beats y 3 to 1 and y beats z 3 to 1: x beats z 9 to 1, though they never met
    other = votes.assign(system_a="y", system_b="z")
    found = win_rate.bradley_terry(pd.concat([votes, other]), resamples=20).set_index("system")
    assert found.rating.x - found.rating.z == pytest.approx(400 * np.log10(9), abs=1)
    assert list(found.index) == ["x", "y", "z"]
    assert found.n.to_dict() == {"x": 80, "y": 160, "z": 80}
    # never lost: the ridge's number. s and -s maximise 4 log sigmoid(2 s) - 2 s^2 / (2 * 100)
    s = minimize_scalar(lambda s: 4 * np.log1p(np.exp(-2 * s)) + s**2 / 100, bounds=(0, 20), method="bounded").x
    found = win_rate.bradley_terry(same("aaaa")).set_index("system").rating
    assert found.x - found.y == pytest.approx(400 / np.log(10) * 2 * s, rel=1e-3)


def test_length_control_takes_length_out_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    n = 600
    gap = rng.normal(15, 30, n).round()  # x is longer on average, and the judge likes length only
    p = 1 / (1 + np.exp(-2 * np.tanh(gap / gap.std())))
    long = same(np.where(rng.random(n) < p, "a", "b"), users="abcdefghij")
    long["answer_a"] = ["w" * int(100 + g) for g in gap.clip(-90)]
    long["answer_b"] = "w" * 100
    found = win_rate.length_controlled(long, resamples=20).iloc[0]
    assert found.win_rate > 0.6
    assert found.lc_win_rate == pytest.approx(0.5, abs=0.06)
    assert found.low < 0.5 < found.high
    assert found.length_effect == pytest.approx(2, abs=0.4)
    equal = same("aaab").assign(answer_a="same", answer_b="same")
    found = win_rate.length_controlled(equal, resamples=5).iloc[0]
    assert found.lc_win_rate == pytest.approx(found.win_rate) == pytest.approx(0.75)
    # whoever is a: the two sides add up to one
    mirrored = long.rename(columns={"answer_a": "answer_b", "answer_b": "answer_a"})
    mirrored = mirrored.assign(preference=long.preference.map({"a": "b", "b": "a"}))
    other = win_rate.length_controlled(mirrored, resamples=2).iloc[0]
    assert other.lc_win_rate == pytest.approx(
        1 - win_rate.length_controlled(long, resamples=2).lc_win_rate[0], abs=1e-4
    )


def test_difficulty_is_read_from_other_comparisons():
    """How much better others do against b than against a, whoever of them is called a."""
    rows = [same("aabb"), same("aabb").assign(system_b="z"), same("bbbb").assign(system_a="z", system_b="y")]
    everything = pd.concat(rows, ignore_index=True)
    everything = win_rate.with_wins(everything)
    prompts = everything.prompt[:4]
    # z loses to x on p0 and p1 and beats it on p2 and p3 (log-odds -log 3 and log 3); against y it always loses
    wanted = np.array([1, 1, -1, -1]) * np.log(3)
    assert win_rate._difficulty(prompts, everything, "x", "y") == pytest.approx(wanted)
    assert win_rate._difficulty(prompts, everything, "y", "x") == pytest.approx(-wanted)
    turned = everything.copy()
    z = turned.system_b == "z"
    turned.loc[z, ["system_a", "system_b"]] = turned.loc[z, ["system_b", "system_a"]].to_numpy()
    turned.loc[z, "win_rate"] = 1 - turned.win_rate[z]
    assert win_rate._difficulty(prompts, turned, "x", "y") == pytest.approx(wanted)
    assert win_rate._difficulty(prompts, everything[:4], "x", "y").tolist() == [0] * 4  # nobody else


def test_agreement_by_hand():
    one, other = same("aabb", "one"), same("abbb", "other")
    found = judge_agreement(pd.concat([one, other])).set_index("measure")
    # kappa: 3/4 equal, by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2
    assert found.value["Cohen's kappa"] == pytest.approx(0.5)
    # alpha: 3 a and 5 b among 8; 1 - (2/8) / (2 * 3 * 5 / (8 * 7))
    assert found.value["Krippendorff's alpha"] == pytest.approx(1 - 0.25 / (30 / 56))
    assert found.same.tolist() == [0.75, 0.75]
    assert found.n.tolist() == [4, 4]
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()
    third = same("aab", "third")  # one pair less: alpha takes what is there
    found = judge_agreement(pd.concat([one, other, third]))
    assert found.n.tolist() == [4, 3, 3, 4]
    assert found.value[found.judges == "one / third"].item() == 1
    everyone = pd.concat([same("aa", "one"), same("aa", "other")])
    assert judge_agreement(everyone).value.isna().all()  # nothing to agree on
    assert judge_agreement(one).empty


def test_a_round_robin_is_judged_whole():
    systems = list(combinations("xyz", 2))
    found = judged(longer, answers(), systems, "words")
    assert len(found) == 3 * 12
    assert win_rate.bradley_terry(found).system.tolist() == ["z", "y", "x"]
    assert win_rate.win_rates(found).loss.tolist() == [1, 1, 1]
