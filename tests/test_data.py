"""The record, its checks on bad input, the attributes, and the simulated users."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import record
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.data import simulated
from prlhf_kit.data.attributes import measure


@pytest.fixture
def good(pairs):
    test = [record("t1", "a", "Something new?", "Yes indeed.", "No.")]
    return DatasetDict(train=pairs, test_seen=Dataset.from_list(test))


def with_row(data, row, split="train"):
    return DatasetDict({**data, split: Dataset.from_list([*data[split], row])})


def test_good_data_passes_unchanged(good):
    clean, report = kit.data.check(good)
    assert str(report) == "13 pairs kept, none dropped"
    assert clean["train"].to_list() == good["train"].to_list()


@pytest.mark.parametrize("column", kit.data.schema.COLUMNS)
def test_missing_column_is_refused(good, column):
    bad = DatasetDict({**good, "train": good["train"].remove_columns(column)})
    with pytest.raises(kit.data.SchemaError, match=f"split 'train' has no column '{column}'"):
        kit.data.check(bad)


def test_user_id_that_is_not_text_is_refused(good):
    numbers = good["train"].remove_columns("user_id").add_column("user_id", list(range(len(good["train"]))))
    with pytest.raises(kit.data.SchemaError, match=r"user id 0 \(int\), expected non-empty text"):
        kit.data.check(DatasetDict(train=numbers))
    with pytest.raises(TypeError, match="7 is a int"):
        kit.UserIndex(["ann", 7])


def test_empty_and_equal_responses_are_dropped_and_counted_by_user(good):
    bad = with_row(good, record("x1", "a", "Why?", "  ", "No."))
    bad = with_row(bad, record("x2", "b", "Why?", "Same.", "Same."))
    bad = with_row(bad, record("x3", "b", "Why?", "Yes.", ""))
    clean, report = kit.data.check(bad)
    assert report.table.to_dict("records") == [
        {"split": "train", "user_id": "a", "reason": "empty response", "pairs": 1},
        {"split": "train", "user_id": "b", "reason": "chosen equals rejected", "pairs": 1},
        {"split": "train", "user_id": "b", "reason": "empty response", "pairs": 1},
    ]
    assert len(clean["train"]) == 12
    assert "2 empty response (of 2 users)" in str(report)
    assert report.checks.set_index("check").pairs["chosen equals rejected"] == 1


def test_prompt_longer_than_the_limit_is_counted_by_user(good, tokenizer):
    bad = with_row(good, record("x1", "a", "Why? " * 100, "Yes.", "No."))
    _, report = kit.data.check(bad, tokenizer, 100)
    assert report.table.to_dict("records") == [
        {"split": "train", "user_id": "a", "reason": "prompt longer than 100 tokens", "pairs": 1}
    ]


def test_user_with_no_pairs_is_refused(good):
    with pytest.raises(kit.data.SchemaError, match="1 users have no pairs in train, first 'zoe'"):
        kit.data.check(good, users=["a", "zoe"])
    with pytest.raises(kit.data.SchemaError, match=r"'dan'.*empty response"):
        kit.data.check(with_row(good, record("x1", "dan", "Why?", "", "No.")))


def test_other_refusals(good):
    with pytest.raises(kit.data.SchemaError, match="the pair id 'p1' comes 2 times"):
        kit.data.check(with_row(good, record("p1", "a", "Why?", "Yes.", "No.")))
    with pytest.raises(kit.data.SchemaError, match="1 prompts of split 'test_seen' are in train or adapt_unseen"):
        kit.data.check(with_row(good, record("t2", "a", "Question number 1?", "Yes.", "No."), "test_seen"))
    with pytest.raises(kit.data.SchemaError, match="users who are not in train"):
        kit.data.check(with_row(good, record("t2", "zoe", "New?", "Yes.", "No."), "test_seen"))
    with pytest.raises(kit.data.SchemaError, match="users who are in train"):
        kit.data.check(DatasetDict({**good, "test_unseen": good["test_seen"]}))
    text = good["train"].map(lambda row: {"prompt": "plain"}, remove_columns="prompt")
    with pytest.raises(kit.data.SchemaError, match="expected a list of"):
        kit.data.check(DatasetDict(train=text))
    with pytest.raises(kit.data.SchemaError, match="Did you mean 'simulated'"):
        kit.data.load("simulatd")


def test_attributes_by_hand():
    text = "- Thank you, dear friend!\n- It is recommended."
    found = measure(text)
    assert found["length"] == pytest.approx(np.log(8))  # 7 words
    assert found["lists"] == 1
    assert found["warmth"] == pytest.approx(np.log(5))  # thank, dear, friend, !
    assert found["formality"] == pytest.approx(0)  # recommended against you
    assert found["questions"] == 0
    assert measure("Why? How?")["questions"] == pytest.approx(np.log(3))
    assert measure("I don't know.")["formality"] == pytest.approx(-20 / 3)
    assert measure("") == dict.fromkeys(found, 0.0)


def test_pair_ids_and_prompts(pairs):
    test = pairs.map(lambda row: {"prompt": [{"role": "user", "content": "New: " + row["prompt"][0]["content"]}]})
    with pytest.raises(kit.data.SchemaError, match=r"pair id 'p1' comes 2 times \(in train, test_seen\)"):
        kit.data.check(DatasetDict(train=pairs, test_seen=test))
    numbered = pairs.remove_columns("pair_id").add_column("pair_id", list(range(len(pairs))))
    with pytest.raises(kit.data.SchemaError, match=r"pair id \d+ \(int\), expected non-empty text"):
        kit.data.check(DatasetDict(train=numbered))
    silent = pairs.map(lambda row: {"prompt": [{"role": "user", "content": " "}]} if row["pair_id"] == "p1" else row)
    _, report = kit.data.check(DatasetDict(train=silent))
    assert report.table.to_dict("records") == [{"split": "train", "user_id": "b", "reason": "empty prompt", "pairs": 1}]


def test_shipped_responses():
    table = simulated.responses()
    assert table.prompt_id.nunique() >= 240
    assert table.groupby("prompt_id").size().between(4, 6).all()
    assert not table.duplicated(["prompt_id", "response"]).any()
    assert table.response.str.strip().ne("").all()


def test_simulated_is_seeded_disjoint_and_true():
    data = simulated.load(pairs_per_user=5, test_pairs_per_user=4, adapt_pairs_per_user=2)
    assert {name: len(split) for name, split in data.items()} == {
        "train": 40, "test_seen": 32, "test_unseen": 16, "adapt_unseen": 8,
    }  # fmt: skip
    clean, report = kit.data.check(data)
    assert report.table.empty
    assert len(set(data["test_unseen"]["user_id"])) == 4
    again = simulated.load(pairs_per_user=5, test_pairs_per_user=4, adapt_pairs_per_user=2)
    other = simulated.load(pairs_per_user=5, test_pairs_per_user=4, adapt_pairs_per_user=2, seed=1)
    assert kit.data.fingerprint(clean) == kit.data.fingerprint(again) != kit.data.fingerprint(other)
    people = simulated.population()
    train = data["train"]
    chosen, rejected = ([m[0]["content"] for m in train[c]] for c in ("chosen", "rejected"))
    p = people.preference(train["user_id"], chosen, rejected)
    assert p == pytest.approx(train["p_chosen"])
    assert simulated.oracle_accuracy([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


def test_contrast_shows_more_different_pairs_whoever_is_asked():
    def spread(contrast):
        """Mean true utility gap of the shown pairs, by type of the judge, over all users' pairs."""
        data = simulated.load(contrast=contrast, pairs_per_user=60, test_pairs_per_user=1, adapt_pairs_per_user=1)
        people = simulated.population()
        first, second = ([m[0]["content"] for m in data["train"][c]] for c in ("chosen", "rejected"))
        return np.array(
            [np.abs(people.utility([u] * len(first), first) - people.utility([u] * len(first), second)).mean()
             for u in people.user_ids]
        )  # fmt: skip

    plain, contrasted = spread(1), spread(4)
    assert (contrasted > 1.2 * plain).all()  # for every user, not only for whoever saw the pair
    with pytest.raises(ValueError, match="contrast=0"):
        simulated.load(contrast=0)


