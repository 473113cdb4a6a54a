"""HH, original, cleaned and relabelled."""

import pytest
from raw import dialogue, pairs_of, write_json, write_lines

import prlhf_kit as kit


def test_hh_original_and_cleaned(tmp_path):
    for subset in ("helpful", "harmless"):
        for split, n in (("train", 6), ("test", 3)):
            asked = [f"{subset} {split} {i}?" for i in range(n)]
            rows = [{"chosen": dialogue(question, "Yes."), "rejected": dialogue(question, "No.")} for question in asked]
            rows.append({"chosen": dialogue("A", "x"), "rejected": dialogue("B", "y")})
            write_lines(tmp_path / "hub" / f"{subset}-base" / f"{split}.jsonl.gz", rows)
            scored = [{"text": [r["rejected"], r["chosen"]], "score": [0.0, 1.0]} for r in rows]
            scored.append({"text": [dialogue("C", "x"), dialogue("C", "y")], "score": [1.0, 1.0]})
            write_json(tmp_path / "dsp" / f"{subset}.{split}.json", scored)
    data, report = kit.data.load_with_report("hh", tmp_path / "hub")
    cleaned, cleaned_report = kit.data.load_with_report("hh", tmp_path / "dsp")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 12, "test_seen": 6}
    for split in data:
        assert pairs_of(data, split) == pairs_of(cleaned, split)
    assert report.counts["helpful, train"] == 7
    differ = "the dialogues differ before their last answer"
    assert report.table.groupby("reason").pairs.sum().to_dict() == {differ: 4}
    assert cleaned_report.table.groupby("reason").pairs.sum().to_dict() == {differ: 4, "tie": 4}
    assert set(data["train"]["user_id"]) == {"general"}
    only = kit.data.load("hh", tmp_path / "hub", subset="harmless")
    assert all(question.startswith("harmless") for _, question, _, _ in pairs_of(only))
    with pytest.raises(kit.data.SchemaError, match="nothing of the subset 'helpful'"):
        kit.data.load("hh", tmp_path)


def test_hh_relabelled(tmp_path):
    rows = [
        {
            "Index": i,
            "chosen": f"Human: Q{i}?\n\nAssistant: a",
            "rejected": f"Human: Q{i}?\n\nAssistant: b",
            "data_subset": "harmless",
            "objective": ("helpful", "harmless")[i % 2],
        }
        for i in range(40)
    ]
    rows.append(
        {**rows[0], "Index": 40, "objective": "harmless", "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    )
    data, report = kit.data.load_with_report("hh_relabelled", write_lines(tmp_path / "both.jsonl.gz", rows))
    assert report.table.empty  # two users may rank a prompt in opposite ways
    assert {pair[0] for pair in pairs_of(data) if pair[1] == "Q0?"} in ({"helpful", "harmless"}, set())
    assert sum(map(len, data.values())) == 41
    with pytest.raises(kit.data.SchemaError, match="objective of row 0 is 'fun'"):
        kit.data.load("hh_relabelled", write_lines(tmp_path / "x.jsonl", [{**rows[0], "objective": "fun"}]))


def test_turns_of_one_dialogue_stay_in_one_split(tmp_path):
    rows = []
    for i in range(60):
        first = dialogue(f"Start {i}", "ok")
        for text in (f"\n\nHuman: Start {i}", f"{first}\n\nHuman: And then?"):
            rows.append({"chosen": f"{text}\n\nAssistant: yes {i}", "rejected": f"{text}\n\nAssistant: no"})
    path = write_lines(tmp_path / "helpful.jsonl", rows)
    data = kit.data.load("hh", path, test_share=0.3)
    first = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in data.items()}
    assert not first["train"] & first["test_seen"]
    assert len(data["test_seen"]) > 10
