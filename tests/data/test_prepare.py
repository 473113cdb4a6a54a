import json

from datasets import load_dataset
from raw import pairs_of, write

import prlhf_kit as kit
from prlhf_kit.cli import main

ROW = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}


def test_prepared_folder_loads_again_and_says_where_it_is_from(prism_folder, tmp_path_factory, capsys, caplog):
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


def test_prepared_folders_keep_their_datasets_rules(tmp_path):
    options = {"classification_task_options": ["right", "wrong"]}
    rows = [{"preference": f"I like {i}.", "question": f"Which {i}?"} | options for i in range(40)]
    source = write(tmp_path / "src" / "mcq.json", rows)
    assert main(["data", "prepare", "prefeval", "--path", str(source), "--out", str(tmp_path / "out")]) == 0
    _, report = kit.data.load_with_report(str(tmp_path / "out"))
    assert report.checks.set_index("check").rule["user with too few pairs"] == "drop"


def test_prepare_replaces_nothing_but_prepared_folders(tmp_path, capsys):
    source = write(tmp_path / "src" / "x.jsonl", [ROW])
    thesis = tmp_path / "thesis" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    line = ["data", "prepare", "files", "--path", str(source.parent), "-o", "test_share", "0", "--force", "--out"]
    for out, why in (
        (thesis.parent, "is no prepared dataset"),
        (source.parent, "lie in each other"),
        (tmp_path, "lie in each other"),
    ):
        assert main([*line, str(out)]) == 2
        assert why in capsys.readouterr().err
    assert thesis.exists()
    assert source.exists()


def test_data_check_compares_with_the_papers(prism_folder, capsys):
    assert main(["data", "check", "prism", "--path", str(prism_folder)]) == 0
    said = capsys.readouterr().out
    [users] = [line.split() for line in said.splitlines() if line.strip().startswith("users ")]
    assert users == ["users", "1396", "20", "-1376"]
    assert "prompt in train and test    drop      0" in said


def test_data_commands_refuse_politely(capsys, tmp_path):
    assert main(["data", "check", "tldrr"]) == 2
    assert "Did you mean 'tldr'" in capsys.readouterr().err
    assert main(["data", "check", "psoups", "--path", str(tmp_path), "--rule", "empty prompt", "mend"]) == 2
    assert main(["data", "list"]) == 0
    assert set(kit.data.DATASETS) <= {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}


def test_data_check_says_tokens_and_what_was_dropped(base, tmp_path, capsys):
    rows = [{**ROW, "prompt": f"{i}? " + "very " * 60 * (i > 3)} for i in range(16)]
    source = write(tmp_path / "mine.jsonl", rows)
    line = ["files", "--path", str(source), "-o", "test_share", "0", "--model", base, "--max-prompt-tokens", "50"]
    assert main(["data", "check", *line]) == 0
    said = capsys.readouterr()
    kept = "4 of 16 pairs kept; dropped: 12 over-long prompt (max_prompt_tokens=50)"
    assert f"75% of the pairs were dropped: {kept}" in said.err
    assert "tokens, of at most 1,000 pairs a split" in said.out
    assert main(["data", "prepare", *line, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["kept"] == kept


def test_export_writes_what_dsps_scripts_and_the_kit_read(dsp_file, tmp_path, capsys):
    rows = json.loads(dsp_file.read_text())
    rows[0]["responses"]["business"] += "\n\nHuman: Thanks!"
    source, out = write(tmp_path / "dsp.json", rows), tmp_path / "out"
    line = ["data", "export", "dsp", "--path", str(source), "-o", "domains", "academy", "-o", "test_share", "0"]
    assert main([*line, "--out", str(out)]) == 0
    assert f"train.json: {len(rows) * 4 - 1} rows, 1 left out" in capsys.readouterr().out
    back = kit.data.load("dsp", out / "train.json", domain="academy", test_share=0)
    assert len(back["train"]) == len(rows) * 4 - 1
    assert main([*line, "--lists", "--out", str(out)]) == 0
    lists = json.loads((out / "train.json").read_text())
    assert len(lists) == len(rows) - 1
    assert {len(row["text"]) for row in lists} == {5}
    assert {tuple(row["score"]) for row in lists} == {(1.0, 0.0, 0.0, 0.0, 0.0)}
    whole = kit.data.load("dsp", out / "train.json", domain="academy", test_share=0)
    left = [pair for pair in pairs_of(back) if pair[1] != rows[0]["query"]]
    assert sorted(pairs_of(whole)) == sorted(left)
