"""TL;DR with workers, on rows of its real schema."""

import numpy as np
import pytest
from datasets import Dataset
from raw import comparison, pairs_of, write_lines, write_parquet

import prlhf_kit as kit


@pytest.mark.parametrize("choice", [None, 2, True])
def test_a_choice_that_is_none_is_no_choice(choice, tmp_path):
    rows = [comparison(i, "ann") for i in range(3)]
    rows[1]["choice"] = choice
    with pytest.raises(kit.data.SchemaError, match="choice is"):
        kit.data.load("tldr", write_lines(tmp_path / "batch1.json", rows))


def test_tldr_from_save_to_disk_folders_and_news_articles(tmp_path):
    for split, name in (("train", "train"), ("validation", "valid1")):
        rows = [comparison(f"{split}{i}", "ann", name) for i in range(3)]
        rows[1]["info"] |= {"post": None, "article": "News.", "subreddit": None, "title": None}
        rows[2]["info"] |= {"post": None}
        Dataset.from_list(rows).save_to_disk(tmp_path / split)
    data, report = kit.data.load_with_report("tldr", tmp_path)
    assert [pair[1][:15] for pair in pairs_of(data)] == ["SUBREDDIT: r/ti", "ARTICLE: News.\n"]
    assert "empty prompt" in set(report.table.reason)


def test_tldr_real(tldr_rows, tmp_path):
    for split, rows in zip(("train", "validation"), tldr_rows, strict=True):
        write_parquet(tmp_path / "comparisons" / split / "0000.parquet", rows)
    data, report = kit.data.load_with_report("tldr", tmp_path, top=2)
    assert set(data["train"]["user_id"]) == {"ann", "bob"}
    assert data["adapt_unseen"]["user_id"] == ["cy"]
    assert sorted(data["test_unseen"]["user_id"]) == ["cy", "dee"]
    asked = "SUBREDDIT: r/tifu\nTITLE: Title 1\nPOST: Post 1.\nTL;DR: "
    assert pairs_of(data)[1] == ("ann", asked, "A much longer summary.", "Short one.")
    assert report.counts["comparisons, train"] == 10
    assert len(data["train"]) == 9  # no policy filter in this mode


def test_tldr_preferences_are_p_rlhfs(tmp_path):
    """Counts of the ten workers and of those who prefer longer summaries in P-RLHF's released notebook."""
    train = [5245, 2920, 2437, 2366, 2200, 2126, 1824, 1606, 1366, 1209]
    valid = [1175, 643, 381, 604, 586, 360, 321, 263, 177, 411]
    rows = [comparison(f"{w}-{i}", f"w{w}") for w in range(10) for i in range(10 - w)]  # the same ranks
    data = kit.data.load("tldr", write_lines(tmp_path / "batch3.json", rows), mode="synthetic")
    taste = dict(zip(data["train"]["user_id"], data["train"]["group"], strict=True))
    longer = [taste[f"w{w}"] == "longer" for w in range(10)]
    assert np.array(train)[longer].sum() == 16607
    assert np.array(valid)[longer].sum() == 3371