def test_bradley_terry_draws_have_the_stated_rate():
    """Over 4,000 drawn preferences, mean p_chosen is E[p^2 + (1-p)^2], within 5 standard errors."""
    data = simulated.load(pairs_per_user=500, test_pairs_per_user=1, adapt_pairs_per_user=1)["train"]
    p = np.array(data["p_chosen"])
    expected = p**2 + (1 - p) ** 2
    assert p.mean() == pytest.approx(expected.mean(), abs=5 * p.std() / np.sqrt(len(p)))


def test_population_survives_saving(tmp_path):
    people = simulated.population(seed=3)
    people.save(tmp_path / "p.json")
    back = simulated.Population.load(tmp_path / "p.json")
    users, texts = people.user_ids, ["Hello there, friend!"] * len(people.user_ids)
    assert back.utility(users, texts) == pytest.approx(people.utility(users, texts))
    pd.testing.assert_frame_equal(back.weights, people.weights)


def test_simulated_takes_no_path():
    with pytest.raises(ValueError, match="takes no path"):
        kit.data.load("simulated", "somewhere")
    with pytest.raises(ValueError, match="at least 2 users a type"):
        simulated.population(users_per_type=1)


def test_user_index(tmp_path):
    index = kit.UserIndex(["ann", "00123"])
    assert index.rows(["00123", None]) == [2, 0]
    assert index.row("zoe", unknown="generic") == 0
    with pytest.raises(KeyError, match="'zoe' has no row"):
        index.row("zoe")
    with pytest.raises(ValueError, match="'ann' is listed twice"):
        kit.UserIndex(["ann", "ann"])
    index.save(tmp_path, num_tokens=3)
    back, extra = kit.UserIndex.load(tmp_path)
    assert (back.user_ids, extra) == (["ann", "00123"], {"num_tokens": 3})
    with pytest.raises(FileNotFoundError, match="unknown which row"):
        kit.UserIndex.load(tmp_path / "nowhere")


def test_at_most_so_many_pairs_of_a_user():
    data = kit.data.load("simulated", pairs_per_user=10, test_pairs_per_user=4)
    few, fewer = (kit.data.at_most(data, seed=3, train=k, test_seen=2) for k in (6, 3))
    assert set(Counter(few["train"]["user_id"]).values()) == {6}
    assert set(fewer["train"]["pair_id"]) < set(few["train"]["pair_id"])
    assert set(Counter(few["test_seen"]["user_id"]).values()) == {2}
    assert few["test_unseen"].num_rows == data["test_unseen"].num_rows
    assert kit.data.at_most(data, train=None)["train"]["pair_id"] == data["train"]["pair_id"]
    with pytest.raises(kit.data.SchemaError, match="no split 'dev'"):
        kit.data.at_most(data, dev=3)
    with pytest.raises(kit.data.SchemaError, match="train=0: expected a whole number"):
        kit.data.at_most(data, train=0)
