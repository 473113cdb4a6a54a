"""Metrics of each user during a training."""

import pandas as pd

from training.conftest import make_trainer


def test_user_metrics_are_a_table_and_survive_a_resume(make_tiny, tokenizer, pairs, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, **options)
    whole.train()
    logged = [name for entry in whole.state.log_history for name in entry]
    assert "users/worst" in logged
    spread = {name for name in logged if name.startswith("users/")}  # thousands of users: still five numbers
    assert spread == {"users/mean", "users/worst", "users/p10", "users/std", "users/seen"}
    table = pd.read_parquet(tmp_path / "checkpoint-4" / "user_metrics.parquet")
    assert set(table.user_id) == {"a", "b", "c"}
    assert table.pairs.sum() == 16
    assert table.groupby("step").pairs.sum().tolist() == [4, 4, 4, 4]
    resumed = make_trainer(make_tiny(users=3), tokenizer, pairs, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.user_metrics == whole.user_metrics
