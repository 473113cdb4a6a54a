"""The kit's notebooks by number and name. That a wheel carries them: tests/test_packaging.py."""

import pytest

from prlhf_kit.cli import main
from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.shipped import PACKAGE, find_notebook


def test_a_notebook_is_found_here_before_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in ("02b", "02b_feature_heads", "02b_feature_heads.ipynb"):
        assert find_notebook(given) == PACKAGE / "notebooks" / "02b_feature_heads.ipynb"
    assert main(["notebooks", "mine"]) == 0
    assert capsys.readouterr().out == "mine/notebooks\nmine/configs\n"
    monkeypatch.chdir("mine")
    assert str(find_notebook("02b")) == "notebooks/02b_feature_heads.ipynb"
    assert str(find_notebook("other/02b.ipynb")) == "other/02b.ipynb"  # a path is taken as it is
    with pytest.raises(RunError, match=r"no notebook 17\. Expected .* 01_data_preparation, 02_reward_models,"):
        find_notebook("17")


def test_copies_overwrite_nothing(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    assert main(["notebooks", str(tmp_path)]) == 2
    assert f"{tmp_path}/configs exists, and nothing was copied" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]
