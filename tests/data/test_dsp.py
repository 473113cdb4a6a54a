"""DSP: pairs and lists of domains, from the original file and the text-score form."""

import json

from raw import pairs_of, write

import prlhf_kit as kit


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


def test_dsp_train_and_test_files(dsp_file, tmp_path):
    rows = json.loads(dsp_file.read_text())
    write(tmp_path / "two" / "domain_specific_preference.train.json", rows[:30])
    write(tmp_path / "two" / "domain_specific_preference.test.json", rows[29:])  # one query is in both
    data, report = kit.data.load_with_report("dsp", tmp_path / "two")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 600, "test_seen": 200}
    assert report.checks.set_index("check").pairs["prompt in train and test"] == 20
    assert report.counts == {"queries, train": 30, "queries, test": 11}
