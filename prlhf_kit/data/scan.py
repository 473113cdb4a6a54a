"""One split as the checks see it: read once, in batches."""

from __future__ import annotations

import uuid

import numpy as np
import pandas as pd
from datasets import Dataset

from prlhf_kit.data.chat import count_tokens, prompt_texts, shorten
from prlhf_kit.data.schema import COLUMNS, MESSAGES, SchemaError

BATCH = 1000  # rows in memory at a time


class Scan:
    """One split, read once: who, which prompt, which responses (as hashes), and why a pair is dropped ("" = kept)."""

    def __init__(self, split, dataset: Dataset, rules, tokenizer, max_prompt_tokens, max_tokens):
        self.split, self.dataset, self.rules = split, dataset, rules
        n = len(dataset)
        self.user = np.empty(n, dtype=object)
        self.reason = np.full(n, "", dtype=object)
        self.limits = {"over-long prompt": max_prompt_tokens, "over-long pair": max_tokens}
        self.ids, self.prompt, self.chosen, self.rejected = (np.empty(n, dtype=np.int64) for _ in range(4))
        self.asked = self.prompt  # hashes of prompts before any is shortened
        self.short: dict[int, list[dict]] = {}  # row -> its prompt without the oldest turns
        names: dict[str, str] = {}  # one string a user, not one a row
        start = 0
        for batch in dataset.select_columns([c for c in COLUMNS if c not in ("user_text", "group")]).iter(BATCH):
            for column in ("user_id", "pair_id"):
                _check_ids(split, column, batch[column])
            for column in MESSAGES:
                _check_messages(split, column, batch[column], start)
            stop = start + len(batch["pair_id"])
            self.user[start:stop] = [names.setdefault(user, user) for user in batch["user_id"]]
            self.ids[start:stop] = [hash(i) for i in batch["pair_id"]]
            for name, into in zip(MESSAGES, (self.prompt, self.chosen, self.rejected), strict=True):
                into[start:stop] = [_hash(value) for value in batch[name]]
            for i, (prompt, chosen, rejected) in enumerate(zip(*(batch[c] for c in MESSAGES), strict=True), start):
                self.reason[i] = _reason(prompt, chosen, rejected)
            if tokenizer is not None:
                self._measure(batch, start, tokenizer)
            start = stop

    def _measure(self, batch, start: int, tokenizer) -> None:
        limit, whole = self.limits.values()
        rows = [i for i in range(len(batch["pair_id"])) if not self.reason[start + i]]
        if limit is not None:
            long = count_tokens(tokenizer, prompt_texts(tokenizer, [batch["prompt"][i] for i in rows], answered=False))

            def fits(prompt):
                return count_tokens(tokenizer, prompt_texts(tokenizer, [prompt], answered=False))[0] <= limit

            for i, tokens in zip(rows, long, strict=True):
                if tokens > limit:
                    short = None
                    if self.rules["over-long prompt"] == "shorten":
                        short = shorten(batch["prompt"][i], fits)
                    if short is None:
                        self.reason[start + i] = "over-long prompt"
                    else:
                        if self.asked is self.prompt:
                            self.asked = self.prompt.copy()
                        self.short[start + i] = batch["prompt"][i] = short
                        self.prompt[start + i] = _hash(short)
        if whole is not None:
            rows = [i for i in rows if not self.reason[start + i]]
            for column in ("chosen", "rejected"):
                dialogues = [batch["prompt"][i] + batch[column][i] for i in rows]
                for i, tokens in zip(
                    rows, count_tokens(tokenizer, prompt_texts(tokenizer, dialogues, answered=True)), strict=True
                ):
                    if tokens > whole:
                        self.reason[start + i] = "over-long pair"

    def find_repeats(self) -> None:
        """Mark duplicated pairs (but the first) and pairs that contradict another one of the same user."""
        kept = self.kept()
        low, high = np.minimum(self.chosen, self.rejected)[kept], np.maximum(self.chosen, self.rejected)[kept]
        table = pd.DataFrame(
            {
                "user": pd.factorize(self.user[kept])[0],
                "prompt": self.prompt[kept],
                "low": low,
                "high": high,
                "first": self.chosen[kept] == low,
            }
        )
        asked = ["user", "prompt", "low", "high"]
        both = table.groupby(asked)["first"].transform("nunique").to_numpy() > 1
        again = table.duplicated().to_numpy() & ~both
        self.reason[kept[both]] = "contradictory pair"
        self.reason[kept[again]] = "duplicated pair"

    def kept(self) -> np.ndarray:
        """Rows that no check has dropped so far."""
        return np.flatnonzero(self.reason == "")

    def found(self) -> dict[str, int]:
        """Pairs that failed each check."""
        names, counts = np.unique(self.reason[self.reason != ""].astype(str), return_counts=True)
        found = dict(zip(names.tolist(), counts.tolist(), strict=True))
        found["over-long prompt"] = found.get("over-long prompt", 0) + len(self.kept_short())
        return found

    def kept_short(self) -> list[int]:
        """Rows that are kept with a shortened prompt."""
        return [row for row in self.short if not self.reason[row]]

    def drops(self) -> pd.DataFrame:
        """Columns `split`, `user_id`, `reason`, `pairs`."""
        dropped = self.reason != ""
        reasons = [self._told(reason) for reason in self.reason[dropped]]
        table = pd.DataFrame({"split": self.split, "user_id": self.user[dropped], "reason": reasons})
        return table.value_counts(sort=False).rename("pairs").reset_index()

    def _told(self, reason: str) -> str:
        limit = self.limits.get(reason)
        return reason if limit is None else f"{reason.removeprefix('over-long ')} longer than {limit} tokens"

    def refuse(self) -> None:
        """Raise for the first pair that fails a check whose rule is "refuse"."""
        for name, n in self.found().items():
            if n and self.rules[name] == "refuse" and name != "prompt in train and test":  # refused by its own function
                row = int(np.flatnonzero(self.reason == name)[0]) if (self.reason == name).any() else min(self.short)
                raise SchemaError(
                    f"{n} pairs of split {self.split!r} fail the check {name!r}, first "
                    f"{self.dataset[row]['pair_id']!r} of user {self.user[row]!r}. Mend them, or pass "
                    f"rules={{{name!r}: 'drop'}} to leave them out."
                )

    def select(self) -> Dataset:
        """The split without what was dropped, shortened prompts in place."""
        kept = self.kept()
        dataset = self.dataset if len(kept) == len(self.dataset) else self.dataset.select(kept)
        short = {new: self.short[old] for new, old in enumerate(kept.tolist()) if old in self.short}
        if short:
            # a fingerprint of its own: `datasets` would pickle all the prompts to make one
            dataset = dataset.map(
                lambda row, i: {"prompt": short.get(i, row["prompt"])},
                with_indices=True,
                new_fingerprint=uuid.uuid4().hex[:16],
            )
        return dataset


