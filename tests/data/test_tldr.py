"""TL;DR with workers, on rows of its real schema."""

import pytest
from datasets import Dataset
from raw import comparison, pairs_of, refused, write

import prlhf_kit as kit


@pytest.mark.parametrize("choice", [None, 2, True])
def test_a_choice_that_is_none_is_no_choice(choice, tmp_path):
    rows = [comparison(i, "ann") for i in range(3)]
    rows[1]["choice"] = choice
    refused("choice is", "tldr", write(tmp_path / "batch1.json", rows))


def test_tldr_from_save_to_disk_folders_and_news_articles(tmp_path):
    for split, name in (("train", "train"), ("validation", "valid1")):
        rows = [comparison(f"{split}{i}", "ann", name) for i in range(3)]
        rows[1]["info"] |= {"post": None, "article": "News.", "subreddit": None, "title": None}
        rows[2]["info"] |= {"post": None}
        Dataset.from_list(rows).save_to_disk(tmp_path / split)
    data, report = kit.data.load_with_report("tldr", tmp_path)
    assert [pair[1][:15] for pair in pairs_of(data)] == ["SUBREDDIT: r/ti", "ARTICLE: News.\n"]
    assert "empty prompt" in set(report.table.reason)


def test_tldr_real(tldr_folder):
    data, report = kit.data.load_with_report("tldr", tldr_folder, top=2)
    assert set(data["train"]["user_id"]) == {"ann", "bob"}
    assert data["adapt_unseen"]["user_id"] == ["cy"]
    assert sorted(data["test_unseen"]["user_id"]) == ["cy", "dee"]
    asked = "SUBREDDIT: r/tifu\nTITLE: Title 1\nPOST: Post 1.\nTL;DR: "
    assert pairs_of(data)[1] == ("ann", asked, "A much longer summary.", "Short one.")
    assert report.counts["comparisons, train"] == 10
    assert len(data["train"]) == 9  # no policy filter in this mode
