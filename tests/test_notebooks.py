"""Every notebook, headlessly and in order, on a tiny model: what each leaves behind, and that none holds outputs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import TRAINED
from faults import FaultServer
from matplotlib.testing.compare import compare_images

from prlhf_kit import cli
from prlhf_kit.evaluation import win_rate
from prlhf_kit.figures.index import FIGURES
from prlhf_kit.runs import notebook as runs, report
from prlhf_kit.runs.parameters import defaults
from prlhf_kit.runs.stage import read_record
from prlhf_kit.training.resume import last_checkpoint

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMOKE = TRAINED | {
    "02_reward_models": {
        "general_pairs": 8,
        "custom_pairs": 4,
        "test_pairs": 3,
        "domains": ["structured", "casual"],
        "strategies": ["GRFT + LM, CRFT + LM", "GRFT, CRFT", "base, CRFT", "GRFT, CRFT with general pairs"],
    },
    "02b_feature_heads": {
        "head_kinds": ["pooled", "low_rank", "encoder"],
        "shots": [0, 1],
        "domains": ["structured", "casual"],
    },
    "04_pad_decoding": {"weights": [0.0, 2.0], "n_prompts": 1, "max_new_tokens": 12, "best_of": 2},
    "04b_persrm": {
        "weights": [0.0, 2.0],
        "n_prompts": 1,
        "options": {"max_new_tokens": 6},
        "persrm_pairs": 12,
        "max_length": 240,
    },
    "05_evaluation": {"policy_pairs": 3, "policy_weights": [0.0, 1.0]},
    "05b_answers_and_judges": {"n_prompts": 2, "max_new_tokens": 8},
    "06_new_users": {"ks": [1], "placed_by": "attributes"},
    "07_compare_responses": {"settings": {"k": 1, "steps": 1}, "max_new_tokens": 6},
    "08_community_context": {
        "pairs": 12,
        "test_pairs": 9,
        "settings": {"max_length": 240, "max_steps": 1, "logging_steps": 1},
        "sft_settings": {"max_steps": 1},
    },
    "08b_context_answers": {"n_prompts": 2, "n_users": 2, "max_new_tokens": 6},
    "09_user_models": {"points": 2},
    "10_real_people": {"max_new_tokens": 6},
}
LEAVES = {  # beside figures; what other stages need is missed there
    "04_pad_decoding": {"answers.jsonl", "answers.parquet", "token_by_token.parquet"},
    "04b_persrm": {"answers.jsonl", "persrm", "soup", "args.parquet"},
    "05b_answers_and_judges": {"judgements.parquet", "side_by_side.parquet"},
    "07_compare_responses": {"answers.parquet"},
    "08b_context_answers": {"answers.jsonl", "side_by_side.parquet"},
    "09_user_models": {"individual", "cluster"},
    "10_real_people": {"answers.parquet", "groups.parquet", "new_people.parquet", "new_people_differences.parquet"},
}


@pytest.fixture(scope="module")
def run(trained_run, tiny_folder, tmp_path_factory):
    """The folder of a run of all notebooks, and their records."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    shutil.copytree(trained_run, folder)
    records = {name: read_record(folder / name) for name in TRAINED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for notebook in NOTEBOOKS:
            if notebook.stem in TRAINED:
                continue
            model = {"model": str(tiny_folder)} if "model" in defaults(notebook) else {}
            records[notebook.stem] = runs.run_notebook(notebook, folder, SMOKE[notebook.stem] | model)
    report.write_index(folder)
    return folder, records


@pytest.mark.parametrize("name", [n.stem for n in NOTEBOOKS])
def test_notebook_runs_and_leaves_its_artefacts(run, name):
    folder, records = run
    record = records[name]
    assert record["status"] == "completed", record.get("error")
    assert set(record["artifacts"]) >= LEAVES.get(name, set())
    assert record["metrics"]
    assert (
        record["provenance"]["data"]["fingerprint"]
        == records["01_data_preparation"]["provenance"]["data"]["fingerprint"]
    )
    for file in ("notebook.ipynb", "notebook.html", "run.json", *record["artifacts"]):
        assert (folder / name / file).exists()


def test_report_and_tables(run):
    folder, records = run
    page = (folder / "index.html").read_text()
    assert "Reward accuracy on held-out pairs" in page
    caption = BeautifulSoup((folder / "05_evaluation" / "notebook.html").read_text(), "html.parser").find("caption")
    assert caption.text.startswith("Reward accuracy on held-out pairs")
    headline = pd.read_parquet(folder / "05_evaluation" / "accuracy_by_method.parquet")
    seen = headline[headline.split == "test_seen"]
    assert set(seen.n) == {24}
    assert {"P-DPO, user", "vanilla DPO", "prompt with user text", "untrained", "length rule", "oracle"} <= set(
        seen.method
    )
    unseen = headline[headline.split == "test_unseen"].set_index("method").value
    assert unseen["P-DPO, user"] == unseen["P-DPO, generic row"]  # strangers are the generic user
    assert records["05_evaluation"]["metrics"]["accuracy/test_seen/oracle"] > 0.7


def test_every_figure_is_made_again_from_the_tables_alone(run, tmp_path, capsys):
    folder, records = run
    figures = {name.removesuffix(".png") for r in records.values() for name in r["artifacts"] if name.endswith(".png")}
    assert cli.main(["figures", str(folder), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == set(FIGURES) - {"bench"}  # no notebook's
    for path in tmp_path.glob("*.png"):
        stage = next(folder / s for s, r in records.items() if path.name in r["artifacts"])
        assert compare_images(str(stage / path.name), str(path), tol=0.01) is None
        assert path.with_suffix(".svg").exists()


def test_scores_and_judgements_feed_everything(run):
    folder, records = run
    scores = pd.read_parquet(folder / "05_evaluation" / "scores.parquet")
    headline = pd.read_parquet(folder / "05_evaluation" / "accuracy_by_method.parquet")
    mine = scores[(scores.method == "P-DPO, user") & (scores.split == "test_seen")]
    assert headline.value[(headline.method == "P-DPO, user")].iloc[0] == pytest.approx(mine.value.mean(), abs=1e-3)
    stage = folder / "05b_answers_and_judges"
    judgements, rates = (pd.read_parquet(stage / f"{name}.parquet") for name in ("judgements", "win_matrix"))
    assert win_rate.win_rates(judgements).drop(columns="p_holm").equals(rates.drop(columns="p_holm"))
    for name in ("05_evaluation", "05b_answers_and_judges"):
        metrics = records[name]["metrics"]
        for metric in metrics:
            kind, _, what = metric.partition("/")
            if not kind.endswith(("_low", "_high", "_n")) and kind != "policy_rank_correlation":
                assert {f"{kind}_{end}/{what}" for end in ("low", "high", "n")} <= set(metrics), metric
    assert metrics["position_bias/longer"] == 0


@pytest.fixture
def always_a():
    server = FaultServer()
    with server.on_loopback() as server.url:
        yield server


def test_evaluation_of_real_users_and_of_answers_made_elsewhere(dsp_file, tiny_folder, tmp_path, monkeypatch, always_a):
    """No types, no true tastes, no control, an answer to nobody in particular, and an LLM judge that always says A."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [{"instruction": f"Question {i}?", "output": "It depends. " * (i % 3), "generator": "x"} for i in range(40)]
    (tmp_path / "theirs.json").write_text(json.dumps(rows))
    options = {
        "01_data_preparation": {
            "dataset": "dsp",
            "dataset_path": str(dsp_file),
            "pairs_kept": {"train": 3, "test_seen": 4},
        },
        "03_pdpo_training": {"controls": []},
        "05b_answers_and_judges": {
            "n_prompts": 3,
            "n_users": 3,
            "max_new_tokens": 4,
            "outside": {"theirs": str(tmp_path / "theirs.json")},
            "llm_judge": {
                "model": "llm",
                "template": "community",
                "base_url": always_a.url,
                "cache": str(tmp_path / "judge.sqlite"),
            },
        },
    }
    for notebook in NOTEBOOKS:
        if notebook.stem in options:
            parameters = options[notebook.stem] | {"model": str(tiny_folder)}
            record = runs.run_notebook(notebook, tmp_path / "r", parameters)
            assert record["status"] == "completed", record.get("error")
    judgements = pd.read_parquet(tmp_path / "r" / "05b_answers_and_judges" / "judgements.parquet")
    assert set(judgements.judge) == {"embeddings", "longer", "llm"}
    assert (judgements.preference[judgements.judge == "llm"] == "tie").all()
    assert record["metrics"]["position_bias/llm"] == 1
    assert record["metrics"]["win_rate, llm/theirs"] == 0.5
    assert record["provenance"]["LLM judge"]["id"] == "llm"
    told = [body["messages"][-1]["content"] for body in always_a.seen]
    assert all(any(f"<community>\n{user}\n" in text for text in told) for user in judgements.user_id.unique())
    assert set(judgements.system_b) == {"P-DPO, generic row", "untrained", "prompt with user text", "theirs"}
    assert judgements.user_id.nunique() == 3
    theirs = judgements[(judgements.judge == "longer") & (judgements.system_b == "theirs")]
    assert len(theirs[theirs.system_a == "untrained"]) == 9
    assert "win_rate_n/theirs" in record["metrics"]


def test_killed_in_mid_training_it_resumes_to_the_same_metrics(run, tiny_folder, tmp_path):
    folder, records = run
    first, training = (n for n in NOTEBOOKS if n.stem in TRAINED)
    shutil.copytree(folder / first.stem, tmp_path / "r" / first.stem)
    line = [sys.executable, "-m", "prlhf_kit.cli", "run", str(first), str(training)]
    for name, value in (SMOKE[first.stem] | SMOKE[training.stem] | {"model": tiny_folder}).items():
        line += ["-p", name, str(value)]
    line += ["--out", str(tmp_path), "--run", "r"]
    stage = tmp_path / "r" / "03_pdpo_training"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as child:
        while last_checkpoint(stage / "pdpo-checkpoints") is None:
            assert child.poll() is None, "it ended before it wrote a checkpoint"
            time.sleep(0.05)
        child.kill()
    assert not (stage / "pdpo").exists()  # in mid-training
    assert read_record(stage)["status"] == "died"
    again = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    record = read_record(stage)
    assert record["status"] == "completed"
    whole = records["03_pdpo_training"]
    for part in ("artifacts", "provenance", "parameters"):
        assert set(record[part]) == set(whole[part])
    assert record["metrics"] == whole["metrics"]
    assert set(record) == set(whole)
    assert not list(tmp_path.rglob("checkpoint-*"))  # of a completed stage
    assert "resuming pdpo from checkpoint-" in (stage / "notebook.ipynb").read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_is_clean_and_its_parameters_are_explained(notebook):
    nb = nbformat.read(notebook, as_version=4)
    nbformat.validate(nb)
    for cell in nb.cells:
        assert not cell.get("outputs"), "run nbstripout: committed notebooks hold no outputs"
        assert cell.get("execution_count") is None
    [parameters] = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    for line in parameters.source.splitlines():
        assert "  # " in line, f"parameter without a comment: {line}"
    assert any("stage.finish(" in c.source for c in nb.cells)
    assert re.search(r"^\*Expected time: about [^*]+ CPU cores?[^*]*\*", nb.cells[0].source, re.MULTILINE)
