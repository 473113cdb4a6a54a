"""Checkpoints: one that is not whole is left out, never trained on from."""

from pathlib import Path

import pandas as pd
import pytest

from prlhf_kit.training.resume import HISTORY, fit
from training.conftest import make_trainer


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("optimizer.pt", Path.unlink),  # it would silently train to another model
        ("adapter_model.safetensors", cut),
        ("checkpoint_complete", Path.unlink),
    ],
)
def test_an_older_checkpoint_takes_the_place_of_one_that_is_not_whole(
    make_tiny, tokenizer, pairs, tmp_path, capsys, harm, name
):
    def trained(out):
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
        trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", **options)
        fit(trainer, tmp_path / out)
        return trainer.model.state_dict()

    whole = trained("whole")
    harm(tmp_path / "c" / "checkpoint-3" / name)
    again = trained("again")
    said = capsys.readouterr().out
    assert "resuming again from checkpoint-2" in said
    assert ("checkpoint-3 is damaged" in said) == (name != "checkpoint_complete")  # else it was never complete
    assert all((again[key] == value).all() for key, value in whole.items())


def test_a_training_of_few_steps_is_logged(make_tiny, tokenizer, pairs, tmp_path):
    log = fit(make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", logging_steps=4), tmp_path / "out")
    assert log.dropna(subset="loss").step.tolist() == [2]
    assert log.equals(pd.read_parquet(tmp_path / "out" / HISTORY))
