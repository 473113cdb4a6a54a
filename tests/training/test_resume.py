"""Checkpoints: damaged ones are left out, never trained on from."""

from pathlib import Path

import pandas as pd
import pytest

from prlhf_kit.training.resume import HISTORY, fit
from training.conftest import make_trainer

OPTIONS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("optimizer.pt", Path.unlink),  # it would silently train to another model
        ("optimizer.pt", flip),
        ("adapter_model.safetensors", cut),
        ("checkpoint_complete", cut),
        ("checkpoint_complete", Path.unlink),
    ],
)
def test_an_older_checkpoint_takes_a_damaged_ones_place(make_tiny, tokenizer, pairs, tmp_path, capsys, harm, name):
    def trained(out):
        trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", **OPTIONS)
        fit(trainer, tmp_path / out)
        return trainer.model.state_dict()

    whole = trained("whole")
    file = tmp_path / "c" / "checkpoint-3" / name
    harm(file)
    marked = file.with_name("checkpoint_complete").exists()
    again = trained("again")
    said = capsys.readouterr().out
    assert "resuming again from checkpoint-2" in said
    assert ("checkpoint-3 is damaged" in said) == marked  # without its marker it was never complete
    assert all((again[key] == value).all() for key, value in whole.items())


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(make_tiny, tokenizer, pairs, tmp_path):
    trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, **OPTIONS)
    trainer.train()
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"no complete checkpoint: optimizer\.pt is missing or damaged"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_training_of_few_steps_is_logged(make_tiny, tokenizer, pairs, tmp_path):
    log = fit(make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", logging_steps=4), tmp_path / "out")
    assert log.dropna(subset="loss").step.tolist() == [2]
    assert log.equals(pd.read_parquet(tmp_path / "out" / HISTORY))
