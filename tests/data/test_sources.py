"""The loaders on real files, where they are there (`../shared/data`; the README says where to get the full sets)."""

import functools
from pathlib import Path

import pytest

import prlhf_kit as kit
from prlhf_kit.data import dsp, psoups
from prlhf_kit.data.sources import read_rows

REAL = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")

# name, path, options, pairs by split, counts
CASES = [
    ("dsp", "dsp/domain_specific_preference.json", {}, 10_608, {"queries": 541}),
    ("hh", "dsp", {"subset": "helpful"}, 1_997, {"helpful, all": 2_000}),
    ("hh", "dsp", {"subset": "harmless"}, 1_962, {"harmless, all": 1_966}),
    ("webgpt", "dsp", {}, 565, {"comparisons": 766}),
    ("hh_relabelled", "hh_relabelled", {}, 3_363, {"pairs": 3_370}),
    ("prefeval", "prefeval", {}, 2_541, {"questions": 885, "topics": 20}),
]


@functools.cache
def loaded(name, path, **options):
    """Data and report, read once for all tests."""
    return kit.data.load_with_report(name, REAL / path, **options)


@pytest.mark.parametrize(("name", "path", "options", "pairs", "counts"), CASES)
def test_real_files_load_and_every_pair_is_accounted_for(name, path, options, pairs, counts, tokenizer):
    data, report = loaded(name, path, **options)
    assert report.kept == sum(map(len, data.values())) == pairs
    assert report.counts == counts
    per_row = {"dsp": 20, "prefeval": 3}.get(name, 1)
    assert pairs + report.table.pairs.sum() == per_row * next(iter(counts.values()))
    for split in data.values():
        for row in split:
            assert row["prompt"][-1]["role"] == "user"
            roles = [m["role"] for m in row["prompt"] if m["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]  # every template takes that
            assert "Human:" not in row["prompt"][0]["content"][:10]
    again = kit.data.load(name, REAL / path, **options)
    assert kit.data.fingerprint(again) == kit.data.fingerprint(data)


def test_webgpt_ties_and_hh_dialogues():
    _, report = loaded("webgpt", "dsp")
    assert report.table[["reason", "pairs"]].to_dict("records") == [{"reason": "tie", "pairs": 201}]
    data, _ = loaded("hh", "dsp", subset="helpful")
    assert max(len(prompt) for prompt in data["train"]["prompt"]) > 5


def test_dsp_lengths_are_the_known_confound():
    """In DSP's test set the domains' responses average 716 to 791 characters, `normal` 351; here 541 of 661 rows."""
    rows = list(read_rows([REAL / "dsp" / "domain_specific_preference.json"]))
    mean = {d: sum(len(row["responses"][d]) for row in rows) / len(rows) for d in dsp.DOMAINS}
    assert mean.pop("normal") == pytest.approx(351, abs=5)
    assert all(700 < characters < 800 for characters in mean.values())


def test_orientation_on_real_files():
    """Chosen and rejected are those of the source, found again by their texts."""
    rows = list(read_rows([REAL / "hh_relabelled" / "both.jsonl.gz"]))
    stated = {(row["objective"], row["chosen"].strip()[-60:], row["rejected"].strip()[-60:]) for row in rows}
    data, _ = loaded("hh_relabelled", "hh_relabelled")
    for row in data["test_seen"]:
        assert (row["user_id"], row["chosen"][0]["content"][-60:], row["rejected"][0]["content"][-60:]) in stated or (
            len(row["chosen"][0]["content"]) < 60 or len(row["rejected"][0]["content"]) < 60
        )
    scored = {}
    for row in read_rows([REAL / "dsp" / "webgpt.json"]):
        scored |= {
            text.split("## Assistant:\n")[-1].strip(): score
            for text, score in zip(row["text"], row["score"], strict=True)
        }
    for row in loaded("webgpt", "dsp")[0]["train"]:
        assert scored[row["chosen"][0]["content"]] > scored[row["rejected"][0]["content"]]
    right = {row["classification_task_options"][0] for row in read_rows([REAL / "prefeval" / "mcq_options.json"])}
    assert {row["chosen"][0]["content"] for row in loaded("prefeval", "prefeval")[0]["train"]} <= right


def test_koala_prompts_are_there_for_generation():
    prompts = psoups.prompts(REAL / "prompts")
    assert len(prompts) == len(set(prompts["prompt_id"])) == 50
    assert prompts[0]["prompt"][0]["content"].startswith("List the layers of the TCP/IP model")
