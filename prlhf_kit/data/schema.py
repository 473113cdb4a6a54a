"""The one preference record that every dataset of the kit becomes, and the checks that each load goes through.

| column | type | meaning |
|---|---|---|
| `pair_id` | str | unique in the dataset |
| `user_id` | str | who stated the preference |
| `user_text` | str or null | what that person says of themselves or wants, in words |
| `group` | str or null | known type of user, for analysis only; never an input |
| `prompt`, `chosen`, `rejected` | list of {role, content} | conversational, as TRL reads them |

Splits: `train`; `test_seen` (users of `train`, new prompts); `test_unseen` (users never in `train`) with
`adapt_unseen` (their few pairs for adaptation). A dataset may carry more columns; they pass through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

COLUMNS = ("pair_id", "user_id", "user_text", "group", "prompt", "chosen", "rejected")
MESSAGES = ("prompt", "chosen", "rejected")


class SchemaError(ValueError):
    """The data can't be used; the message names the split, the column and the way out."""


@dataclass(frozen=True)
class Report:
    """What a check found: one row per split, user and reason, with the number of pairs that were dropped."""

    table: pd.DataFrame  # columns split, user_id, reason, pairs
    kept: int

    def __str__(self) -> str:
        if self.table.empty:
            return f"{self.kept} pairs kept, none dropped"
        reasons = self.table.groupby("reason")["pairs"].sum()
        found = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        return f"{self.kept} pairs kept; {found}:\n{self.table.to_string(index=False)}"


def check(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    users: Iterable[str] = (),
) -> tuple[DatasetDict, Report]:
    """Refuse what can't be used, drop what must not be trained on, and report every drop by user.

    Refused with `SchemaError`: a missing column, a user id or pair id that is not text, a pair id that comes twice,
    messages of another form, a prompt that is in train and in a test split, a seen-user test split with users who are
    not in train. Dropped and counted: an empty prompt or response, chosen equal to rejected, and (where `tokenizer` and
    `max_prompt_tokens` are given) a prompt longer than the limit. A user of `users`, or one whose pairs were all
    dropped, is refused: nothing would train that user's row.

    Args:
        data: splits of preference records.
        tokenizer: counts prompt tokens, chat template included.
        max_prompt_tokens: longest prompt to keep, in tokens.
        users: ids that must have pairs in `train`.

    Returns:
        The data without the dropped pairs, and the report.
    """
    drops: list[dict] = []
    clean = DatasetDict()
    for split, dataset in data.items():
        _check_form(split, dataset)
        reasons = [_reason(row, tokenizer, max_prompt_tokens) for row in dataset.select_columns(list(MESSAGES))]
        clean[split] = dataset.select([i for i, reason in enumerate(reasons) if reason is None])
        found = pd.DataFrame({"split": split, "user_id": dataset["user_id"], "reason": reasons}).dropna()
        drops += found.value_counts(sort=False).rename("pairs").reset_index().to_dict("records")
        lost = sorted(set(dataset["user_id"]) - set(clean[split]["user_id"]))
        if lost:
            why = found[found.user_id == lost[0]].reason.value_counts().to_dict()
            raise SchemaError(
                f"{len(lost)} users of split {split!r} have no pairs left, first {lost[0]!r} (dropped: {why}). "
                "Mend those pairs or remove the users from the dataset."
            )
    train_users = set(clean["train"]["user_id"]) if "train" in clean else set()
    missing = sorted(set(users) - train_users)
    if missing:
        raise SchemaError(
            f"{len(missing)} users have no pairs in train, first {missing[0]!r}. A user without pairs can't be "
            "learned: add pairs, or leave the user out (at inference they are the generic user)."
        )
    _check_splits(clean, train_users)
    ids = pd.Series([pair for split in clean.values() for pair in split["pair_id"]])
    if ids.duplicated().any():
        twice = ids[ids.duplicated()].iloc[0]
        where = [name for name, split in clean.items() if twice in split["pair_id"]]
        raise SchemaError(
            f"the pair id {twice!r} comes {(ids == twice).sum()} times (in {', '.join(where)}), expected once in the "
            "dataset. Make ids unique, for instance by putting the split's name in front."
        )
    table = pd.DataFrame(drops, columns=["split", "user_id", "reason", "pairs"])
    return clean, Report(table, sum(len(d) for d in clean.values()))


def _check_form(split: str, dataset: Dataset) -> None:
    missing = [c for c in COLUMNS if c not in dataset.column_names]
    if missing:
        raise SchemaError(
            f"split {split!r} has no column {', '.join(map(repr, missing))}; found {dataset.column_names}, expected "
            f"{list(COLUMNS)}. Rename your columns, or add them (user_text and group may be all null)."
        )
    for column in ("user_id", "pair_id"):
        for value in set(dataset[column]):
            if not isinstance(value, str) or not value:
                raise SchemaError(
                    f"split {split!r} has the {column.replace('_', ' ')} {value!r} ({type(value).__name__}), expected "
                    f"non-empty text. Convert it once: dataset.map(lambda row: {{'{column}': str(row['{column}'])}})."
                )
    for column in MESSAGES:
        for i, messages in enumerate(dataset[column]):
            if not (
                isinstance(messages, list)
                and messages
                and all(isinstance(m, dict) and {"content", "role"} <= m.keys() for m in messages)
                and all(isinstance(m["content"], str) and isinstance(m["role"], str) and m["role"] for m in messages)
            ):
                raise SchemaError(
                    f"split {split!r}, row {i}, column {column!r} is {str(messages)[:80]!r}, expected a list of "
                    "{'role': ..., 'content': text} messages."
                )


def _reason(row: dict, tokenizer, max_prompt_tokens: int | None) -> str | None:
    chosen, rejected = ([m["content"].strip() for m in row[c]] for c in ("chosen", "rejected"))
    if not row["prompt"][-1]["content"].strip():
        return "empty prompt"
    if not all(chosen) or not all(rejected):
        return "empty response"
    if chosen == rejected:
        return "chosen equals rejected"
    if tokenizer is not None and max_prompt_tokens is not None:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        if len(ids) > max_prompt_tokens:
            return f"prompt longer than {max_prompt_tokens} tokens"
    return None


def _check_splits(data: DatasetDict, train_users: set[str]) -> None:
    if "train" not in data:
        return
    train_prompts = {str(p) for p in data["train"]["prompt"]}
    for split, dataset in data.items():
        if split == "train":
            continue
        shared = [p for p in dataset["prompt"] if str(p) in train_prompts]
        if shared:
            raise SchemaError(
                f"{len(shared)} prompts of split {split!r} are in train too, first {str(shared[0])[:80]}. "
                "Split by prompt, so that a test asks something new."
            )
        users = set(dataset["user_id"])
        strangers, known = sorted(users - train_users), sorted(users & train_users)
        if split == "test_seen" and strangers:
            raise SchemaError(f"split 'test_seen' has users who are not in train: {strangers[:3]}.")
        if split.endswith("unseen") and known:
            raise SchemaError(f"split {split!r} has users who are in train: {known[:3]}.")
