"""Files of one's own: kinds, splits, columns, and what is refused."""

import gzip
import json

import pandas as pd
import pytest
from raw import pairs_of, write_json, write_lines, write_parquet

import prlhf_kit as kit


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


def test_csv_with_another_number_of_fields_is_refused(tmp_path):
    for line in ("ann,Q1,good,bad,note", "ann,Q1,good"):
        path = tmp_path / "x.csv"
        path.write_text(f"user_id,prompt,chosen,rejected\n{line}\n")
        with pytest.raises(kit.data.SchemaError, match="not as many fields as the header"):
            kit.data.load("files", path)


def test_whole_dialogues_and_wrong_roles(tmp_path):
    asked, yes, no = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "yes"), ("assistant", "no")))
    whole = {
        "user_id": "ann",
        "prompt": "Q?",
        "chosen": [asked, yes],
        "rejected": [asked, no],
    }  # as UltraFeedback has it
    data = kit.data.load("files", write_lines(tmp_path / "w.jsonl", [whole]), test_share=0)
    assert data["train"][0]["prompt"] == [asked]
    assert data["train"][0]["chosen"] == [yes]
    for wrong in ({"chosen": [asked]}, {"prompt": [asked, yes]}, {"chosen": [asked, yes], "rejected": "no"}):
        path = write_lines(
            tmp_path / "x.jsonl", [{"user_id": "a", "prompt": "Q?", "chosen": "y", "rejected": "n", **wrong}]
        )
        with pytest.raises(kit.data.SchemaError, match="has the roles"):
            kit.data.load("files", path, test_share=0)


def test_files_beside_named_splits_are_not_overlooked(tmp_path):
    row = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
    write_lines(tmp_path / "train.jsonl", [row])
    (tmp_path / "train_config.yaml").write_text("x: 1")  # no data
    assert len(kit.data.load("files", tmp_path)["train"]) == 1
    write_lines(tmp_path / "validation.jsonl", [row])
    with pytest.raises(kit.data.SchemaError, match=r"'validation.jsonl', of which the split is unknown"):
        kit.data.load("files", tmp_path)


def test_unseen_users_must_exist_and_may_be_one_name(tmp_path):
    rows = [
        {"user_id": u, "prompt": f"{u}{i}?", "chosen": "a", "rejected": "b"}
        for u in ("a", "an", "ann")
        for i in range(9)
    ]
    path = write_lines(tmp_path / "x.jsonl", rows)
    data = kit.data.load("files", path, unseen="ann", test_share=0.3)
    assert set(data["adapt_unseen"]["user_id"]) == {"ann"}
    assert set(data["train"]["user_id"]) == {"a", "an"}
    with pytest.raises(kit.data.SchemaError, match="no user 'zoe'"):
        kit.data.load("files", path, unseen=["zoe"])
    numbered = write_lines(tmp_path / "n.jsonl", [{**row, "user_id": len(row["user_id"])} for row in rows])
    assert set(kit.data.load("files", numbered, unseen=[2], test_share=0.3)["adapt_unseen"]["user_id"]) == {"2"}


def test_encodings_and_cut_files(tmp_path):
    row = {"user_id": "ann", "prompt": "Grüße?", "chosen": "a", "rejected": "b"}
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode())
    assert pairs_of(kit.data.load("files", tmp_path / "bom.jsonl", test_share=0))[0][1] == "Grüße?"
    whole = gzip.compress("\n".join(json.dumps(row) for _ in range(500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(kit.data.SchemaError, match="can't read"):
        kit.data.load("files", tmp_path / "cut.jsonl.gz")
    (tmp_path / "half.jsonl").write_text(json.dumps({**row, "chosen": "\ud83d"}))
    with pytest.raises(kit.data.SchemaError, match="surrogates"):
        kit.data.load("files", tmp_path / "half.jsonl")
