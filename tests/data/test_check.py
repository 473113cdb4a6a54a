"""Every check by its name, and what holds for all of them whatever the rows are."""

import json

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings, strategies as st
from peft import LoraConfig
from transformers import AutoTokenizer

import prlhf_kit as kit
from prlhf_kit.data.chat import PLAIN_TEMPLATE, require_prefix, shorten
from prlhf_kit.data.collect import collect
from prlhf_kit.data.schema import message, record

DROP = {"prompt in train and test": "drop", "user with too few pairs": "drop"}


def checked(train, test=(), **options):
    data = DatasetDict(train=Dataset.from_list(train))
    if test:
        data["test_seen"] = Dataset.from_list(list(test))
    clean, report = kit.data.check(data, **options)
    return clean, report.checks.set_index("check").pairs


def test_duplicated_pair_keeps_the_first():
    rows = [record(f"p{i}", "ann", "Q?", "a", "b") for i in range(3)] + [record("x", "bob", "Q?", "a", "b")]
    clean, counts = checked(rows)
    assert clean["train"]["pair_id"] == ["p0", "x"]  # another user may prefer the same
    assert counts["duplicated pair"] == 2


def test_contradictory_pairs_are_all_dropped():
    said_by = [
        ("ann", "Q?", "a", "b"),
        ("ann", "Q?", "b", "a"),
        ("ann", "Q?", "a", "b"),
        ("bob", "Q?", "b", "a"),
        ("ann", "Q?", "a", "c"),
        ("ann", "R?", "b", "a"),
    ]
    rows = [record(f"p{i}", *row) for i, row in enumerate(said_by)]
    clean, counts = checked(rows)
    assert clean["train"]["pair_id"] == ["p3", "p4", "p5"]
    assert counts["contradictory pair"] == 3
    with pytest.raises(
        kit.data.SchemaError, match="3 pairs of split 'train' fail the check 'contradictory pair', first 'p0'"
    ):
        checked(rows, rules={"contradictory pair": "refuse"})


def test_prompt_in_train_and_test_by_rule():
    train = [record("p0", "ann", "Q?", "a", "b"), record("p1", "ann", "R?", "a", "b")]
    test = [record("t0", "ann", "Q?", "c", "d"), record("t1", "ann", "S?", "c", "d")]
    with pytest.raises(kit.data.SchemaError, match="1 prompts of split 'test_seen'"):
        checked(train, test)
    clean, counts = checked(train, test, rules=DROP)
    assert clean["test_seen"]["pair_id"] == ["t1"]
    assert counts["prompt in train and test"] == 1


def test_adaptation_prompts_are_not_test_prompts():
    data = DatasetDict(
        train=Dataset.from_list([record("p0", "ann", "Q?", "a", "b")]),
        adapt_unseen=Dataset.from_list([record("a0", "bob", "R?", "a", "b"), record("a1", "bob", "Q?", "a", "b")]),
        test_unseen=Dataset.from_list([record("t0", "bob", "R?", "a", "b"), record("t1", "bob", "S?", "a", "b")]),
    )
    with pytest.raises(kit.data.SchemaError, match="'test_unseen' are in train or adapt_unseen"):
        kit.data.check(data)
    clean, _ = kit.data.check(data, rules=DROP)
    assert clean["test_unseen"]["pair_id"] == ["t1"]
    assert len(clean["adapt_unseen"]) == 2  # to adapt on a training prompt is fair


def test_users_with_too_few_pairs_leave_every_split():
    train = [record(f"p{i}", "ann", f"Q{i}?", "a", "b") for i in range(3)] + [record("b0", "bob", "B?", "a", "b")]
    test = [record("t0", "ann", "S?", "c", "d"), record("t1", "bob", "S?", "c", "d")]
    clean, counts = checked(train, test, min_pairs=2, rules=DROP)
    assert set(clean["train"]["user_id"]) == {"ann"} == set(clean["test_seen"]["user_id"])
    assert counts["user with too few pairs"] == 2
    with pytest.raises(kit.data.SchemaError, match="or fewer than 2, first 'bob'"):
        checked(train, test, min_pairs=2)


