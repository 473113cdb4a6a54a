import pytest
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.data.chat import with_user_text
from prlhf_kit.data.context import Contexts, people_of, with_context
from prlhf_kit.data.schema import message, record

DROP = {"prompt in train and test": "drop", "user with too few pairs": "drop"}


def splits(**rows):
    return DatasetDict({split: Dataset.from_list(list(part)) for split, part in rows.items() if part})


def checked(train, test=(), **options):
    clean, report = kit.data.check(splits(train=train, test_seen=test), **options)
    return clean, report.checks.set_index("check").pairs


SAID = [("ann", "Q?", *"ab"), ("ann", "Q?", *"ba"), ("ann", "Q?", *"ab"), ("bob", "Q?", *"ba"), ("ann", "Q?", *"ac")]
CONTRADICTIONS = [record(f"p{i}", *row) for i, row in enumerate([*SAID, ("ann", "R?", *"ba")])]


def test_the_first_of_duplicated_pairs_is_kept_and_none_of_contradictory_ones():
    clean, counts = checked([*CONTRADICTIONS, record("again", "bob", "Q? ", "b", " a")])
    assert clean["train"]["pair_id"] == ["p3", "p4", "p5"]
    assert kit.data.check(clean)[1].table.empty  # once is enough
    assert counts["contradictory pair"] == 3
    assert counts["duplicated pair"] == 1


def test_prompts_in_train_and_test_are_dropped_by_rule():
    train = [record("p0", "ann", "Q?", "a", "b"), record("p1", "ann", "R?", "a", "b")]
    test = [record("t0", "ann", " Q?", "c", "d"), record("t1", "ann", "S?", "c", "d")]
    with pytest.raises(kit.data.SchemaError, match=r"1 pairs of split 'test_seen'.*'prompt in train and test'.*'t0'"):
        checked(train, test)
    clean, counts = checked(train, test, rules=DROP)
    assert clean["test_seen"]["pair_id"] == ["t1"]
    assert counts["prompt in train and test"] == 1


def test_adaptation_prompts_are_not_test_prompts():
    adapt, test = ([record(f"{name}{q}", "bob", q, "a", "b") for q in qs] for name, qs in (("a", "RQ"), ("t", "RS")))
    data = splits(train=[record("p0", "ann", "Q", "a", "b")], adapt_unseen=adapt, test_unseen=test)
    clean, _ = kit.data.check(data, rules=DROP)
    assert clean["test_unseen"]["pair_id"] == ["tS"]
    assert len(clean["adapt_unseen"]) == 2  # to adapt on a training prompt is fair


def test_users_with_too_few_pairs_leave_every_split():
    train = [record(f"p{i}", "ann", f"Q{i}?", "a", "b") for i in range(3)] + [record("b0", "bob", "B?", "a", "b")]
    test = [record("t0", "ann", "S?", "c", "d"), record("t1", "bob", "S?", "c", "d")]
    data = splits(train=train, test_seen=test, test_own=[row | {"pair_id": f"o{row['pair_id']}"} for row in test])
    clean, report = kit.data.check(data, min_pairs=2, rules=DROP)
    assert {split: set(pairs["user_id"]) for split, pairs in clean.items()} == {split: {"ann"} for split in data}
    assert report.table.pairs.sum() == 3
    with pytest.raises(kit.data.SchemaError, match="or fewer than 2, first 'bob'"):
        checked(train, test, min_pairs=2)


def test_over_long_pairs_count_the_response_and_prompts_do_not(tokenizer):
    texts = [("Q?", "yes " * 60, "b"), ("Q?", "a", "b " * 60), ("Q?", "a", "c"), ("Why? " * 100, "a", "b")]
    rows = [record(f"p{i}", "ann", *text) for i, text in enumerate(texts)]
    clean, report = kit.data.check(splits(train=rows), tokenizer, 100, max_tokens=50)
    assert clean["train"]["pair_id"] == ["p2"]
    assert report.table[["split", "user_id", "pairs"]].to_numpy().tolist() == [["train", "ann", 2], ["train", "ann", 1]]
    kept = "1 of 4 pairs kept; dropped: 2 over-long pair (max_tokens=50), 1 over-long prompt (max_prompt_tokens=100)"
    assert report.summary == kept
    assert report.warning == f"75% of the pairs were dropped: {kept}"
    prompts, both = report.tokens.set_index("tokens of").most[["prompt", "pair"]]
    assert 100 < prompts < both


