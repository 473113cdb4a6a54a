"""What a notebook leaves, in JupyterLab too."""

import subprocess
import sys

import pandas as pd
import pytest

from prlhf_kit.runs import report, stage as record_module
from prlhf_kit.runs.stage import StageError, begin, read_record


def test_index_page_escapes_text_and_shows_the_headline(tmp_path):
    stage = begin("05_evaluation", tmp_path / "r", {"run_dir": "r", "seed": 1, "module": pd, "_x": 2})
    assert stage.parameters == {"run_dir": "r", "seed": 1}
    table = pd.DataFrame({"answer": ["<script>alert(1)</script>", "- one\n- two"], "more": "not shown"})
    stage.table(table, "t", "The headline", "headline", ["answer"])
    with pytest.raises(StageError, match="notebook 01_data_preparation"):
        stage.input("01_data_preparation", "data")
    stage.artifact("ghost", "data", "Never written")
    with pytest.raises(StageError, match="announced but not written"):
        stage.finish()
    del stage.artifacts["ghost"]
    stage.finish({"a": 1})
    page = report.write_index(tmp_path / "r").read_text()
    assert "The headline" in page
    assert "<script>" not in page
    assert "- one<br>- two" in page
    assert "not shown" not in page
    assert read_record(tmp_path / "r" / "05_evaluation")["status"] == "completed"


def test_two_kernels_do_not_work_in_one_folder_but_one_may_begin_again(tmp_path):
    first = begin("nb", tmp_path, {"n": 1})
    again = begin("nb", tmp_path, {"n": 1, "later": 2})  # the cell run once more in JupyterLab
    assert again.parameters == {"n": 1}
    other = (
        "import sys, prlhf_kit.runs.stage as r; r.PATIENCE = 0.1\n"
        "try: r.begin('nb', sys.argv[1], {})\nexcept r.StageError as e: print(e)"
    )
    line = [sys.executable, "-c", other, str(tmp_path)]
    assert "another process is working" in subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert first.dir == again.dir
    again.finish()
    assert "another process" not in subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_in_jupyterlab_old_results_stand_only_for_the_same_inputs(tmp_path):
    def work(name, content, **parameters):
        record_module._names.clear()  # as a new kernel
        stage = begin(name, tmp_path, parameters)
        file = stage.artifact("model.txt", "model", "A model")
        if not file.exists():
            file.write_text(content)
        stage.finish()
        return file.read_text()

    assert work("a", "one", n=1) == "one"
    assert work("b", "from one", k=1) == "from one"
    assert work("b", "not made", k=1) == "from one"  # nothing changed: what is there stands
    assert work("b", "other k", k=2) == "other k"
    assert work("a", "two", n=2) == "two"
    assert work("b", "from two", k=2) == "from two"
    assert (tmp_path / ".previous" / "b" / "model.txt").read_text() == "other k"
    assert read_record(tmp_path / "b")["status"] == "completed"
