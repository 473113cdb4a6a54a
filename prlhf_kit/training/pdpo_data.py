"""The pairs of P-DPO before training: who stated them, and what `max_length` leaves of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping

from datasets import Dataset

from prlhf_kit.models.conditioning import user_model_of
from prlhf_kit.models.logprobs import REFERENCE
from prlhf_kit.models.user_index import UserIndex


def require_users(sets: Mapping[str, Dataset]) -> None:
    """Raise `ValueError` for a set of pairs without the column `user_id`."""
    for name, dataset in sets.items():
        if "user_id" not in dataset.column_names:
            raise ValueError(
                f"the {name} dataset has no column 'user_id' (it has {dataset.column_names}). P-DPO must know who "
                "stated each preference; see prlhf_kit.data.schema for the record."
            )


def index_for(model, user_ids: Iterable[str], index: UserIndex | None) -> UserIndex:
    """`index`, or one of the training pairs' `user_ids`, for a conditioned `model`.

    Raises:
        ValueError: a user without a row, or a user model with another number of rows.
    """
    known = sorted(set(user_ids))
    index = index or UserIndex(known)
    missing = sorted(set(known) - set(index.user_ids))
    if missing:
        raise ValueError(
            f"{len(missing)} users of the training set have no row in the user index, first {missing[0]!r}. "
            "Build the index from the training set: UserIndex(sorted(set(train['user_id'])))."
        )
    rows = getattr(user_model_of(model), "num_rows", len(index))
    if rows != len(index):
        raise ValueError(
            f"the user model has {rows} rows, but the user index {len(index)} (users and the "
            "generic one). Build it with num_rows=len(user_index)."
        )
    return index


def require_whole_reference(dataset: Dataset, args, name: str) -> None:
    """Raise `ValueError` where log-probs that the pairs bring are not those that the loss needs."""
    if args.ld_alpha is not None and set(REFERENCE) & set(dataset.column_names):
        raise ValueError(
            f"ld_alpha={args.ld_alpha} weights the policy's log-probs by token, but the {name} set brings "
            f"sums over all tokens. Remove the columns {' and '.join(REFERENCE)}."
        )


def without_cut_away(dataset: Dataset, args, name: str) -> tuple[Dataset, int, dict[str, int]]:
    """Tokenised pairs without those of which `max_length` leaves nothing that tells chosen from rejected.

    Returns:
        The pairs, the tokens of the longest text that the model will see, and how many pairs of each user are cut.

    Raises:
        ValueError: the pairs bring a reference's log-probs of whole texts, and some are cut.
    """
    columns = [dataset[c] for c in ("prompt_ids", "chosen_ids", "rejected_ids")]
    lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
    longest, limit = max(lengths, default=0), args.max_length or max(lengths, default=0)
    if longest > limit and "ref_chosen_logps" in dataset.column_names:
        raise ValueError(
            f"the {name} dataset brings reference log-probs of whole texts, but its longest pair has "
            f"{longest} tokens (with the users' words, where they are in the prompts) and max_length={limit} would "
            f"cut it. Raise max_length, or leave the columns {' and '.join(REFERENCE)} out."
        )
    cut = Counter(u for u, n in zip(dataset["user_id"], lengths, strict=True) if n > limit)
    if cut and args.truncation_mode == "keep_start":
        # what is left of the two may be the same
        rooms = [max(limit - len(p), 0) for p in columns[0]]
        same = [c[:n] == r[:n] for n, c, r in zip(rooms, *columns[1:], strict=True)]
        dataset = dataset.select([i for i, s in enumerate(same) if not s])
    return dataset, min(longest, limit), dict(cut)


def warn_of_losses(
    name: str,
    dataset: Dataset,
    args,
    index: UserIndex,
    truncated: Mapping[str, Mapping[str, int]],
    dropped: Mapping[str, Mapping[str, int]],
) -> None:
    """Warn of pairs that are cut, and of users who have none left to train on."""
    if truncated[name]:
        warnings.warn(
            f"{sum(truncated[name].values())} pairs of the {name} set are longer than max_length={args.max_length} "
            f"tokens and are cut, by user: {truncated[name]}; dropped: {dropped[name]}. Raise max_length.",
            stacklevel=3,
        )
    untrained = sorted(set(index.user_ids) - set(dataset["user_id"]))
    if name == "train" and untrained:
        warnings.warn(
            f"{len(untrained)} users of the user index have no pair to train on, first {untrained[0]!r} (dropped: "
            f"{dropped['train']}). Their rows stay as initialised, which is not the generic user: leave them "
            "out of the index.",
            stacklevel=3,
        )
