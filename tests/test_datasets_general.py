"""Loaders of text-score files, general sets and files of one's own, on rows of their real schema."""

import json

import pandas as pd
import pytest
from raw import dialogue, pairs_of, write_json, write_lines, write_parquet

import prlhf_kit as kit
from prlhf_kit.data import dsp
from prlhf_kit.data.dialogue import NotAPair, common_prompt, layout, parse, write_text_score

# DSP and text-score --------------------------------------------------------------------------------------------------


def test_dsp_pairs(dsp_file):
    data = kit.data.load("dsp", dsp_file)
    rows = [pair for split in data for pair in pairs_of(data, split)]
    assert len(rows) == 40 * 5 * 4
    assert all(chosen.startswith(user) and not rejected.startswith(user) for user, _, chosen, rejected in rows)
    train, test = ({q for _, q, _, _ in pairs_of(data, split)} for split in ("train", "test_seen"))
    assert len(train) + len(test) == 40
    assert not train & test
    two = kit.data.load("dsp", dsp_file, domains=["academy", "business"], unseen=["business"])
    assert set(two["train"]["user_id"]) == {"academy"}
    assert set(two["adapt_unseen"]["user_id"]) == {"business"}


def test_dsp_listwise_and_text_score_round_trip(dsp_file, tmp_path):
    lists = dsp.listwise(dsp_file, domains=["academy"])
    assert set(lists) == {"train", "test_seen"}
    row = lists["train"][0]
    assert row["scores"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert row["responses"][1][0]["content"].startswith("business")
    write_text_score(lists["train"], tmp_path / "lists.json")
    [first, *_] = json.loads((tmp_path / "lists.json").read_text())
    assert first["text"][0].startswith("## Human:\nQuestion")
    assert first["score"] == row["scores"]
    pairs = kit.data.load("dsp", dsp_file, domains=["academy"])
    write_text_score(pairs["train"], tmp_path / "pairs.json")
    back = kit.data.load("dsp", tmp_path / "pairs.json", domain="academy", test_share=0)
    assert sorted(pairs_of(back)) == sorted(pairs_of(pairs))
    from_lists = kit.data.load("dsp", tmp_path / "lists.json", domain="academy", test_share=0)
    assert sorted(pairs_of(from_lists)) == sorted(pairs_of(pairs))
    with pytest.raises(kit.data.SchemaError, match="does not say whose pairs"):
        kit.data.load("dsp", tmp_path / "pairs.json")


def test_dsp_train_and_test_files(dsp_file, tmp_path):
    rows = json.loads(dsp_file.read_text())
    write_json(tmp_path / "two" / "domain_specific_preference.train.json", rows[:30])
    write_json(tmp_path / "two" / "domain_specific_preference.test.json", rows[29:])  # one query is in both
    data, report = kit.data.load_with_report("dsp", tmp_path / "two")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 600, "test_seen": 200}
    assert report.checks.set_index("check").pairs["prompt in train and test"] == 20
    assert report.counts == {"queries, train": 30, "queries, test": 11}


def test_text_marks_and_what_is_no_pair():
    assert parse("\n\nHuman: A\n\nB\n\nAssistant: C") == parse("## Human:\nA\n\nB\n\n## Assistant:\nC")
    joined = parse("\n\nHuman: A\n\nAssistant: B\n\nAssistant: C")
    assert joined[1] == {"role": "assistant", "content": "B\n\nC"}
    for texts, reason in {
        ("\n\nHuman: A\n\nAssistant: B", "\n\nHuman: X\n\nAssistant: B"): "differ before",
        ("\n\nHuman: A\n\nAssistant: B\n\nHuman: C", "\n\nHuman: A\n\nAssistant: D"): "does not end with the assistant",
        ("\n\nAssistant: A", "\n\nAssistant: B"): "does not begin with the human",
        ("just text", "\n\nHuman: A\n\nAssistant: D"): "without Human",
    }.items():
        with pytest.raises(NotAPair, match=reason):
            common_prompt(*texts)
    dialogue = parse("\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D")
    assert parse(layout(dialogue[:-1], dialogue[-1:])) == dialogue


# General sets --------------------------------------------------------------------------------------------------------


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


def test_webgpt_original(tmp_path):
    rows = [
        {"question": {"dataset": "eli5", "id": str(i), "full_text": f"Why {i}?"}, "quotes_0": {"title": []},
         "answer_0": f"Zero {i}.", "answer_1": f"One {i}.", "score_0": s, "score_1": -s}
        for i, s in enumerate([0.5, -0.25, 0.0, 1.0, -1.0, 0.5])
    ]  # fmt: skip
    data, report = kit.data.load_with_report("webgpt", write_lines(tmp_path / "webgpt.jsonl", rows), test_share=0.4)
    found = {question: chosen for split in data for _, question, chosen, _ in pairs_of(data, split)}
    assert found == {
        "Why 0?": "Zero 0.",
        "Why 1?": "One 1.",
        "Why 3?": "Zero 3.",
        "Why 4?": "One 4.",
        "Why 5?": "Zero 5.",
    }
    assert report.table.reason.tolist() == ["tie"]
    assert report.counts == {"comparisons": 6}