def test_nothing_is_written_beside_the_data(tokenizer, tmp_path):
    """They may be read-only, and `datasets` would write its caches there."""
    talk = [*message("user", "word " * 50), *message("assistant", "ok"), *message("user", "Now?")]
    splits(train=[record("p0", "ann", talk, "a", "b", "Be brief.")]).save_to_disk(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data, report = kit.data.load_with_report(str(tmp_path), tokenizer=tokenizer, max_prompt_tokens=40)
    assert str(report) == "1 pairs kept, none dropped; 1 prompts without their oldest turns"
    assert data["train"]["prompt"][0] == talk[2:]
    whole = kit.data.load(str(tmp_path))["train"]
    told = message("system", "Be brief.") + talk
    assert with_user_text(whole)[0]["prompt"] == told
    assert with_context(whole, Contexts("user_text", people_of(whole)))[0]["prompt"] == told
    assert with_user_text(whole.select([])).features == whole.features
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_and_equal_responses_are_dropped_and_counted_by_user(pairs):
    bad = [
        ("a", "Why?", " ", "No."),
        ("b", "Why?", "Same", "Same"),
        ("b", "Why?", "Yes.", ""),
        ("b", " ", "Yes.", "No."),
    ]
    bad = [record(f"x{i}", *row) for i, row in enumerate(bad)]
    clean, report = kit.data.check(splits(train=[*pairs, *bad]))
    assert [tuple(row.values()) for row in report.table.to_dict("records")] == [
        ("train", "a", "empty response", 1),
        ("train", "b", "chosen equals rejected", 1),
        ("train", "b", "empty response", 1),
        ("train", "b", "empty prompt", 1),
    ]
    assert clean["train"].to_list() == pairs.to_list()


ONE = record("p0", "ann", "Q?", "a", "b")


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ({}, {}, "no pair"),
        ({"train": [ONE]}, {"rules": {"empty": "drop"}}, "no check 'empty'"),
        ({"train": [ONE]}, {"rules": {"empty prompt": "shorten"}}, "expected one of"),
        ({"train": [ONE]}, {"max_tokens": 50}, "pass tokenizer"),
        ({"train": CONTRADICTIONS}, {"rules": {"contradictory pair": "refuse"}}, "3 pairs.*'contradictory pair', .*p0"),
        ({"train": [{k: v for k, v in ONE.items() if k != "rejected"}]}, {}, "split 'train' has no column 'rejected'"),
        ({"train": [ONE | {"user_id": 0}]}, {}, r"row 0 \(pair_id 'p0'\), column 'user_id' is '0' \(int\), expected"),
        ({"train": [ONE], "test_seen": [record("p0", "ann", "New?", "a", "b")]}, {}, "'p0' comes 2 times"),
        ({"train": [ONE | {"prompt": "plain"}]}, {}, "column 'prompt' is 'plain' .*expected a list of"),
        ({"train": [ONE | {"prompt": ONE["chosen"]}]}, {}, "ends with role 'user', not the roles"),
        ({"train": [ONE], "test_unseen": [record("t", "ann", "New?", "a", "b")]}, {}, "users who are in train"),
        ({"train": [ONE], "test_seen": [record("t", "bob", "R?", "c", "d")]}, {}, "not in train: .* to 'test_unseen'"),
        ({"train": [ONE, record("x", "dan", "Q?", "", "b")]}, {}, "'dan'.*empty response"),
    ],
)
def test_refusals(rows, options, reason):
    with pytest.raises(kit.data.SchemaError, match=reason):
        kit.data.check(splits(**rows), **options)
