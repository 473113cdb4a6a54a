"""Tables and figures of guided decoding."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.data.schema import message, record
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.evaluation import steering


def answer(text, changed=0):
    return GuidedAnswer(text, [1, 2], [1, 2 + changed], [-1.0, -3.0], [-1.0, -2.0])


def test_answers_become_rows():
    jobs = pd.DataFrame({"user_id": ["ann", "bob"], "prompt": [message("user", "Why?"), message("user", "How?")]})
    answers = [answer("Because."), answer("So it is.", 1)]

    def judge(users, prompts, texts):
        return [
            f"{user}: {prompt[0]['content']} {text}" for user, prompt, text in zip(users, prompts, texts, strict=True)
        ]

    wanted = {"user_id": ["ann", "bob"], "prompt": ["Why?", "How?"], "answer": ["Because.", "So it is."]}
    wanted |= {"reward": ["ann: Why? Because.", "bob: How? So it is."], "logp": -2.0, "changed": [0.0, 0.5]}
    wanted = pd.DataFrame(wanted | {"tokens": 2, "words": [1, 3]})
    pd.testing.assert_frame_equal(steering.answered(jobs, answers, judge), wanted)


def rows(users, rewards, prompts=2, **columns):
    extra = {"logp": -1.0, "changed": 0.2, "words": 4, **columns}
    asked = [f"p{i % prompts}" for i in range(len(users))]
    return pd.DataFrame({"user_id": users, "prompt": asked, "reward": rewards, **extra})


def test_gains_are_paired_with_the_bases_answers():
    users = [u for u in "abcdef" for _ in range(2)]
    base = rows(users, np.arange(12.0))
    steered = rows(users, np.arange(12.0) + 1.5, weight=1.0)
    [found] = steering.gains(steered.sample(frac=1, random_state=0), base, ["weight"]).to_dict("records")
    assert (found["gain"], found["low"], found["high"]) == pytest.approx((1.5, 1.5, 1.5))
    assert (found["n"], found["clusters"], found["weight"]) == (12, 6, 1.0)
    two = ["a"] * 6 + ["b"] * 6  # two users: prompts are resampled
    few = steering.gains(rows(two, [0.0, 1, 2, 3, 4, 5] * 2, 6, m="x"), rows(two, [0.0] * 12, 6), ["m"])
    assert (few.clusters.item(), few.gain.item()) == (6, 2.5)
    assert 0 < few.low.item() < 2.5 < few.high.item() < 5
    few = steering.gains(rows(list("aabb"), [1.0, 3.0] * 2, m="x"), rows(list("aabb"), [0.0] * 4), ["m"])
    assert few.low.isna().all()  # of two prompts an interval would say nothing


def test_a_judge_from_features(tmp_path, monkeypatch):
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path))
    long, short = "I think that it is a very long story, my friend.", "Yes."

    def pairs(numbers):
        taste = {"ann": (short, long), "bob": (long, short)}
        rows = [(user, i, [f"{text} {i}" for text in taste[user]]) for i in numbers for user in taste]
        return Dataset.from_list([record(f"{user}{i}", user, f"Q {i}?", *texts) for user, i, texts in rows])

    data = DatasetDict(train=pairs(range(20)), test_seen=pairs(range(20, 26)))
    _, accuracy = steering.feature_reward(data)
    assert accuracy.estimate > 0.9
    assert accuracy.clusters == 6
    judge, name = steering.judge_of(data, tmp_path)
    assert "of 12 held-out pairs" in name
    prompts = [message("user", "Question 99?")] * 4
    texts = ["Yes. 99", "I think that it is a long story, my friend."]
    ann1, ann2, bob1, bob2 = judge(["ann", "ann", "bob", "bob"], prompts, texts * 2)
    assert ann1 > ann2
    assert bob2 > bob1
    assert np.isfinite(judge(["ann"], prompts[:1], [" "])).all()  # an empty answer is judged, too
    judges, held_out = steering.judges_of(data, tmp_path)
    assert (list(judges), held_out) == (["embeddings", "longer"], accuracy)


def test_the_same_prompts_are_answered_for_the_same_users_by_any_guide(make_tiny, tokenizer, tmp_path):
    model, prompts = make_tiny(), [message("user", text) for text in ("Why?", "How?")]
    wish = {"ann": "Be brief.", "bob": "Be kind."}

    def judge(users, prompts, answers):
        return np.array([float(len(answer)) for answer in answers])

    options = {"max_new_tokens": 5, "top_k": 9}
    asked = steering.Steered(tokenizer, ["ann", "bob"], prompts, judge, tmp_path / "answers.jsonl", options)
    alone = asked.answers(kit.PAD(model), weight=0.0)
    assert alone[["user_id", "prompt"]].to_numpy().tolist() == [[u, p] for u in wish for p in ("Why?", "How?")]
    assert asked.answers(kit.PAD(model), wish, weight=0.0).answer.tolist() == alone.answer.tolist()
    released = kit.PAD(model, form="released")
    assert np.isfinite(asked.answers(released, wish, model, weight=0.0).logp).all()  # the base reads the wish
    for weight in (0.0, 1.0):  # nobody's wish, so it is the base's own form
        found = asked.answers(released, None, model, weight=weight)
        assert found.logp.tolist() == pytest.approx(alone.logp.tolist(), abs=1e-4)
    assert len(asked.best_of(2, kit.PAD(model), kit.PAD(model))) == 4


def test_what_two_people_gain_from_the_same_answers(make_tiny, tokenizer, tmp_path):
    guide, prompts = kit.PAD(make_tiny()), [message("user", f"Question {i}?") for i in range(5)]

    def judge(users, prompts, answers):
        assert prompts == [*asked.prompts, *asked.prompts]
        return np.array(
            [len(text) * {"long": 1.0, "short": -2.0}[user] for user, text in zip(users, answers, strict=True)]
        )

    options = {"max_new_tokens": 8, "top_k": 9}
    asked = steering.Steered(tokenizer, ["long"], prompts, judge, tmp_path / "answers.jsonl", options)
    found = asked.gains_of_two(guide, {"brief": "Be brief."}, ["long", "short", "long"], 3.0)
    decoders = [kit.GuidedDecoder(None, tokenizer, guide, weight=weight, **options) for weight in (3.0, 0.0)]
    told, own = (decoder.generate(prompts, ["Be brief."] * 5) for decoder in decoders)
    longer = np.mean([len(a.text) - len(b.text) for a, b in zip(told, own, strict=True)])
    assert longer != 0
    assert found[["user_id", "towards", "gain", "n", "clusters"]].to_numpy().tolist() == [
        ["long", "brief", longer, 5, 5],
        ["short", "brief", -2 * longer, 5, 5],
    ]
