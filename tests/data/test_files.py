"""Files of one's own: kinds, splits, columns, and what is refused."""

import gzip
import json

import datasets
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from raw import pairs_of, refused, write

import prlhf_kit as kit
from prlhf_kit.cli import main
from prlhf_kit.data import sources

ROW = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
ASKED, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "yes"), ("assistant", "no")))


@pytest.mark.parametrize("kind", ["json", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_own_files(kind, tmp_path):
    rows = [{"who": i % 3, "question": f"Q{i}?", "good": f"a, b;{i}", "bad": f"b{i}", "about": "me"} for i in range(30)]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":  # as Excel writes it in Europe
        pd.DataFrame(rows).to_csv(path, index=False, sep=";", encoding="utf-8-sig")
    else:
        write(path, rows)
    columns = {"user_id": "who", "prompt": "question", "chosen": "good", "rejected": "bad", "user_text": "about"}
    data = kit.data.load("files", path, columns=columns)
    assert sorted(pair for split in data for pair in pairs_of(data, split)) == sorted(
        (str(row["who"]), row["question"], row["good"], row["bad"]) for row in rows
    )
    assert data["train"][0]["user_text"] == "me"
    refused(r'no column .user_id. .*option columns: \{"user_id": "your column"\}', "files", path)
    refused("is a text, expected JSON", "files", path, columns="{user_id: who}")
    refused("no user '1, 2'", "files", path, columns=columns, unseen="1, 2")  # a text is one name
    lacking = write(tmp_path / "lacking.jsonl", [ROW, {k: v for k, v in ROW.items() if k != "rejected"}])
    refused(r"row 1 .*no column 'rejected'.* fix the row", "files", lacking)


def test_splits_by_column_and_by_file_and_messages(tmp_path):
    row = {**ROW, "prompt": [ASKED]}
    write(tmp_path / "d" / "train.jsonl", [row])
    write(tmp_path / "d" / "test_seen-0.jsonl", [{**row, "prompt": "New?"}])
    (tmp_path / "d" / "train_config.yaml").write_text("x: 1")  # no data
    assert set(kit.data.load("files", tmp_path / "d")) == {"train", "test_seen"}
    mine = write(tmp_path / "m.csv", [{**row, "prompt": json.dumps(row["prompt"])}])
    assert kit.data.load("files", mine, test_share=0)["train"][0]["prompt"] == row["prompt"]
    write(tmp_path / "d" / "validation.jsonl", [row])
    refused(r"'validation.jsonl', which belongs to no known split", "files", tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", b'{"a":', "can't read"),
        ("x.json", b"[1, 2]", "row 0 is a int"),
        ("x.jsonl.gz", b"not gzip", "can't read"),
        ("cut.jsonl.gz", gzip.compress(json.dumps([ROW] * 500).encode(), mtime=0)[:40], "can't read"),
        ("x.parquet", b"PAR1 nothing", "can't read"),
        ("x.txt", b"hello", "unknown kind"),
        ("x.json", b"", "gave no training pair"),
        ("x.csv", b"user_id,prompt,chosen,rejected\nann,Q1,good", "not as many fields as the header"),
    ],
)
def test_damaged_files_are_refused(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(reason, "files", tmp_path / name)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chosen": [ASKED]}, r"pair_id 'row-1'.*begins with role 'assistant', not the roles \['user'\]"),
        ({"user_id": 1.5}, "pair 'row-1' of user 1.5 does not fit the record"),
        ({"user_id": None}, r"'row-1'\), column 'user_id' is '' \(str\), expected non-empty text"),
        ({"split": "dev"}, "row 1 of .*split 'dev', expected one of"),
        ({"chosen": "cut \ud83d"}, "x.jsonl: row 1, field 'chosen': .*half a char"),
        ({"\ud83d": 1}, "row 1, field .* half a character"),
        ({"rejected": [{"role": "assistant", "content": 3}]}, "pair 'row-1' of user 'ann' does not fit the record"),
    ],
)
def test_a_row_that_cant_be_used_is_named(changed, reason, tmp_path):
    path = write(tmp_path / "x.jsonl", [ROW, {**ROW, "prompt": "R?", **changed}, {**ROW, "prompt": "S?"}])
    refused(reason, "files", path, test_share=0)


