import numpy as np
import pytest
import torch

import prlhf_kit as kit
from prlhf_kit.evaluation import user_models
from prlhf_kit.models.user_models import ClusterUserModel


def test_groups_and_map():
    words = torch.nn.Embedding.from_pretrained(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    start, trained = (kit.IndividualUserModel(5, words, 2) for _ in range(2))
    with torch.no_grad():
        trained.own[1:3, :, 0] += 3.0
        trained.own[3:5, :, 1] += 5.0
    vectors = user_models.learned(trained, start)
    assert vectors == pytest.approx(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), abs=1e-6)
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)
    places, alike = user_models.grouped(trained, start, dict(zip("abcd", "sstt", strict=True)))
    assert (places.group.tolist(), alike) == (list("sstt"), 1.0)
    assert places.x[0] == pytest.approx(places.x[1])
    assert abs(places.x[0] - places.x[2]) > 1
    assert user_models.grouped(trained, start, dict.fromkeys("abcd"))[1] is None  # no type is known
    cluster, before = (ClusterUserModel(4, words, 2, clusters=3) for _ in range(2))
    with torch.no_grad():
        cluster.own[1:] = torch.eye(3)[[2, 0, 2]] * 4
    assert user_models.grouped(cluster, before, dict.fromkeys("abc"))[0].found.tolist() == [2, 0, 2]
