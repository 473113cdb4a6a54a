"""What all loaders share: the hub, refusals, options."""

import json

import numpy as np
import pytest
from raw import dialogue, write_lines, write_parquet

import prlhf_kit as kit
from prlhf_kit.data import compred
from prlhf_kit.data.collect import share


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("files", {"test_share": "abc"}, "from 0 to 1"),
        ("files", {"test_share": 2}, "from 0 to 1"),
        ("files", {"seed": -1}, "whole number, at least 0"),
        ("files", {"columns": "user_id"}, "can't be used as 'files'"),
        ("files", {"test_share": 1.0}, "gave no training pair"),
        ("tldr", {"top": 0}, "whole number, at least 1"),
        ("prism", {"max_characters": "a"}, "whole number"),
        ("dsp", {"domains": "music"}, "no domain 'music'"),
        ("compred", {}, "is a file; 'compred' needs the folder"),
        ("personalllm", {}, "is a file; 'personalllm' needs the folder"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(name, options, reason, tmp_path):
    row = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
    with pytest.raises(kit.data.SchemaError, match=reason):
        kit.data.load(name, write_lines(tmp_path / "x.jsonl", [row]), **options)


def test_hub_code_reads_prism_compred_and_personalllm(prism_folder, compred_folder, personalllm_folder, monkeypatch):
    root = prism_folder
    repository = root / "HannahRoseKirk" / "prism-alignment"
    repository.mkdir(parents=True)
    for name in ("survey", "conversations"):
        (root / f"{name}.jsonl").rename(repository / f"{name}.jsonl")
    configs = [{"config_name": c, "data_files": f"{c}.jsonl"} for c in ("survey", "conversations")]
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    monkeypatch.chdir(root)  # `datasets` looks for a local folder of that name first
    by_hub, by_path = kit.data.load("prism"), kit.data.load("prism", repository)
    assert kit.data.fingerprint(by_hub) == kit.data.fingerprint(by_path)
    by_hub, by_path = kit.data.load("compred"), kit.data.load("compred", compred_folder)
    assert kit.data.fingerprint(by_hub) == kit.data.fingerprint(by_path)
    assert len(compred.prompts()) == 5
    options = {"users": 5, "pairs_per_user": 5, "test_pairs_per_user": 5}
    by_hub = kit.data.load("personalllm", **options)
    assert kit.data.fingerprint(by_hub) == kit.data.fingerprint(
        kit.data.load("personalllm", personalllm_folder, **options)
    )


def test_hub_code_reads_converted_tldr_webgpt_and_hh(tldr_rows, tmp_path, monkeypatch):
    train, valid = tldr_rows
    root = tmp_path / "openai"
    write_parquet(root / "summarize_from_feedback" / "comparisons" / "train" / "0000.parquet", train)
    write_parquet(root / "summarize_from_feedback" / "comparisons" / "validation" / "0000.parquet", valid)
    rows = [
        {"question": {"full_text": f"Why {i}?"}, "answer_0": "a", "answer_1": "b", "score_0": 1.0, "score_1": -1.0}
        for i in range(5)
    ]
    write_parquet(root / "webgpt_comparisons" / "default" / "train" / "0000.parquet", rows)
    hh = tmp_path / "Anthropic" / "hh-rlhf"
    for split in ("train", "test"):
        pair = {"chosen": dialogue(f"{split}?", "Yes."), "rejected": dialogue(f"{split}?", "No.")}
        write_lines(hh / "helpful-base" / f"{split}.jsonl.gz", [pair])
    monkeypatch.chdir(tmp_path)
    assert set(kit.data.load("tldr", top=2)) == {"train", "test_seen", "test_unseen", "adapt_unseen"}
    assert sum(map(len, kit.data.load("webgpt", test_share=0).values())) == 5
    assert {split: len(rows) for split, rows in kit.data.load("hh", subset="helpful").items()} == {
        "train": 1,
        "test_seen": 1,
    }


@pytest.mark.parametrize("name", ["tldr", "prism", "compred", "hh", "webgpt", "personalllm"])
def test_unreachable_hub_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kit.data.SchemaError, match=r"hf download .* --local-dir DIR.* pass it as path"):
        kit.data.load(name)


@pytest.mark.parametrize("name", [n for n in kit.data.DATASETS if n != "simulated"])
def test_a_missing_path_says_what_was_expected(name, tmp_path):
    with pytest.raises(kit.data.SchemaError, match=r"expected|needs|nothing of"):
        kit.data.load(name, tmp_path / "nowhere")


def test_share_is_uniform_and_independent_of_the_process():
    values = np.array([share(0, "prompt", i) for i in range(4000)])
    assert abs(values.mean() - 0.5) < 0.03
    assert share(0, "a") == pytest.approx(0.08533998760926992)


def test_loaded_data_lie_on_disk(dsp_file):
    data = kit.data.load("dsp", dsp_file)
    assert all(split.cache_files for split in data.values())
