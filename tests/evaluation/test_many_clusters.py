"""Intervals of many clusters."""

import numpy as np
import pytest

from prlhf_kit.evaluation import statistics as intervals


def test_many_clusters_have_the_bootstraps_interval(monkeypatch):
    rng = np.random.default_rng(0)
    values, clusters = rng.random(3000) < 0.6, np.arange(3000) // 2
    boot = intervals.cluster_bootstrap(values, clusters)
    monkeypatch.setattr(intervals, "MANY_CLUSTERS", 10)
    normal = intervals.cluster_bootstrap(values, clusters)
    assert normal.low == pytest.approx(boot.low, abs=0.003)
    assert normal.high == pytest.approx(boot.high, abs=0.003)
