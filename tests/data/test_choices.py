"""Which earlier choices are told before a prompt, and in which words."""

import re

import pytest
from datasets import Dataset, DatasetDict

from prlhf_kit.data.choices import Choices, apart, known_pairs, told
from prlhf_kit.data.schema import SchemaError, message, record


def pairs_of(*rows):
    return Dataset.from_list([record(*row) for row in rows])


def dialogue(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


MANY = pairs_of(*[(f"p{i}", f"u{i % 2}", f"ask {i // 4}", "yes", "no") for i in range(40)])  # twice 10 prompts


def test_no_choice_of_the_judged_turn_or_a_later_one_is_told():
    """Also where the judged prompt is a text or cut, where their histories are cut, or where a dialogue branches."""
    be_good, rows, texts = message("system", "Be good."), [], []  # one message for all dialogues
    for i in range(4):
        texts.append(f"<asked {i}>")
        rows.append(record(f"{i}", "u", be_good + dialogue(*texts), f"<chosen {i}>", f"<rejected {i}>"))
        texts.append(f"<chosen {i}>")
    other = record("o", "u", dialogue("<asked o>"), "<chosen o>", "<rejected o>")
    judged = rows[2]["prompt"]
    cut = [row | {"prompt": row["prompt"][-3:]} for row in rows]
    by_text = (rows, " <asked 2>\n")
    for pairs, prompt in ((rows, judged), (cut, judged), (rows, judged[-3:]), by_text):
        words = told(Choices([Dataset.from_list([*pairs, other])], 99).of("u", prompt))
        assert not re.search(r"<(asked|rejected) [23]>|<chosen 2>|Be good", words)
        assert "<chosen o>" in words
    assert [pair["pair_id"] for pair in rows if apart(pair["prompt"], judged)] == ["0", "1"]
    assert not apart(dialogue("<asked 0>", "<rejected 0>", "<asked b>"), judged)  # begins alike, but is no part of it


def test_choices_are_one_a_prompt_of_this_user_drawn_by_prompt_and_seed_and_nested():
    def ids(k, prompt="hi", seed=0, pairs=MANY):
        return [pair["pair_id"] for pair in Choices([pairs], k, seed).of("u1", prompt)]

    four = ids(4)
    assert four[:2] == ids(2)
    assert four == ids(4, pairs=MANY.select(range(39, -1, -1))) != ids(4, seed=1)
    assert len({tuple(ids(4, f"hi {i}")) for i in range(30)}) > 5
    everything = Choices([MANY], 99).of("u1", "hi")
    assert {pair["user_id"] for pair in everything} == {"u1"}
    assert sorted(pair["prompt"][0]["content"] for pair in everything) == [f"ask {i}" for i in range(10)]
    assert {f"ask {i}" for i in range(10)} - {
        p["prompt"][0]["content"] for p in Choices([MANY], 99).of("u1", "ask 3")
    } == {"ask 3"}


def test_where_all_share_one_prompt_choices_differ_by_what_was_chosen():
    pairs = pairs_of(*[(f"p{i}", "u", "round 1", f"yes {i // 2}", f"no {i}") for i in range(8)])
    found = Choices([pairs], 3).of("u", "round 2")
    assert len({pair["chosen"][0]["content"] for pair in found}) == 3
    assert Choices([pairs], 3).of("u", "round 1") == []
    assert [Choices([pairs], 3).apart(pairs[0], pairs[i]) for i in (0, 1, 2)] == [False, False, True]


def test_who_chose_nothing_else_is_told_of_in_one_text():
    few = Choices([pairs_of(("p", "a", "Tea?", "Green.", "Black."))], 4)
    assert told(few.of("a", "Why?")) == "Asked: Tea?\nChose: Green.\nRather than: Black."
    assert told(few.of("a", " Tea?")) == told(few.of("z", "Why?")) == told(Choices([], 1).of("a", "x")) == "none known"


def test_long_texts_are_cut_and_say_how_long_they_were():
    [pair] = pairs_of(("p", "a", "Tea?", "word " * 300, "no\n\nno"))
    _, chosen, rejected = told([pair]).split("\n")
    assert re.fullmatch(r"Chose: (word )+ \.\.\. \(300 words\)", chosen)
    assert len(chosen) < 450
    assert rejected == "Rather than: no no"


def test_what_may_be_told_is_no_test_split():
    data = DatasetDict(train=MANY.select([0]), test_seen=MANY.select([1]), adapt_unseen=MANY.select([2]))
    assert [part["pair_id"][:] for part in known_pairs(data)] == [["p0"], ["p2"]]
    with pytest.raises(SchemaError, match="k=0 earlier choices"):
        Choices([MANY], 0)
