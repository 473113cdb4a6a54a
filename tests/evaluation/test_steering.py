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
    wanted = pd.DataFrame(wanted | {"tokens": 2, "words": [1, 3], "weight": 0.5})
    pd.testing.assert_frame_equal(steering.answered(jobs, answers, judge, weight=0.5), wanted)


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


def test_what_two_people_gain_from_the_same_answers():
    prompts = {f"p{i}": message("user", f"p{i}") for i in range(5)}
    table = pd.DataFrame([(who, p, f"{who} {p}") for who in (None, "nobody", "both") for p in prompts])
    table.columns = ["towards", "prompt", "answer"]
    worth = {"nobody": {"None": 1.0, "nobody": 3.0, "both": 2.0}, "bob": {"None": 0.0, "nobody": -1.0, "both": 0.5}}

    def judge(users, asked, answers):
        assert [a[0]["content"] for a in asked] == [text.split()[1] for text in answers]
        return np.array([worth[user][text.split()[0]] for user, text in zip(users, answers, strict=True)])

    found = steering.gains_of_two(table, ["nobody", "bob"], judge, prompts)
    gained = found.set_index(["towards", "user_id"]).gain.to_dict()
    assert gained == {("nobody", "nobody"): 2, ("both", "nobody"): 1, ("nobody", "bob"): -1, ("both", "bob"): 0.5}
    assert set(found.n) == set(found.clusters) == {5}


def test_log_probabilities_under_the_bare_base(make_tiny, tokenizer):
    model, prompt = make_tiny(), message("user", "Why?")
    decoder = kit.GuidedDecoder(model, tokenizer, kit.PAD(model), max_new_tokens=5, top_k=9, weight=3.0)
    out = decoder.generate([prompt] * 3, ["Be brief.", "Be kind.", None])
    found = steering.base_logps(model, tokenizer, pd.DataFrame({"prompt": [prompt] * 3}), out, batch_size=2)
    assert found == pytest.approx([np.mean(a.logps) for a in out], abs=1e-4)


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
    released = asked.answers(kit.PAD(model, form="released"), wish, model, weight=0.0)  # the base reads the wish
    assert np.isfinite(released.logp).all()
    assert len(asked.best_of(2, kit.PAD(model), kit.PAD(model))) == 4
    two = asked.gains_of_two(kit.PAD(model), {"ann": "Be brief."}, ["ann", "bob"], 0.0)
    assert two.gain.tolist() == [0.0, 0.0]