def test_gpt4llm_original(tmp_path):
    rows = [
        {"user_input": f"Do {i}.", "responses_and_scores": [
            {"response": f"gpt4 {i}", "source": "gpt4", "score": 9},
            {"response": f"text {i}", "source": "davinci", "score": 7},
            {"response": f"opt {i}", "source": "OPT", "score": 7}]}
        for i in range(10)
    ]  # fmt: skip
    data, report = kit.data.load_with_report("gpt4llm", write_json(tmp_path / "comparison_data_v2.json", rows))
    assert sum(map(len, data.values())) == 20
    assert report.table.pairs.sum() == 10  # ties
    assert all(chosen.startswith("gpt4") for split in data for _, _, chosen, _ in pairs_of(data, split))
    scored = [{"text": [layout([{"role": "user", "content": f"Do {i}."}], [{"role": "assistant", "content": a}])
                        for a in ("good", "bad")], "score": [1.0, 0.2]} for i in range(4)]  # fmt: skip
    write_json(tmp_path / "d" / "gpt4llm.train.json", scored[:3])
    write_json(tmp_path / "d" / "gpt4llm.test.json", scored[3:])
    cleaned = kit.data.load("gpt4llm", tmp_path / "d")
    assert {split: len(rows) for split, rows in cleaned.items()} == {"train": 3, "test_seen": 1}


def test_hh_relabelled(tmp_path):
    rows = [
        {"Index": i, "chosen": f"Human: Q{i}?\n\nAssistant: a", "rejected": f"Human: Q{i}?\n\nAssistant: b",
         "data_subset": "harmless", "objective": ("helpful", "harmless")[i % 2]}
        for i in range(40)
    ]  # fmt: skip
    rows.append(
        {**rows[0], "Index": 40, "objective": "harmless", "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    )
    data, report = kit.data.load_with_report("hh_relabelled", write_lines(tmp_path / "both.jsonl.gz", rows))
    assert report.table.empty  # two users may rank a prompt in opposite ways
    assert {pair[0] for pair in pairs_of(data) if pair[1] == "Q0?"} in ({"helpful", "harmless"}, set())
    assert sum(map(len, data.values())) == 41
    with pytest.raises(kit.data.SchemaError, match="objective of row 0 is 'fun'"):
        kit.data.load("hh_relabelled", write_lines(tmp_path / "x.jsonl", [{**rows[0], "objective": "fun"}]))


def test_prefeval(tmp_path):
    rows = [
        {"topic": f"topic{i % 3}", "preference": f"I like {i}.", "question": f"Which {i}?", "explanation": "",
         "classification_task_options": [f"right {i}", f"wrong {i}", f"bad {i}", f"no {i}"]}
        for i in range(30)
    ]  # fmt: skip
    data = kit.data.load("prefeval", write_json(tmp_path / "mcq.json", rows))
    assert set(data) == {"train", "test_unseen"}
    assert not set(data["train"]["user_id"]) & set(data["test_unseen"]["user_id"])
    assert sum(map(len, data.values())) == 90
    row = data["train"][0]
    assert row["chosen"][0]["content"].startswith("right")
    assert row["user_text"] == "I like 0."
    assert row["group"] == "topic0"


# One's own files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_own_files(kind, tmp_path):
    rows = [{"who": i % 3, "question": f"Q{i}?", "good": f"g{i}", "bad": f"b{i}", "about": "me"} for i in range(30)]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif kind == "parquet":
        write_parquet(path, rows)
    elif kind == "json":
        write_json(path, rows)
    else:
        write_lines(path, rows)
    columns = {"user_id": "who", "prompt": "question", "chosen": "good", "rejected": "bad", "user_text": "about"}
    data = kit.data.load("files", path, columns=columns)
    assert sorted(pair for split in data for pair in pairs_of(data, split)) == sorted(
        (str(row["who"]), row["question"], row["good"], row["bad"]) for row in rows
    )
    assert data["train"][0]["user_text"] == "me"
    with pytest.raises(
        kit.data.SchemaError, match=r"no column 'user_id' for 'user_id'.*columns=\{'user_id': 'your column'\}"
    ):
        kit.data.load("files", path)


def test_own_files_with_splits_and_messages(tmp_path):
    row = {"user_id": "ann", "prompt": [{"role": "user", "content": "Q?"}], "chosen": "a", "rejected": "b"}
    write_lines(tmp_path / "d" / "train.jsonl", [row])
    write_lines(tmp_path / "d" / "test_seen.jsonl", [{**row, "prompt": "New?"}])
    assert set(kit.data.load("files", tmp_path / "d")) == {"train", "test_seen"}
    one = write_lines(
        tmp_path / "one.jsonl", [{**row, "split": "train"}, {**row, "prompt": "New?", "split": "test_seen"}]
    )
    assert set(kit.data.load("files", one)) == {"train", "test_seen"}
    pd.DataFrame([{**row, "prompt": json.dumps(row["prompt"])}]).to_csv(tmp_path / "m.csv", index=False)
    assert kit.data.load("files", tmp_path / "m.csv", test_share=0)["train"][0]["prompt"] == row["prompt"]
    with pytest.raises(kit.data.SchemaError, match="split 'dev', expected one of"):
        kit.data.load("files", write_lines(tmp_path / "dev.jsonl", [{**row, "split": "dev"}]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", b'{"a":', "can't read"),
        ("x.json", b"[1, 2]", "holds a int"),
        ("x.jsonl.gz", b"not gzip", "can't read"),
        ("x.parquet", b"PAR1 nothing", "can't read"),
        ("x.txt", b"hello", "unknown kind"),
        ("x.jsonl", b"\xff\xfe\x00", "can't read"),
        ("x.json", b"", "gave no pairs"),
    ],
)
def test_damaged_files_are_refused(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kit.data.SchemaError, match=reason):
        kit.data.load("files", tmp_path / name)
