"""`load`: options, errors in rows, the hub, real files."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from raw import dialogue, refused, write

import prlhf_kit as kit
from prlhf_kit.data.registry import DATASETS, share

OWN = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("simulatd", {}, "Did you mean 'simulated'"),
        ("tldr", {"moed": "real"}, "Did you mean 'mode'"),
        ("tldr", {"mode": "fake"}, "no mode 'fake'. There are: real, synthetic"),
        ("files", {"test_share": 1.0}, "gave no training pair, only pairs of .*test_seen"),
        ("prism", {}, "is a file; 'prism' needs the folder"),
        ("dsp", {"domains": "music"}, "no domain 'music'"),
        ("dsp", {}, "row 0 of .*x.jsonl can't be used as 'dsp': it has no column 'query', only .*'user_id'"),
        ("simulated", {}, "takes no path"),
    ],
)
def test_names_options_and_rows_that_cant_be_used(name, options, reason, tmp_path):
    refused(reason, name, write(tmp_path / "x.jsonl", [OWN]), **options)


@pytest.mark.parametrize("name", [name for name, card in DATASETS.items() if name != "simulated"])
def test_without_a_path_the_way_to_the_data_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(r"(hf download .* --local-dir DIR|is not on the hub).* path", name)
    refused("no such file or folder; expected", name, tmp_path / "nowhere")


def test_the_hub_gives_what_local_files_give(
    prism_folder, compred_folder, personalllm_folder, tldr_folder, tmp_path, monkeypatch
):
    for split in ("train", "test"):
        pair = {"chosen": dialogue(f"{split}?", "Yes."), "rejected": dialogue(f"{split}?", "No.")}
        write(tmp_path / "Anthropic" / "hh-rlhf" / "helpful-base" / f"{split}.jsonl.gz", [pair])
    monkeypatch.chdir(tmp_path)  # `datasets` looks for a local folder of that name first
    few = {"users": 5, "pairs_per_user": 5, "test_pairs_per_user": 5}
    for name, path, options in (
        ("prism", prism_folder, {}),
        ("compred", compred_folder, {"factors": "history"}),
        ("personalllm", personalllm_folder, few),
        ("tldr", tldr_folder, {"top": 2}),
        ("hh", tmp_path / "Anthropic" / "hh-rlhf", {"subset": "helpful"}),
    ):
        by_hub, by_path = kit.data.load(name, **options), kit.data.load(name, path, **options)
        assert kit.data.fingerprint(by_hub) == kit.data.fingerprint(by_path), name
        assert all(split.cache_files for split in by_hub.values())  # they lie on disk


def test_a_damaged_split_is_named(tmp_path):
    data = kit.data.load(DatasetDict(train=Dataset.from_list([OWN])))
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "prepared").mkdir()
    data["train"].to_parquet(tmp_path / "prepared" / "train.parquet")
    for file in (*(tmp_path / "saved").rglob("*.arrow"), tmp_path / "prepared" / "train.parquet"):
        file.write_bytes(file.read_bytes()[:100])
        refused(r"can't read .*train.*cut off", str(tmp_path / file.relative_to(tmp_path).parts[0]))


def test_share_is_independent_of_the_process():
    assert share(0, "a") == pytest.approx(0.08533998760926992)


def test_contributing_adds_a_dataset(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = page.split("## Add a dataset")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.setitem(DATASETS, "mine", None)  # so that it goes again
    exec(code, {})
    rows = [{"who": "ann", "question": f"Q{i}?", "better": "a", "worse": "b"} for i in range(9)]
    data, report = kit.data.load_with_report("mine", write(tmp_path / "train.jsonl", rows), test_share=0)
    assert len(data["train"]) == 9
    assert report.counts == {"rows": 9}
    assert str(report) == "...; licence: MIT\n9 pairs kept, none dropped"


# Real files, where they are there (`../shared/data`; its README says where to get the full sets) ----------------------

REAL = Path(__file__).parents[3] / "shared" / "data"
CASES = [  # name, path, options, pairs, counts, pairs a row
    ("dsp", "dsp/domain_specific_preference.json", {"domains": ["academy", "normal"]}, 4_242, {"queries": 541}, 8),
    ("hh", "dsp", {"subset": "harmless"}, 1_962, {"harmless": 1_966}, 1),
    ("webgpt", "dsp", {}, 565, {"comparisons": 766}, 1),
    ("hh_relabelled", "hh_relabelled", {}, 3_363, {"pairs": 3_370}, 1),
    ("prefeval", "prefeval", {}, 2_541, {"questions": 885}, 3),
]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")
@pytest.mark.parametrize(("name", "path", "options", "pairs", "counts", "per_row"), CASES)
def test_real_files_load_and_every_pair_is_accounted_for(name, path, options, pairs, counts, per_row):
    data, report = kit.data.load_with_report(name, REAL / path, **options)
    assert report.kept == sum(map(len, data.values())) == pairs
    assert report.counts == counts
    assert pairs + report.table.pairs.sum() == per_row * next(iter(counts.values()))
    for prompt in data["train"]["prompt"]:
        roles = [m["role"] for m in prompt if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]  # every template takes that
