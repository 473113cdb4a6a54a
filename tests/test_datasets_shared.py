"""What all loaders share: the hub, refusals, few-shot sets, prepared folders, the command line."""

import json
from itertools import combinations

import numpy as np
import pytest
from datasets import DatasetDict, load_dataset
from raw import dialogue, write_lines, write_parquet

import prlhf_kit as kit
from prlhf_kit.data import compred
from prlhf_kit.data.collect import share

# The hub, from repositories of the real layout in the working folder -------------------------------------------------


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
    rows = [{"question": {"full_text": f"Why {i}?"}, "answer_0": "a", "answer_1": "b", "score_0": 1.0, "score_1": -1.0}
            for i in range(5)]  # fmt: skip
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


# What all share ------------------------------------------------------------------------------------------------------


def test_share_is_uniform_and_independent_of_the_process():
    values = np.array([share(0, "prompt", i) for i in range(4000)])
    assert abs(values.mean() - 0.5) < 0.03
    assert share(0, "a") == pytest.approx(0.08533998760926992)


def test_few_shot_is_nested(personalllm_folder):
    data = kit.data.load("personalllm", personalllm_folder, users=10, pairs_per_user=20, test_pairs_per_user=10)
    sets = {k: kit.data.few_shot(data, k) for k in (1, 2, 5, 20)}
    for k, rows in sets.items():
        assert len(rows) == 2 * k
        assert set(rows["user_id"]) == {"user-8", "user-9"}
    for a, b in combinations(sets, 2):
        assert set(sets[a]["pair_id"]) < set(sets[b]["pair_id"])
    assert set(sets[5]["pair_id"]) != set(kit.data.few_shot(data, 5, seed=1)["pair_id"])
    backwards = DatasetDict({**data, "adapt_unseen": data["adapt_unseen"].select(range(39, -1, -1))})
    assert set(kit.data.few_shot(backwards, 5)["pair_id"]) == set(sets[5]["pair_id"])
    with pytest.raises(kit.data.SchemaError, match="2 of 2 unseen users have fewer"):
        kit.data.few_shot(data, 21)
    assert len(kit.data.few_shot(data, 21, allow_fewer=True)) == 40
    with pytest.raises(kit.data.SchemaError, match="no split 'adapt_unseen'"):
        kit.data.few_shot(DatasetDict(train=data["train"]), 1)


def test_loaded_data_lie_on_disk(dsp_file):
    data = kit.data.load("dsp", dsp_file)
    assert all(split.cache_files for split in data.values())


def test_prepared_folder_loads_again_and_says_where_it_is_from(prism_folder, tmp_path_factory, capsys, caplog):
    from prlhf_kit.cli import main

    out = tmp_path_factory.mktemp("prepared") / "prism"
    line = ["data", "prepare", "prism", "--path", str(prism_folder), "--out", str(out), "-o", "adapt_share", "0"]
    assert main(line) == 0
    direct = kit.data.load("prism", prism_folder, adapt_share=0)
    assert "in a conversation without a usable turn" in caplog.text  # a drop is never silent
    assert kit.data.fingerprint(kit.data.load(str(out))) == kit.data.fingerprint(direct)
    assert set(load_dataset(str(out))) == set(direct)
    card = json.loads((out / "card.json").read_text())
    assert card["options"] == {"max_characters": 2300, "train_share": 0.9, "adapt_share": 0, "seed": 123}
    assert card["fingerprint"] == kit.data.fingerprint(direct)
    assert card["splits"]["train"]["users"] == len(set(direct["train"]["user_id"]))
    assert len(card["source_sha256"]) == 64
    page = (out / "README.md").read_text()
    assert "4 in a conversation without a usable turn" in page
    assert "CC BY 4.0" in page
    assert main(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["prism"]  # no staging folder is left


def test_data_check_compares_with_the_papers(prism_folder, capsys):
    from prlhf_kit.cli import main

    assert main(["data", "check", "prism", "--path", str(prism_folder)]) == 0
    said = capsys.readouterr().out
    assert "conversation without a usable turn" in said
    [users] = [line.split() for line in said.splitlines() if line.strip().startswith("users ")]
    assert users == ["users", "1396", "20", "-1376"]
    assert "prompt in train and test    drop      0" in said


def test_data_commands_refuse_politely(capsys, tmp_path):
    from prlhf_kit.cli import main

    assert main(["data", "check", "tldrr"]) == 2
    assert "Did you mean 'tldr'" in capsys.readouterr().err
    assert main(["data", "check", "psoups", "--path", str(tmp_path), "--rule", "empty prompt", "mend"]) == 2
    assert main(["data", "list"]) == 0
    assert set(kit.data.DATASETS) <= {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}
