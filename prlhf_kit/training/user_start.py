"""Where the users of a low-rank user model start: where a head on frozen features puts them."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from prlhf_kit.data.chat import prompt_texts_of
from prlhf_kit.models.features import Embedder, embed, feature_cache
from prlhf_kit.training.heads import fit_heads


def fits_a_head(pairs: Dataset, rank: int) -> bool:
    """Whether `pairs` are of more than `rank` users. Raises `ValueError` if they are, but of fewer than 5 prompts."""
    if len(set(pairs["user_id"])) <= rank:
        return False
    if (n := len(set(prompt_texts_of(pairs)))) < 5:
        raise ValueError(f"{n} different prompts, expected at least 5 to fit a head: leave user_start out.")
    return True


def head_coefficients(pairs: Dataset, embedder: Embedder, rank: int) -> dict[str, np.ndarray]:
    """Each user's place among the others, `[rank]`, by a low-rank head on frozen features of their pairs: principal
    coordinates of `a_u`, the first with variance 1. Empty for fewer than `rank` + 1 users, or where all are alike.

    Raises `ValueError` for more coordinates than features, and for fewer than 5 prompts.
    """
    if not fits_a_head(pairs, rank):
        return {}
    texts = prompt_texts_of(pairs)
    features = embed({"train": pairs}, [embedder], feature_cache())["train"]
    if rank > (d := features.chosen.shape[1]):
        raise ValueError(f"rank {rank}, but {embedder.name!r} has {d} features: choose a lower rank.")
    heads = fit_heads("low_rank", features.difference, pairs["user_id"], texts, features.scale, sizes=(rank,))
    own = np.array(list(heads.users.values()))
    axes, spread, _ = np.linalg.svd(own - own.mean(0), full_matrices=False)
    if not spread[0]:
        return {}
    return dict(zip(heads.users, axes * spread / spread[0] * len(own) ** 0.5, strict=True))
