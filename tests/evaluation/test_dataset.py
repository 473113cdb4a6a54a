"""The tables of notebook 01, by hand on a few pairs, and the figures that are drawn from them."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.data.prepare import cards_table
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import dataset
from prlhf_kit.figures import data as data_figures


def split(*rows, name="p"):
    return Dataset.from_list([record(f"{name}{i}", *row) for i, row in enumerate(rows)])


@pytest.fixture
def data():
    """Ann and bob agree once in two; cy shares nothing; ann likes it long, bob short."""
    return DatasetDict(
        train=split(
            ("ann", "Q1", "a long answer", "short"), ("ann", "Q2", "one two", "x"), ("ann", "Q4", "p q r", "s"),
            ("bob", "Q1", "short", "a long answer"), ("bob", "Q2", "one two", "x"), ("bob", "Q5", "no", "not at all"),
            ("cy", "Q3", "yes yes", "no"),
        ),
        test_seen=split(("ann", "T1", "a b c", "d"), ("bob", "T1", "d", "a b c"), name="t"),
    )  # fmt: skip


def test_overview(data):
    table = dataset.overview(data).set_index("split")
    assert table.loc["train"].tolist() == [7, 3, 5, 1, 3, 3]
    assert table.loc["test_seen"].tolist() == [2, 2, 1, 1, 1, 1]
    known = DatasetDict({name: pairs.add_column("p_chosen", [0.2] * len(pairs)) for name, pairs in data.items()})
    assert dataset.overview(known)["oracle accuracy"].tolist() == pytest.approx([0.8, 0.8])


def test_length_rule_learns_each_users_direction_from_training_pairs(data):
    rule = dataset.length_rule(data).set_index(["split", "method"]).value
    assert rule["test_seen", "length rule"] == 0.5  # longer for all: right for ann only
    assert rule["test_seen", "length rule per user"] == 1.0
    assert rule["train (in sample)", "length rule per user"] == pytest.approx(6 / 7)


def test_agreement_by_hand(data):
    table = dataset.agreement(data).set_index(["user_a", "user_b"])
    # Q1 opposite, Q2 the same, T1 opposite
    assert table.agreement["ann", "bob"] == pytest.approx(1 / 3) == table.agreement["bob", "ann"]
    assert table.shared["ann", "bob"] == 3
    assert "cy" not in table.index.get_level_values(0)
    alone = DatasetDict(train=split(("ann", "Q", "a", "b"), ("bob", "R", "a", "b")))
    assert dataset.agreement(alone).empty


def test_agreement_of_many_users_is_of_those_who_share_most():
    rows = [(f"u{i}", f"Q{q}", "a", "b") for i in range(9) for q in range(i + 1)]
    table = dataset.agreement(DatasetDict(train=split(*rows)), max_users=5)
    assert set(table.user_a) == {f"u{i}" for i in range(4, 9)}
    assert (table.agreement == 1).all()


def test_typical_words_tell_groups_apart():
    rows = [("ann", f"Q{i}", f"{i}: The teapot and the kettle don't boil", "x") for i in range(5)]
    rows += [("bob", f"Q{i}", f"{i}: The engine and the gearbox don't start", "x") for i in range(5)]
    words = dataset.typical_words(split(*rows)).groupby("group").word.apply(set)
    assert {"teapot", "kettle", "boil"} == words["ann"]
    assert {"engine", "gearbox", "start"} == words["bob"]  # neither "the" nor half of "don't"


def test_response_map_says_which_group():
    data = kit.data.load("simulated", pairs_per_user=10, test_pairs_per_user=1, adapt_pairs_per_user=1)
    found = dataset.response_map(data["train"], 60, seed=3)
    assert found.groupby("group").size().tolist() == [15] * 4
    assert np.isfinite(found[["x", "y"]].to_numpy()).all()
    assert dataset.response_map(data["train"].select(range(5))).empty


def test_browse_escapes_and_is_by_user(data):
    page = dataset.browse(DatasetDict(train=split(("<ann>", "Q?", "<script>alert(1)</script>", "b")))).data
    assert "<script>" not in page
    assert "&lt;ann&gt;" in page
    page = dataset.browse(data, users=2, pairs=2).data
    assert page.count("<details") == 2
    assert page.count("<tr>") == 2 + 4  # a head and two pairs each
    assert "ann, 4 pairs" in page


def test_lengths_of_few_and_of_many_users(data):
    many = DatasetDict(train=split(*[(f"u{i % 40}", f"Q{i}", "a b c"[: i % 5 + 1], "d") for i in range(400)]))
    for one, shown, users in ((data, 3, 3), (many, data_figures.MANY_USERS, 40)):
        ticks = data_figures.lengths(dataset.lengths(one)).axes[0].get_yticklabels()
        assert [label.get_text() for label in ticks[shown:]] == [f"all {users}"]


def test_one_pair_and_answers_without_words():
    one = DatasetDict(train=split(("ann", "Q", "x y", "z")))
    assert len(data_figures.lengths(dataset.lengths(one)).axes[0].get_yticklabels()) == 1
    assert dataset.length_rule(one).value.tolist() == [1.0, 1.0]
    numbers = split(*[("ann", f"Q{i}", str(2 * i), str(2 * i + 1)) for i in range(30)])
    assert dataset.response_map(numbers).empty
    assert dataset.typical_words(numbers).empty
    alike = split(*[("ann", f"Q{i}", f"The warm tea tastes of {i} leaves", "x") for i in range(30)])
    assert dataset.response_map(alike).empty  # t-SNE would crash the process


def test_docs_table_is_that_of_the_cards():
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert cards_table() in page, "write it again: prlhf data list --markdown"
    assert all(f"| {name}" in page or f", {name} |" in page for name in kit.data.RULES)
