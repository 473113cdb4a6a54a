"""Whom a run's answers are for: users it was trained on, one whom it was not, and anybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from datasets import DatasetDict

from prlhf_kit.data.select import few_shot
from prlhf_kit.files import in_chunks, short_hash
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training.new_users import Adapted, adapt, add_users

MANY = 12  # seen users on offer where none are named


class Fitted(NamedTuple):
    """What a new user's row was fitted with: so many of their pairs, drawn by `seed`, in so many steps."""

    pairs: int
    steps: int
    seed: int


@dataclass(frozen=True)
class User:
    """Whom an answer is for.

    Args:
        name: as shown.
        user_id: who has a row in the user index; None: the generic user.
        words: what they say of themselves.
        fitted: what their row was fitted with; None: they were in training.
    """

    name: str
    user_id: str | None = None
    words: str | None = None
    fitted: Fitted | None = None


ANYONE = User("anyone (generic user)")


def seen(data: DatasetDict, index: UserIndex, wanted: Sequence[str] = ()) -> list[User]:
    """The users `wanted`; or up to `MANY` who were trained on, the first of every group first.

    Raises:
        ValueError: one of `wanted` has no row.
    """
    unknown = [user for user in wanted if user not in index]
    if unknown:
        some = ", ".join(index.user_ids[:5])
        raise ValueError(f"user {unknown[0]!r} has no row in the P-DPO model. It knows {some}, ...: name some of them.")
    train = data["train"]
    groups = dict(zip(train["user_id"], train["group"], strict=True))
    words = dict(zip(train["user_id"], train["user_text"], strict=True))
    place, met = {}, Counter[str | None]()
    for user in index.user_ids:
        place[user] = met[groups.get(user)]
        met[groups.get(user)] += 1
    known = list(wanted) or sorted(index.user_ids, key=lambda user: place[user])[:MANY]
    return [User(user, user, words.get(user)) for user in known]


def add_new(
    data: DatasetDict, personal, index: UserIndex, tokenizer, k: int, steps: int, seed: int = 0
) -> tuple[User, UserIndex]:
    """Give the first user of `adapt_unseen` a row in `personal` that is fitted to `k` of their pairs.

    What was fitted lies in the kit's cache, so that it is not fitted again.
    """
    pairs = few_shot(data, k, seed, allow_fewer=True)
    name = min(pairs["user_id"])
    theirs = pairs.filter(lambda row: row["user_id"] == name)

    def fitted(_: Sequence[str]):
        return adapt(personal, tokenizer, theirs, steps=steps).own.float().cpu().numpy()

    made_from = [list(theirs[column]) for column in ("prompt", "chosen", "rejected", "user_text")]
    folder = embedded.cache_dir() / "adapted" / short_hash(hub.weights_hash(personal), steps, made_from)
    own = torch.from_numpy(in_chunks(fitted, [name], folder, what=f"fitting {name}"))
    index = add_users(personal, index, Adapted([name], own, pd.DataFrame(), []))
    n = len(theirs)
    told = f"{n} pair{'s' * (n != 1)}{f', {k} were asked for' if n < k else ''}"
    return User(f"{name} (new: fitted to {told})", name, theirs["user_text"][0], Fitted(n, steps, seed)), index
