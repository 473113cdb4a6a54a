"""Checkpoints: one that is not whole is left out, never trained on from."""

import os
from pathlib import Path

import pandas as pd
import pytest

from prlhf_kit.training.resume import COMPLETE, HISTORY, fit
from training.conftest import make_trainer


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def test_an_older_checkpoint_takes_the_place_of_one_that_is_not_whole(make_tiny, tokenizer, pairs, tmp_path, capsys):
    def trained(out):
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
        trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", **options)
        fit(trainer, tmp_path / out)
        return trainer.model.state_dict()

    whole = trained("whole")
    for name, harm in (
        ("optimizer.pt", Path.unlink),  # it would silently train to another model
        ("adapter_model.safetensors", cut),
        (COMPLETE, cut),
        (COMPLETE, Path.unlink),
    ):
        file = tmp_path / "c" / "checkpoint-3" / name
        harm(file)
        marked = file.with_name(COMPLETE).exists()
        with pytest.raises(ValueError, match="checkpoint-3 is no whole checkpoint"):
            make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "d").train(str(file.parent))
        again = trained(f"without-{name}-{marked}")  # and writes checkpoint-3 again
        said = capsys.readouterr().out
        assert "from checkpoint-2" in said
        assert ("checkpoint-3 is damaged" in said) == marked  # else it was never complete
        assert all((again[key] == value).all() for key, value in whole.items())


def test_a_checkpoint_is_on_the_disk_before_its_marker(make_tiny, tokenizer, pairs, tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, save_strategy="steps", save_steps=2).train()
    *files, marker = [Path(name).name for name in synced if "checkpoint-2" in name]
    assert COMPLETE in marker
    assert {path.name for path in tmp_path.rglob("checkpoint-2/**/*")} - {COMPLETE} < set(files)


def test_a_training_of_few_steps_is_logged(make_tiny, tokenizer, pairs, tmp_path):
    log = fit(make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path / "c", logging_steps=4), tmp_path / "out")
    assert log.dropna(subset="loss").step.tolist() == [2]
    assert log.equals(pd.read_parquet(tmp_path / "out" / HISTORY))
