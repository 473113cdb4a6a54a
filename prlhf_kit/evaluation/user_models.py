"""What a user model has learned: accuracy by the number of pairs a user gave, groups of users, a map of users."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from prlhf_kit.evaluation.intervals import intervals
from prlhf_kit.models.hub import MADE_FROM
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.models.user_models import ClusterUserModel, UserModel
from prlhf_kit.training.personal import USER_METRICS


def learning_curve(folder: str | Path, seed: int = 0) -> pd.DataFrame:
    """Held-out accuracy during the training of the model in `folder`, by the pairs that a user had given until then. At
    the earlier points of this learning curve the learning rate had not yet fallen to 0. `intervals` by `step` over
    users, with `k` (training pairs a user, on average), `worst` and `pairs`."""
    metrics = pd.read_parquet(Path(folder, USER_METRICS))
    held_out = metrics[metrics["mode"] == "eval"]
    if held_out.empty:
        raise ValueError(f"{folder} was trained without evaluation: give its recipe held-out pairs and eval_steps.")
    made = json.loads(Path(folder, MADE_FROM).read_text())
    batch = made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] * made["processes"]
    trained = len(UserIndex.load(folder)[0].user_ids)
    table = held_out.rename(columns={"accuracy": "value"}).sort_values("step", kind="stable")
    more: dict[str, Any] = {"worst": ("value", "min"), "pairs": ("pairs", "sum")}
    found = intervals(table, by=["step"], cluster="user_id", seed=seed, **more)
    return found.assign(k=(found.step * batch / trained).round().astype(int))


def learned(trained: UserModel, untrained: UserModel) -> np.ndarray:
    """How training changed each user's tokens against the generic user's, with length 1: `[users, T_u * d_model]`.
    (Users start at random places, whose differences say nothing of them.)"""
    with torch.no_grad():
        rows = torch.arange(trained.num_rows)
        tokens = (trained(rows).cpu() - untrained(rows).cpu()).flatten(1)
    return normalize((tokens[1:] - tokens[:1]).numpy())


def grouped(
    trained: UserModel, untrained: UserModel, types: Mapping[str, str | None], seed: int = 0
) -> tuple[pd.DataFrame, float | None]:
    """`user_map` of what training changed, with each user's true `group` ("unknown" of no type) and the one `found`
    (the most likely centre of a cluster model, k-means of others), and how alike both groupings are: the adjusted Rand
    index, 1 for the same and 0 for chance; None of fewer than two types.

    Args:
        types: user -> type, in the order of the rows.
    """
    vectors, true = learned(trained, untrained), pd.Series([kind or None for kind in types.values()], dtype=object)
    known, n = true.notna().to_numpy(), true.nunique()
    if isinstance(trained, ClusterUserModel):
        found = trained.assignment()[1:].argmax(1).cpu().numpy()
    else:
        found = KMeans(max(n, 1), n_init=20, random_state=seed).fit_predict(vectors)
    places = user_map(list(types), vectors).assign(group=true.fillna("unknown"), found=found)
    return places, float(adjusted_rand_score(true[known], found[known])) if n > 1 else None


def user_map(user_ids: list[str], vectors: np.ndarray) -> pd.DataFrame:
    """Users in the plane of the two directions in which `vectors` differ most (PCA): `user_id`, `x`, `y`."""
    place = PCA(2).fit_transform(vectors)
    return pd.DataFrame({"user_id": user_ids, "x": place[:, 0], "y": place[:, 1]})