def _hash(messages: list[dict]) -> int:
    return hash(tuple((m["role"], m["content"].strip()) for m in messages))


def _reason(prompt: list[dict], chosen: list[dict], rejected: list[dict]) -> str:
    if not prompt[-1]["content"].strip():
        return "empty prompt"
    a, b = ([m["content"].strip() for m in response] for response in (chosen, rejected))
    if not all(a) or not all(b):
        return "empty response"
    return "chosen equals rejected" if a == b else ""


def check_columns(split: str, dataset: Dataset) -> None:
    missing = [c for c in COLUMNS if c not in dataset.column_names]
    if missing:
        raise SchemaError(
            f"split {split!r} has no column {', '.join(map(repr, missing))}; found {dataset.column_names}, expected "
            f"{list(COLUMNS)}. Rename your columns, or add them (user_text and group may be all null)."
        )


def _check_ids(split: str, column: str, values: list) -> None:
    for value in values:
        if not isinstance(value, str) or not value:
            raise SchemaError(
                f"split {split!r} has the {column.replace('_', ' ')} {value!r} ({type(value).__name__}), expected "
                f"non-empty text. Convert it once: dataset.map(lambda row: {{'{column}': str(row['{column}'])}})."
            )


def _check_messages(split: str, column: str, values: list, start: int) -> None:
    for i, messages in enumerate(values, start):
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
        right = messages[-1]["role"] == "user" if column == "prompt" else messages[0]["role"] == "assistant"
        if not right:
            rule = "end with role 'user'" if column == "prompt" else "begin with role 'assistant'"
            raise SchemaError(
                f"split {split!r}, row {i}, column {column!r} has the roles {[m['role'] for m in messages]}, expected "
                f"it to {rule}. Put the dialogue so far into prompt, and only what answers it into chosen and rejected."
            )
