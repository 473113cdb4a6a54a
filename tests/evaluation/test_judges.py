"""Judges, and the table of their judgements in both orders."""

import numpy as np
import pandas as pd
import pytest
import torch

from prlhf_kit.data import simulated
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.evaluation.judges import Oracle, RewardJudge, all_judged, judged, longer, verdicts
from prlhf_kit.evaluation.win_rate import position_bias, win_rates


def answers(systems="xyz", users="abcd", prompts="pqr"):
    """Later systems give longer answers."""
    rows = [(s, u, p, f"{s} {u} {p} " + "w " * i) for i, s in enumerate(systems) for u in users for p in prompts]
    return pd.DataFrame(rows, columns=list(ANSWERS))


def says(*p):
    """A judge whose probabilities that the first answer is preferred come again and again."""
    return lambda prompt, *_: verdicts(p[i % len(p)] for i in range(len(prompt)))


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


@pytest.mark.parametrize(("p", "bias"), [(1.0, 1), (0.0, -1)])
def test_a_judge_that_always_says_the_same_gives_one_half_and_a_position_bias(p, bias):
    found = judged(says(p), answers(), [("x", "y"), ("x", "z")], "always")
    assert (found.preference == "tie").all()
    assert win_rates(found)[["win_rate", "low", "high", "p"]].to_numpy().tolist() == [[0.5, 0.5, 0.5, 1]] * 2
    assert position_bias(found)[["value", "n"]].to_numpy().tolist() == [[bias, 24], [1, 24]]


def test_unreadable_verdicts_are_none():
    found = judged(says(np.nan, 1.0, 1.0, 1.0), answers("xy", "ab", "pq"), [("x", "y")], "mumbles")
    # the first of four pairs is unreadable in both orders, the others contradict themselves
    assert found.preference.isna().tolist() == [True, False, False, False]
    assert (found.preference[1:] == "tie").all()
    assert verdicts([float("nan"), 0.5]) == [None, "tie"]


def test_unknown_users_are_none_for_the_judge_and_somebody_else_for_each_prompt():
    def judge(prompt, answer_a, answer_b, user):
        assert set(user) == {"a", None}
        return longer(prompt, answer_a, answer_b, user)

    found = judged(judge, answers(users=["a", None]).astype({"user_id": "str"}), [("x", "y")], "words")  # holds NaN
    assert set(found.user_id) == {"a", "somebody: p", "somebody: q", "somebody: r"}


def test_what_can_be_compared():
    some = pd.concat([answers("x", prompts="pq"), answers("y", prompts="q"), answers("z", prompts="r")])
    assert set(all_judged({"words": longer}, some)[["system_a", "system_b"]].itertuples(index=False)) == {("x", "y")}
    with pytest.raises(ValueError, match="no two systems answered the same prompt"):
        all_judged({"words": longer}, answers("x"))
    steps = answers().assign(system=lambda table: table.system.map({"x": 100, "y": 200, "z": 300}))
    assert all_judged({"words": longer}, steps).system_b.unique().tolist() == [200, 300]


ONE = answers("xy", "a")


@pytest.mark.parametrize(
    ("judge", "table", "words"),
    [
        (longer, pd.concat([answers("x", prompts="p"), answers("y", prompts="q")]), "no user and prompt in common"),
        (longer, pd.concat([ONE, ONE]), "'x' has two answers for user 'a'"),
        (longer, ONE.drop(columns="user_id"), "answers lack user_id"),
        (longer, ONE.assign(answer=["w", None, None, None, "w", "w"]), "3 prompts or answers are no text"),
        (lambda *_: ["a"], ONE, "'j' gave 1 verdicts on 6 pairs"),
        (lambda prompt, *_: ["A"] * len(prompt), ONE, "expected one each, of"),
    ],
)
def test_answers_and_judges_that_can_not_be_used_are_refused(judge, table, words):
    with pytest.raises(ValueError, match=words):
        judged(judge, table, [("x", "y")], "j")


def test_the_oracle_is_the_users_own_utility():
    people = simulated.population()
    user = next(iter(people.groups))
    texts = simulated.responses().response.head(4).tolist()
    found = Oracle(people)(["p"] * 3, [texts[0]] * 3, [texts[1], texts[0], texts[2]], [user] * 3)
    u = people.utility([user] * 3, texts[:3])
    assert found[0] == ("a" if u[0] > u[1] else "b")
    assert found[1] == "tie"
    assert found[2] == ("a" if u[0] > u[2] else "b")


class Words:
    """A reward model: so many words, and for ann the negative of it."""

    def score(self, prompts, responses, user_ids=None):
        assert all(r.strip() for r in responses), "an empty response has no reward"
        signs = [-1.0 if u == "ann" else 1.0 for u in user_ids]
        return torch.tensor([s * len(r.split()) for s, r in zip(signs, responses, strict=True)])


def test_a_reward_model_as_judge():
    a, b = ["one two", "one two", "", "", "one"], ["one", "one", "one", " ", "two"]
    found = RewardJudge(Words())(["p"] * 5, a, b, ["bob", "ann", "ann", "bob", None])
    assert found == ["a", "b", "b", "tie", "tie"]
