"""Judges, what they are asked, and what follows from their verdicts, against numbers computed by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from prlhf_kit.data import simulated
from prlhf_kit.evaluation import win_rate
from prlhf_kit.evaluation.agreement import judge_agreement
from prlhf_kit.evaluation.judges import ANSWERS, UNREADABLE, Oracle, RewardJudge, Verdict, agreed, judged, longer


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
    bias = win_rate.position_bias(found).iloc[0]
    assert (bias.position_bias, bias.low, bias.high, bias.disagree, bias.n) == (1, 1, 1, 1, 24)
    assert win_rate.position_bias(judged(says("b"), answers(), [("x", "y")], "last")).position_bias[0] == -1
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
    for measure in (win_rate.by_user, win_rate.user_win_rates, win_rate.bradley_terry, win_rate.length_controlled):
        assert measure(silent).empty


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
    own = win_rate.by_user(table(rows)).set_index("user_id").win_rate
    assert own.to_dict() == {"a": 2.5 / 3, "b": 0, "c": 0.5}
    users = win_rate.user_win_rates(table(rows)).iloc[0]
    assert (users.users_won, users.users_tied, users.users_lost, users.n) == (1, 1, 1, 3)
    assert users.user_win_rate == 0.5
    bias = win_rate.position_bias(table(rows)).iloc[0]
    assert (bias.position_bias, bias.disagree, bias.n, bias.unread) == (1 / 5, 1 / 5, 5, 1)


def test_holm_runs_over_all_comparisons_of_the_table():
    # five users each: 5 of 5 wins has p = 2/32; corrected for two comparisons it doubles
    both = pd.concat([same("aaaaa", "j", "abcde"), same("ababa", "k", "abcde")])
    rates = win_rate.win_rates(both)
    assert rates.p.tolist() == [2 / 32, 1]
    assert rates.p_holm.tolist() == [4 / 32, 1]


def test_bradley_terry_by_hand():
    found = win_rate.bradley_terry(same("aaab")).set_index("system")
    assert found.rating.x - found.rating.y == pytest.approx(400 * np.log10(3), abs=2)
    assert found.rating.mean() == pytest.approx(1000)
    # x beats y 3 to 1 and y beats z 3 to 1: x beats z 9 to 1, though they never met
    other = same("aaab").assign(system_a="y", system_b="z")
    found = win_rate.bradley_terry(pd.concat([same("aaab"), other])).set_index("system")
    assert found.rating.x - found.rating.z == pytest.approx(400 * np.log10(9), abs=4)
    assert list(found.index) == ["x", "y", "z"]
    assert found.n.to_dict() == {"x": 4, "y": 8, "z": 4}
    assert np.isfinite(win_rate.bradley_terry(same("aaaa")).rating).all()  # never lost: not infinite


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
    """The term takes up which prompts x wins, and leaves the mean over the same prompts as it is."""
    easy = pd.concat([same("aabb").assign(system_b="y"), same("aabb").assign(system_b="z")], ignore_index=True)
    found = win_rate.length_controlled(easy, resamples=2)
    assert found.lc_win_rate.tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    easy = easy.assign(won=win_rate.won(easy))
    part, others = easy[easy.system_b == "y"], easy[easy.system_b == "z"]
    # one verdict a prompt: (1.5 / 2) or (0.5 / 2), so log 3 or -log 3, whose mean is 0
    assert win_rate._difficulty(part, others).tolist() == pytest.approx([np.log(3)] * 2 + [-np.log(3)] * 2)


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
