"""The checks that every load goes through, each with a name, a rule and a count: all on one table of hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from datasets import DatasetDict

from prlhf_kit.data.chat import count_tokens, require_prefix, shorten, token_quantiles
from prlhf_kit.data.collect import changed
from prlhf_kit.data.registry import Report, require_known
from prlhf_kit.data.schema import COLUMNS, MESSAGES, SchemaError

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# Name -> what happens to a pair that fails it. `rules=` of `check` changes a rule.
RULES = {
    "empty prompt": "drop",
    "empty response": "drop",
    "chosen equals rejected": "drop",
    # where there is a limit. "shorten" leaves out as many of the oldest turns as it takes, never the last user turn,
    # and drops the pair if that alone is too long
    "over-long prompt": "shorten",
    "over-long pair": "drop",
    # the same user, prompt and responses again in a split: the first is kept
    "duplicated pair": "drop",
    # a user who prefers both a to b and b to a for a prompt: none of them is kept
    "contradictory pair": "drop",
    # a test prompt that is in `train` or `adapt_unseen`, white space apart. "drop" drops the test pair
    "prompt in train and test": "refuse",
    # fewer than `min_pairs` pairs in `train`. "drop" drops the user's test pairs too
    "user with too few pairs": "refuse",
}


def check(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    *,
    max_tokens: int | None = None,
    min_pairs: int = 1,
    rules: Mapping[str, str] | None = None,
) -> tuple[DatasetDict, Report]:
    """Refuse what can't be used, drop what must not be trained on (`RULES`), and report every drop by user.

    Args:
        data: splits of preference records. They are read in batches: memory-mapped data stays on disk.
        tokenizer: counts tokens, chat template included.
        max_prompt_tokens: longest prompt, in tokens.
        max_tokens: longest prompt and response together, in tokens.
        min_pairs: training pairs that a user needs.
        rules: check -> "refuse" or "drop" (or "shorten"), in place of `RULES`.

    Returns:
        The data without the dropped pairs, and the report.

    Raises:
        SchemaError: ids, messages or columns of another form, an id that comes twice, users in a split where they
            do not belong, a chat template that does not keep the prompt in front, no training pair left; and by a rule.
    """
    require_known(rules or {}, RULES, "check")
    for name, rule in (rules or {}).items():
        allowed = ("refuse", "drop", "shorten") if name == "over-long prompt" else ("refuse", "drop")
        if rule not in allowed:
            raise SchemaError(f"the rule of {name!r} is {rule!r}, expected one of {allowed}.")
    rules = RULES | dict(rules or {})
    if tokenizer is not None:
        require_prefix(tokenizer)
    elif max_prompt_tokens or max_tokens:
        raise SchemaError("max_prompt_tokens and max_tokens count a tokenizer's tokens: pass tokenizer too.")
    short: dict[str, list[dict]] = {}  # pair id -> its prompt without the oldest turns
    tables = []
    for split, pairs in data.items():
        if missing := [c for c in COLUMNS if c not in pairs.column_names]:
            raise SchemaError(
                f"split {split!r} has no column {str(missing)[1:-1]}, only {pairs.column_names}: rename or add it."
            )
        start = 0
        for batch in pairs.select_columns(["pair_id", "user_id", *MESSAGES]).iter(1000):
            _require_form(batch, split, start)
            reasons = [_reason(*pair) for pair in zip(*(batch[c] for c in MESSAGES), strict=True)]
            if tokenizer is not None:
                _measure(batch, reasons, tokenizer, max_prompt_tokens, max_tokens, rules, short)
            hashes = {column: [_hash(messages) for messages in batch[column]] for column in MESSAGES}
            columns = {"pair_id": batch["pair_id"], "user": batch["user_id"], **hashes, "reason": reasons}
            tables.append(pd.DataFrame({"split": split, "row": range(start, start + len(reasons)), **columns}))
            start += len(reasons)
    if not tables:
        raise SchemaError("the data have no pair, expected some in the split 'train'.")
    # one row a pair, with the hashes of its messages and the reason why it is dropped ("": it is not)
    table = pd.concat(tables, ignore_index=True)
    _compare(table, rules, min_pairs)
    kept = table[table.reason == ""]
    clean = DatasetDict()
    for split in kept.split.unique():
        rows = kept[kept.split == split]
        clean[split] = data[split] if len(rows) == len(data[split]) else data[split].select(rows.row.to_numpy())
        if rows.pair_id.isin(short).any():
            clean[split] = changed(clean[split], lambda row: {"prompt": short.get(row["pair_id"], row["prompt"])})
    shortened = int(kept.pair_id.isin(short).sum())
    found = Counter(table.reason) + Counter({"over-long prompt": shortened})
    checks = pd.DataFrame([(*rule, found[rule[0]]) for rule in rules.items()], columns=["check", "rule", "pairs"])
    long = "over-long prompt", "over-long pair"
    names = {long[0]: f"{long[0]} ({max_prompt_tokens=})", long[1]: f"{long[1]} ({max_tokens=})"}
    dropped = table[table.reason != ""].rename(columns={"user": "user_id"}).replace({"reason": names})
    drops = dropped.groupby(["split", "user_id", "reason"], sort=False).size().rename("pairs").reset_index()
    tokens = None
    if tokenizer is not None:
        each = {split: token_quantiles(tokenizer, pairs) for split, pairs in data.items()}
        tokens = pd.concat(each, names=["split"]).reset_index("split")
    return clean, Report(drops, len(kept), checks, shortened=shortened, tokens=tokens)


def _require_form(batch: Mapping[str, list], split: str, start: int) -> None:
    for column, values in batch.items():
        for i, value in enumerate(values):
            wanted = (
                "non-empty text. Give it, or leave the row out. A number: dataset.map(lambda row: {..., str(...)})."
            )
            right = isinstance(value, str) and bool(value)
            if column in MESSAGES:
                wanted = "a list of {'role': ..., 'content': text} messages."
                try:
                    roles = [m["role"] for m in value]
                    right = bool(roles) and all(isinstance(m[key], str) for m in value for key in ("role", "content"))
                except (TypeError, KeyError):
                    right = False
                if right and not (roles[-1] == "user" if column == "prompt" else roles[0] == "assistant"):
                    rule = "ends with role 'user'" if column == "prompt" else "begins with role 'assistant'"
                    wanted = f"a list that {rule}, not the roles {roles}. The dialogue so far belongs into the prompt."
                    right = False
            if not right:
                raise SchemaError(
                    f"split {split!r}, row {start + i} (pair_id {batch['pair_id'][i]!r}), column {column!r} is "
                    f"{str(value)[:80]!r} ({type(value).__name__}), expected {wanted}"
                )


def _reason(prompt: list[dict], chosen: list[dict], rejected: list[dict]) -> str:
    if not prompt[-1]["content"].strip():
        return "empty prompt"
    a, b = ([m["content"].strip() for m in response] for response in (chosen, rejected))
    if not all(a) or not all(b):
        return "empty response"
    return "chosen equals rejected" if a == b else ""


def _hash(messages: list[dict]) -> int:
    return hash(tuple((m["role"], m["content"].strip()) for m in messages))


def _measure(batch, reasons: list[str], tokenizer, limit, whole, rules, short) -> None:
    """Mark prompts over `limit` and pairs over `whole` in `reasons`; `short` takes the prompts that are shortened."""
    if limit is not None:
        rows = [i for i, reason in enumerate(reasons) if not reason]
        counts = count_tokens(tokenizer, [batch["prompt"][i] for i in rows], False)
        for i, n in zip(rows, counts, strict=True):
            left = None
            if n > limit and rules["over-long prompt"] == "shorten":
                left = shorten(batch["prompt"][i], lambda prompt: count_tokens(tokenizer, [prompt], False)[0] <= limit)
            if left is not None:
                short[batch["pair_id"][i]] = batch["prompt"][i] = left
            elif n > limit:
                reasons[i] = "over-long prompt"
    if whole is not None:
        rows = [i for i, reason in enumerate(reasons) if not reason]
        for column in ("chosen", "rejected"):
            counts = count_tokens(tokenizer, [batch["prompt"][i] + batch[column][i] for i in rows], True)
            for i, n in zip(rows, counts, strict=True):
                if n > whole:
                    reasons[i] = "over-long pair"


def _compare(table: pd.DataFrame, rules: Mapping[str, str], min_pairs: int) -> None:
    """The checks that need all pairs, each marking what it drops; then what is refused."""
    again = table[table.pair_id.duplicated(keep=False)]
    if len(again):
        same = again[again.pair_id == again.pair_id.iloc[0]]
        raise SchemaError(
            f"the pair id {same.pair_id.iloc[0]!r} comes {len(same)} times, in {[*same.split.unique()]}, expected "
            "once: give every pair its own."
        )
    kept = table[table.reason == ""]
    low, high = np.minimum(kept.chosen, kept.rejected), np.maximum(kept.chosen, kept.rejected)
    both = (kept.chosen == low).groupby([kept.split, kept.user, kept.prompt, low, high]).transform("nunique") > 1
    repeated = kept.duplicated(["split", "user", *MESSAGES]) & ~both
    table.loc[both[both].index, "reason"] = "contradictory pair"
    table.loc[repeated[repeated].index, "reason"] = "duplicated pair"
    kept = table[table.reason == ""]
    test = kept.split.str.startswith("test")
    table.loc[kept.index[test & kept.prompt.isin(kept.prompt[~test])], "reason"] = "prompt in train and test"
    if (table.split == "train").any():
        _require_users(table, rules, min_pairs)
    failed = table[table.reason.map(rules) == "refuse"]
    if len(failed):
        first = failed.iloc[0]
        same = failed[(failed.split == first.split) & (failed.reason == first.reason)]
        raise SchemaError(
            f"{len(same)} pairs of split {first.split!r} fail the check {first.reason!r}, first {first.pair_id!r} of "
            f"user {first.user!r}. Fix them, or pass rules={{{first.reason!r}: 'drop'}} to leave them out."
        )
    train = table[table.split == "train"] if (table.split == "train").any() else table
    if not (train.reason == "").any():
        why = train.reason.value_counts().to_dict()
        raise SchemaError(f"no training pair is left, all were dropped ({why}). Fix some, or change those rules.")


def _require_users(table: pd.DataFrame, rules: Mapping[str, str], min_pairs: int) -> None:
    """Refuse or drop users with fewer than `min_pairs` training pairs, and refuse those in a split of others."""
    train = table[table.split == "train"]
    counts = train.user[train.reason == ""].value_counts()
    enough = set(counts.index[counts >= min_pairs])
    few = "user with too few pairs"
    lost = sorted(set(train.user) - enough)
    if lost and rules[few] == "refuse":
        why = train.reason[(train.user == lost[0]) & (train.reason != "")].value_counts().to_dict()
        raise SchemaError(
            f"{len(lost)} users of split 'train' have no pairs left, or fewer than {min_pairs}, first {lost[0]!r} "
            f"(dropped: {why}). Fix those pairs, or pass rules={{{few!r}: 'drop'}} (--rule '{few}' drop)."
        )
    if rules[few] == "drop":  # from `test_own` too
        others = ~table.split.str.endswith("unseen") & ~table.user.isin(enough)
        table.loc[others & (table.reason == ""), "reason"] = few
    for split, there in table[table.reason == ""].groupby("split").user.unique().items():
        unseen = str(split).endswith("unseen")
        odd = set(there) & set(train.user) if unseen else set(there) - enough if split == "test_seen" else set()
        if odd:
            where, way = ("are", "test_seen") if unseen else ("are not", "test_unseen")
            raise SchemaError(
                f"split {split!r} has users who {where} in train: {sorted(odd)[:3]}. Move their pairs to {way!r}, or "
                "leave them out."
            )
