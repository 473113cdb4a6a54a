"""How many pairs of each user P-DPO ranks right, counted while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

USER_METRICS = "user_metrics.parquet"


class UserMetrics:
    """Counts between two logs, and every user's accuracy at each log so far.

    `rows` has (step, mode, user, accuracy, pairs); mode is "train" or "eval".
    """

    def __init__(self):
        self.rows: list[tuple[int, str, str, float, float]] = []
        self._hits: dict[str, dict[int, list[float]]] = {"train": {}, "eval": {}}

    def count(self, mode: str, users: Iterable[int], right: Iterable[float]) -> None:
        """Add pairs: the row of each one's user, and 1 where it is ranked right, else 0."""
        for row, hit in zip(users, right, strict=True):
            total = self._hits[mode].setdefault(row, [0.0, 0])
            total[0] += hit
            total[1] += 1

    def spread(self, mode: str, step: int, names: Sequence[str]) -> dict[str, float]:
        """The spread of accuracies among the users counted since the last time, who are kept in `rows`; empty where
        there are none. `names`: the user of each row."""
        found = {names[row]: (hits / n, n) for row, (hits, n) in sorted(self._hits[mode].items())}
        self.rows += [(step, mode, user, accuracy, n) for user, (accuracy, n) in found.items()]
        self._hits[mode].clear()
        if not found:
            return {}
        accuracies = np.array([accuracy for accuracy, _ in found.values()])
        return {
            "mean": float(accuracies.mean()),
            "worst": float(accuracies.min()),
            "p10": float(np.quantile(accuracies, 0.1)),
            "std": float(accuracies.std()),
            "seen": float(len(accuracies)),
        }

    def load(self, folder: str | Path) -> None:
        """Take up the rows that `save` left in `folder`, if it did."""
        if Path(folder, USER_METRICS).is_file():
            self.rows = list(pd.read_parquet(Path(folder, USER_METRICS)).itertuples(index=False, name=None))

    def save(self, folder: str | Path) -> None:
        """Write `user_metrics.parquet`."""
        table = pd.DataFrame(self.rows, columns=["step", "mode", "user_id", "accuracy", "pairs"])
        table = table.drop_duplicates(["step", "mode", "user_id"], keep="last")  # eval_on_start, after a resume
        table.to_parquet(Path(folder, USER_METRICS))