def test_over_long_pairs_count_the_response(tokenizer):
    rows = [
        record("p0", "ann", "Q?", "yes " * 60, "b"),
        record("p1", "ann", "Q?", "a", "b " * 60),
        record("p2", "ann", "Q?", "a", "c"),
    ]
    clean, counts = checked(rows, tokenizer=tokenizer, max_tokens=50)
    assert clean["train"]["pair_id"] == ["p2"]
    assert counts["over-long pair"] == 2
    _, report = kit.data.check(DatasetDict(train=Dataset.from_list(rows)), tokenizer, max_tokens=50)
    assert report.table.reason.unique().tolist() == ["pair longer than 50 tokens"]
    with pytest.raises(kit.data.SchemaError, match="pass tokenizer"):
        checked(rows, max_tokens=50)


def test_no_training_pair_left_is_refused():
    with pytest.raises(kit.data.SchemaError, match="no training pair is left"):
        checked([record("p0", "ann", "Q?", "a", "a")], rules=DROP)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"empty": "drop"}, "no check 'empty'"),
        ({"empty prompt": "shorten"}, "expected one of"),
        ({"over-long prompt": 3}, "is 3"),
    ],
)
def test_unknown_rules_are_refused(rules, reason):
    with pytest.raises(kit.data.SchemaError, match=reason):
        checked([record("p0", "ann", "Q?", "a", "b")], rules=rules)


def test_shorten_by_hand():
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    talk = [turn for i, role in enumerate(roles) for turn in message(role, str(i))]
    assert shorten(talk, lambda p: len(p) <= 4) == [talk[0], *talk[3:]]
    assert shorten(talk, lambda p: len(p) <= 2) == [talk[0], talk[5]]
    assert shorten(talk, lambda p: False) is None
    assert shorten(message("user", "1"), lambda p: True) is None  # nothing older to leave out


# Chat templates -------------------------------------------------------------------------------------------------------


def test_a_template_that_changes_the_prompt_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    changed = AutoTokenizer.from_pretrained(tmp_path)
    changed.chat_template = (  # as reasoning models' templates do: the last turn is laid out differently
        "{% for m in messages %}{{ '[' + m['role'] + (' last' if loop.last else '') + ']' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant last]' }}{% endif %}"
    )
    data = DatasetDict(train=Dataset.from_list([record("p0", "ann", "Q?", "a", "b")]))
    with pytest.raises(kit.data.SchemaError, match=r"does not keep the prompt in front.*get_training_chat_template"):
        kit.data.check(data, changed, 100)
    with pytest.raises(kit.data.SchemaError, match="does not keep the prompt in front"):
        kit.PersonalizedDPOTrainer(
            None, kit.PersonalizedDPOConfig(str(tmp_path)), data["train"], None, changed, peft_config=LoraConfig()
        )
    changed.chat_template = PLAIN_TEMPLATE
    require_prefix(changed)


