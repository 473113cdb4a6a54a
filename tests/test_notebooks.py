"""Every notebook, headlessly and in order, on a tiny model: what each leaves behind, and that none holds outputs."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import build_tiny

from prlhf_kit import report, runs

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMOKE = {
    "01_data_preparation": {
        "dataset_options": {"pairs_per_user": 4, "test_pairs_per_user": 3, "adapt_pairs_per_user": 1},
        "max_prompt_tokens": 128,
    },
    "03_pdpo_training": {"save_steps": 2},
    "04_pad_decoding": {"weights": [0.0, 2.0], "n_prompts": 2, "max_new_tokens": 8},
    "05_evaluation": {"n_prompts": 2, "max_new_tokens": 8},
}
LEAVES = {
    "01_data_preparation": {"data", "population.json", "tastes.png", "lengths.png", "overview.parquet"},
    "03_pdpo_training": {"pdpo", "dpo", "history.parquet", "learning_curves.png", "similarity.png"},
    "04_pad_decoding": {"answers.parquet", "utility_by_weight.png"},
    "05_evaluation": {"headline.parquet", "accuracy_by_method.png", "win_rates.png", "side_by_side.parquet"},
}


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    build_tiny("llama", len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    records = {}
    for notebook in NOTEBOOKS:
        parameters = SMOKE[notebook.stem] | {"model": str(folder / "tiny")}
        records[notebook.stem] = runs.run_notebook(notebook, folder / "run", parameters)
    monkeypatch.undo()
    report.write_index(folder / "run")
    return folder / "run", records


@pytest.mark.parametrize("name", [n.stem for n in NOTEBOOKS])
def test_notebook_runs_and_leaves_its_artefacts(run, name):
    folder, records = run
    record = records[name]
    assert record["status"] == "completed", record.get("error")
    assert set(record["artifacts"]) >= LEAVES[name]
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
    assert page.index("Reward accuracy on held-out pairs") < page.index("<img")
    headline = pd.read_parquet(folder / "05_evaluation" / "headline.parquet")
    seen = headline[headline.split == "test_seen"]
    assert set(seen.pairs) == {24}
    assert {"P-DPO, user", "vanilla DPO", "prompt with user text", "untrained", "length rule", "oracle"} <= set(
        seen.method
    )
    untrained = headline[headline.split == "test_unseen"].set_index("method").accuracy
    assert untrained["P-DPO, user"] == untrained["P-DPO, generic row"]  # strangers are the generic user
    assert records["05_evaluation"]["metrics"]["accuracy/test_seen/oracle"] > 0.7


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
    text = json.dumps([c.source for c in nb.cells if c.cell_type == "code"])
    assert "stage.finish(" in text
