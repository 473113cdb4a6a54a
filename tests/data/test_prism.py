"""PRISM: histories, user texts, and turns without a choice."""

from raw import conversation, refused, write

import prlhf_kit as kit


def test_prism_goes_on_after_a_turn_without_a_choice(prism_folder):
    talks = [conversation(10 * i + k, f"user{i}", turns=3) for i in range(20) for k in range(4)]
    for message in talks[0]["conversation_history"]:
        if message["turn"] == 1:
            message["if_chosen"] = False if message["role"] == "model" else None
    write(prism_folder / "conversations.jsonl", talks)
    data = kit.data.load("prism", prism_folder)
    rows = [row for split in data.values() for row in split if row["pair_id"].startswith("c0-")]
    assert [row["pair_id"] for row in rows] == ["c0-0-0", "c0-0-1", "c0-0-2", "c0-2-0"]
    assert [m["role"] for m in rows[3]["prompt"]] == ["user", "assistant", "user"]
    assert rows[3]["prompt"][2]["content"] == "Hello 0.1?\n\nHello 0.2?"


def test_user_text_and_counts(prism_folder):  # pairs and splits: tests/authors
    data, report = kit.data.load_with_report("prism", prism_folder)
    [one, *_] = [row for split in data.values() for row in split if row["user_id"] == "user0"]
    assert one["user_text"] == (
        "How I want you to behave: Be honest with me.\n"
        "What matters most to me: creative and inspiring answers, facts, answers that do no harm.\n"
        "About me: I am 0.\n"
        "Facts: age 25-34 years old; gender Female; work Student; family Single; English Fluent."
    )
    assert report.counts["users"] == 20  # 99 completed nothing
    assert report.counts["conversations without a usable turn"] == 1
    assert report.table.set_index("user_id").pairs.to_dict() == {"user3": 4}


def test_prism_stranger_is_refused(prism_folder):
    write(prism_folder / "conversations.jsonl", [conversation(1, "user99")])
    refused("'c1' is of 'user99'", "prism", prism_folder)


def test_a_response_that_was_empty_is_dropped_and_counted(prism_folder):
    """The release writes it as "EMPTY STRING"."""
    talks = [conversation(10 * i + k, f"user{i}", turns=1) for i in range(10) for k in range(4)]
    talks[0]["conversation_history"][1]["content"] = "EMPTY STRING"  # rejected
    talks[1]["conversation_history"][2]["content"] = "EMPTY STRING"  # chosen, against three others
    write(prism_folder / "conversations.jsonl", talks)
    data, report = kit.data.load_with_report("prism", prism_folder)
    assert "EMPTY STRING" not in str([split.to_list() for split in data.values()])
    assert report.table[["reason", "pairs"]].to_dict("records") == [{"reason": "empty response", "pairs": 4}]