def test_a_template_without_a_system_role_says_so(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    strict = AutoTokenizer.from_pretrained(tmp_path)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    talk = message("system", "Be kind.") + message("user", "Q?")
    data = DatasetDict(train=Dataset.from_list([record("p0", "ann", talk, "a", "b")]))
    with pytest.raises(kit.data.SchemaError, match=r"refuses the roles \['system', 'user'\] \(no system role\)"):
        kit.data.check(data, strict, 100)


# Whatever the rows are ------------------------------------------------------------------------------------------------

# few different values, so that duplicates, contradictions and shared prompts are common
TEXT = st.sampled_from(["a", "b", "c", "a ", "", " ", "\n", "é"])
ROWS = st.lists(
    st.tuples(st.sampled_from(["train", "train", "test_seen"]), st.sampled_from(["ann", "bob"]), TEXT, TEXT, TEXT),
    max_size=25,
)
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(ROWS)
def test_what_is_left_is_clean_and_every_pair_is_accounted_for(rows):
    numbered = [
        (split, record(f"p{i}", user, prompt, chosen, rejected))
        for i, (split, user, prompt, chosen, rejected) in enumerate(rows)
    ]
    raw = collect(numbered)
    try:
        clean, report = kit.data.check(raw, rules=DROP)
    except kit.data.SchemaError as error:
        assert any(why in str(error) for why in ("no pair", "no split", "no training pair", "not in train"))  # noqa: PT017
        return
    assert report.kept + report.table.pairs.sum() == len(rows)
    assert report.checks.pairs.sum() == report.table.pairs.sum()
    seen = {}
    for split, dataset in clean.items():
        for row in dataset:
            key = (row["user_id"], row["prompt"][0]["content"])
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert chosen.strip()
            assert rejected.strip()
            assert chosen.strip() != rejected.strip()
            assert row["prompt"][0]["content"].strip()
            assert (chosen, rejected) not in seen.get((split, *key), ())
            assert (rejected, chosen) not in seen.get((split, *key), ())
            seen.setdefault((split, *key), set()).add((chosen, rejected))
    if {"train", "test_seen"} <= set(clean):
        assert set(clean["test_seen"]["user_id"]) <= set(clean["train"]["user_id"])
        assert not {str(p) for p in clean["test_seen"]["prompt"]} & {str(p) for p in clean["train"]["prompt"]}
    again, second = kit.data.check(clean, rules=DROP)
    assert second.table.empty
    assert kit.data.fingerprint(again) == kit.data.fingerprint(clean)


@QUIET
@given(st.permutations([(u, q, a, b) for u in "xy" for q in "QR" for a, b in (("a", "b"), ("b", "a"), ("a", "c"))][:7]))
def test_the_order_of_rows_does_not_decide_what_is_left(rows):
    data = DatasetDict(train=Dataset.from_list([record(f"p{i}", *row) for i, row in enumerate(rows)]))
    clean, _ = kit.data.check(data, rules=DROP)
    left = {(r["user_id"], r["prompt"][0]["content"], r["chosen"][0]["content"]) for r in clean["train"]}
    # of seven rows one user and prompt has a to b only; three have both a to b and b to a, and keep a to c alone
    assert left == {(u, q, a) for u, q, a, b in rows if (u, q, b, a) not in rows}
    assert len(clean["train"]) == len(left)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["user_id", "prompt", "chosen", "rejected", "user_text", "group", "pair_id", "split", "x"])


@QUIET
@given(rows=st.lists(st.dictionaries(COLUMNS, JUNK, max_size=9), min_size=1, max_size=4))
def test_malformed_rows_are_refused_and_nothing_else_happens(rows, tmp_path):
    path = tmp_path / "junk.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    try:
        data = kit.data.load("files", path)
    except kit.data.SchemaError:
        return
    for split in data.values():  # or they were fine after all
        for row in split:
            assert row["user_id"]
            assert row["chosen"] != row["rejected"]


def test_report_table_has_integers(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"user_id": "a", "prompt": "Q", "chosen": "x", "rejected": "y"}))
    _, report = kit.data.load_with_report("files", path)
    assert pd.api.types.is_integer_dtype(report.table.pairs)
    assert list(report.checks["check"]) == list(kit.data.RULES)


def test_prompts_that_shortening_makes_equal_are_dropped_not_refused(tokenizer):
    talk = [
        {"role": "user", "content": "word " * 50},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "Now?"},
    ]
    other = [{**talk[0], "content": "other " * 50}, *talk[1:]]
    train = [record("p0", "ann", talk, "a", "b"), record("p1", "ann", "Q?", "a", "b")]
    test = [record("t0", "ann", other, "a", "b"), record("t1", "ann", "New?", "a", "b")]
    data = DatasetDict(train=Dataset.from_list(train), test_seen=Dataset.from_list(test))
    clean, report = kit.data.check(data, tokenizer, 40)
    assert clean["test_seen"]["pair_id"] == ["t1"]
    assert report.shortened == 1
    assert "1 prompts without their oldest turns" in str(report)


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


@pytest.mark.parametrize("column", ["user_id", "rejected"])
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
    with pytest.raises(kit.data.SchemaError, match="users who are not in train"):
        kit.data.check(with_row(good, record("t2", "zoe", "New?", "Yes.", "No."), "test_seen"))
    with pytest.raises(kit.data.SchemaError, match="users who are in train"):
        kit.data.check(DatasetDict({**good, "test_unseen": good["test_seen"]}))
    text = good["train"].map(lambda row: {"prompt": "plain"}, remove_columns="prompt")
    with pytest.raises(kit.data.SchemaError, match="expected a list of"):
        kit.data.check(DatasetDict(train=text))
    with pytest.raises(kit.data.SchemaError, match="Did you mean 'simulated'"):
        kit.data.load("simulatd")


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