def test_whole_dialogues_and_nulls(tmp_path):
    whole = {"user_id": "ann", "chosen": [ASKED, YES], "rejected": [ASKED, NO]}  # TRL's implicit prompts
    rows = [whole, {**ROW, "chosen": None}, {**ROW, "rejected": [{"role": "assistant", "content": None}]}]
    data, report = kit.data.load_with_report("files", write(tmp_path / "w.jsonl", rows), test_share=0)
    [row] = data["train"]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ([ASKED], [YES], [NO])
    assert report.table[["reason", "pairs"]].to_numpy().tolist() == [["empty response", 2]]
    texts = {name: json.dumps(value) if isinstance(value, list) else value for name, value in whole.items()}
    assert kit.data.load("files", write(tmp_path / "w.csv", [texts]), test_share=0)["train"][0] == row
    twice = [*whole["chosen"], {**ASKED, "content": "And?"}]
    talk = {**whole, "chosen": [*twice, YES], "rejected": [*twice, NO, ASKED, NO]}
    [row] = kit.data.load("files", write(tmp_path / "t.jsonl", [talk]), test_share=0)["train"]
    assert (row["prompt"], row["chosen"], len(row["rejected"])) == (twice, [YES], 3)


@pytest.mark.parametrize("text", ['[{"name": "Ann"}, {"name": "Bob"}]', '[{"role": "user"}]', '[{"a": 1}, 2]'])
def test_a_text_that_is_json_stays_text(text, tmp_path):
    path = write(tmp_path / "x.jsonl", [{**ROW, "prompt": text}])
    [row] = kit.data.load("files", path, test_share=0)["train"]
    assert [m["content"] for m in row["prompt"]] == [text]


def test_a_test_split_is_test_seen_and_that_is_said(tmp_path, caplog):
    rows = [{**ROW, "worker": "ann", "prompt": f"{i}?"} for i in range(4)]
    mine = DatasetDict(train=Dataset.from_list(rows[:3]), test=Dataset.from_list(rows[3:]))
    mine.save_to_disk(tmp_path / "saved")
    write(tmp_path / "hub" / "dataset_infos.json", {})
    for split, part in mine.items():  # the hub's layout
        write(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", part.to_list())
    by_column = write(tmp_path / "x.jsonl", [row | {"split": s} for s in mine for row in mine[s]])
    for path in (mine, tmp_path / "saved", tmp_path / "hub", by_column):
        data = kit.data.load("files", path, columns={"user_id": "worker"})
        assert {split: len(part) for split, part in data.items()} == {"train": 3, "test_seen": 1}
    assert caplog.text.count("'test' (1 pairs) is taken as test_seen") == 4
    assert len(kit.data.load(mine["train"], test_share=0)["train"]) == 3


def test_a_field_that_is_null_at_first_and_texts_that_look_like_dates(tmp_path):
    """Why `datasets` does not read the JSON: in a large file it refuses the first, and it makes the second dates."""
    rows = [{**ROW, "prompt": f"{i}?", "chosen": "2020-01-01", "user_text": i and "I teach."} for i in (None, 1)]
    data = kit.data.load("files", write(tmp_path / "x.jsonl", rows), test_share=0)
    assert data["train"]["user_text"] == [None, "I teach."]
    assert data["train"][0]["chosen"][0]["content"] == "2020-01-01"


def test_a_dataset_of_the_hub_by_its_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(r"no file or folder here.*`hf download org/name.* pass DIR as path", "files", "org/name")
    hub = tmp_path / "hub" / "org" / "name"
    for split, prompts in {"train": "ab", "test": "c"}.items():
        write(hub / "data" / f"{split}-0.parquet", [{**ROW, "prompt": p, "worker": 7} for p in prompts])
    given = []

    def load_dataset(name, config, **options):
        given.append((name, config))
        return datasets.load_dataset(str(hub.parents[1] / name), config, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    data = kit.data.load("files", "org/name", columns={"user_id": "worker"}, config="default")
    assert {split: part["user_id"] for split, part in data.items()} == {"train": ["7", "7"], "test_seen": ["7"]}
    assert given == [("org/name", "default")]
    prepare = ["data", "prepare", "files", "--path", "org/name", "--out", str(tmp_path / "out")]
    assert main([*prepare, "-o", "columns", '{"user_id": "worker"}']) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["path"] == "org/name"
