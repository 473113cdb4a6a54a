"""The checks that every load goes through, each with a name, a rule and a count: all on one table of hashes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from prlhf_kit.data.cards import Report
from prlhf_kit.data.chat import count_tokens, prompt_texts, require_prefix, shorten, token_quantiles
from prlhf_kit.data.collect import changed
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
    # a test prompt that is in `train` or `adapt_unseen`, white space apart. "drop" drops the test pair. Prompts that
    # became the same by shortening are always dropped
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
    """Refuse what can't be used, drop what must not be trained on, and report every drop by user.

    Always refused with `SchemaError`: a missing column, an id that is not text, a pair id that comes twice, messages
    of another form, a prompt that does not end with the user, a response that does not begin with the assistant, a
    seen-user test split with users who are not in train (or the reverse), a chat template that does not keep the
    prompt in front, no training pair left. What else is checked, and what happens then, is `RULES`.

    Args:
        data: splits of preference records. They are read in batches: memory-mapped data stays on disk.
        tokenizer: counts tokens, chat template included.
        max_prompt_tokens: longest prompt, in tokens.
        max_tokens: longest prompt and response together, in tokens.
        min_pairs: training pairs that a user needs.
        rules: check -> "refuse" or "drop" (or "shorten"), in place of `RULES`.

    Returns:
        The data without the dropped pairs, and the report.
    """
    for name, rule in (rules or {}).items():
        if name not in RULES:
            raise SchemaError(f"no check {name!r}; there are: {', '.join(RULES)}.")
        allowed = ("refuse", "drop", "shorten") if name == "over-long prompt" else ("refuse", "drop")
        if rule not in allowed:
            raise SchemaError(f"the rule of {name!r} is {rule!r}, expected one of {allowed}.")
    rules = RULES | dict(rules or {})
    if not data:
        raise SchemaError("the data have no split, expected at least 'train'.")
    if tokenizer is not None:
        require_prefix(tokenizer)
    elif max_prompt_tokens or max_tokens:
        raise SchemaError("max_prompt_tokens and max_tokens count a tokenizer's tokens: pass tokenizer too.")
    limits = {"over-long prompt": max_prompt_tokens, "over-long pair": max_tokens}
    short: dict[tuple[str, int], list[dict]] = {}  # (split, row) -> its prompt without the oldest turns
    scans = [_scan(split, pairs, tokenizer, limits, rules, short) for split, pairs in data.items()]
    tokens = (
        {split: token_quantiles(tokenizer, pairs) for split, pairs in data.items()} if tokenizer is not None else {}
    )
    table = pd.concat(scans, ignore_index=True)
    _mark_repeats(table)
    _mark_leaks(table, rules)
    _mark_users(table, rules, min_pairs)
    _refuse(table, rules)
    kept = table[table.reason == ""]
    left = [place for place in zip(kept.split, kept.row, strict=True) if place in short] if short else []
    clean = DatasetDict()
    for split in kept.split.unique():
        rows = kept.row[kept.split == split]
        clean[split] = data[split] if len(rows) == len(data[split]) else data[split].select(rows.to_numpy())
        if any(where == split for where, _ in left):
            asked = zip(rows, clean[split]["prompt"], strict=True)
            prompts = iter([short.get((split, i), prompt) for i, prompt in asked])
            clean[split] = changed(clean[split], functools.partial(_with_next, prompts))
    found = table.reason.value_counts().to_dict()
    found["over-long prompt"] = found.get("over-long prompt", 0) + len(left)
    checks = pd.DataFrame({"check": list(rules), "rule": list(rules.values())})
    checks["pairs"] = [found.get(name, 0) for name in rules]
    names = {"over-long prompt": "max_prompt_tokens", "over-long pair": "max_tokens"}
    told = {name: f"{name} ({names[name]}={limit})" for name, limit in limits.items() if limit}
    dropped = table[table.reason != ""].rename(columns={"user": "user_id"}).replace({"reason": told})
    drops = dropped.groupby(["split", "user_id", "reason"], sort=False).size().rename("pairs").reset_index()
    quantiles = pd.concat(tokens, names=["split"]).reset_index("split") if tokens else None
    return clean, Report(drops, len(kept), checks, shortened=len(left), tokens=quantiles)


def _scan(split: str, pairs: Dataset, tokenizer, limits, rules, short) -> pd.DataFrame:
    """One row a pair: `split`, `row`, `pair_id`, `user`, hashes of `prompt`, `chosen`, `rejected` and of the prompt
    before it was shortened (`asked`), and the `reason` why it is dropped ("": it is not)."""
    missing = [c for c in COLUMNS if c not in pairs.column_names]
    if missing:
        raise SchemaError(
            f"split {split!r} has no column {', '.join(map(repr, missing))}; found {pairs.column_names}, expected "
            f"{list(COLUMNS)}. Rename your columns, or add them (user_text and group may be all null)."
        )
    tables = [pd.DataFrame(columns=["split", "row", "pair_id", "user", *MESSAGES, "asked", "reason"])]
    start = 0
    for batch in pairs.select_columns([c for c in COLUMNS if c not in ("user_text", "group")]).iter(1000):
        n = len(batch["pair_id"])
        for column, values in batch.items():
            for i, value in enumerate(values):
                if wrong := _wrong(column, value):
                    pair = f"row {start + i} (pair_id {batch['pair_id'][i]!r})"
                    raise SchemaError(f"split {split!r}, {pair}, column {column!r} is {wrong}")
        reasons = [_reason(*pair) for pair in zip(*(batch[c] for c in MESSAGES), strict=True)]
        asked = [_hash(prompt) for prompt in batch["prompt"]]
        if tokenizer is not None:
            _measure(batch, reasons, tokenizer, limits, rules, short, split, start)
        tables.append(
            pd.DataFrame(
                {
                    "split": split,
                    "row": np.arange(start, start + n),
                    "pair_id": batch["pair_id"],
                    "user": batch["user_id"],
                    **{column: [_hash(value) for value in batch[column]] for column in MESSAGES},
                    "asked": asked,
                    "reason": reasons,
                }
            )
        )
        start += n
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _wrong(column: str, value: Any) -> str:
    """What is wrong with a value, as the end of a sentence; "": nothing."""
    if column not in MESSAGES:
        right = isinstance(value, str) and bool(value)
        wanted = "non-empty text. Convert it once: dataset.map(lambda row: {..., str(row[...])})."
    else:
        wanted = "a list of {'role': ..., 'content': text} messages."
        try:
            roles = [m["role"] for m in value]
            texts = [m[key] for m in value for key in ("role", "content")]
            right = bool(roles) and all(roles) and all(isinstance(text, str) for text in texts)
        except (TypeError, KeyError):
            right = False
        if right and (roles[-1] != "user" if column == "prompt" else roles[0] != "assistant"):
            rule = "end with role 'user'" if column == "prompt" else "begin with role 'assistant'"
            return (
                f"a list with the roles {roles}, expected it to {rule}. Put the dialogue so far into prompt, and only "
                "what answers it into chosen and rejected."
            )
    return "" if right else f"{str(value)[:80]!r} ({type(value).__name__}), expected {wanted}"


def _reason(prompt: list[dict], chosen: list[dict], rejected: list[dict]) -> str:
    if not prompt[-1]["content"].strip():
        return "empty prompt"
    a, b = ([m["content"].strip() for m in response] for response in (chosen, rejected))
    if not all(a) or not all(b):
        return "empty response"
    return "chosen equals rejected" if a == b else ""


def _hash(messages: list[dict]) -> int:
    return hash(tuple((m["role"], m["content"].strip()) for m in messages))


def _measure(batch, reasons: list[str], tokenizer, limits, rules, short, split: str, start: int) -> None:
    """Shorten prompts of `batch` that are too long, and mark what stays too long in `reasons`."""

    def tokens(dialogues: list, answered: bool) -> list[int]:
        return count_tokens(tokenizer, prompt_texts(tokenizer, dialogues, answered))

    limit, whole = limits.values()
    if limit is not None:
        rows = [i for i, reason in enumerate(reasons) if not reason]
        for i, n in zip(rows, tokens([batch["prompt"][i] for i in rows], False), strict=True):
            if n > limit:
                left = None
                if rules["over-long prompt"] == "shorten":
                    left = shorten(batch["prompt"][i], lambda prompt: tokens([prompt], False)[0] <= limit)
                if left is None:
                    reasons[i] = "over-long prompt"
                else:
                    short[split, start + i] = batch["prompt"][i] = left
    if whole is not None:
        rows = [i for i, reason in enumerate(reasons) if not reason]
        for column in ("chosen", "rejected"):
            dialogues = [batch["prompt"][i] + batch[column][i] for i in rows]
            for i, n in zip(rows, tokens(dialogues, True), strict=True):
                if n > whole:
                    reasons[i] = "over-long pair"


def _with_next(prompts: Iterator[list[dict]], _: dict) -> dict:
    return {"prompt": next(prompts)}


def _mark_repeats(table: pd.DataFrame) -> None:
    """Duplicated pairs (but the first), and pairs that contradict another one of the same user."""
    kept = table[table.reason == ""]
    low, high = np.minimum(kept.chosen, kept.rejected), np.maximum(kept.chosen, kept.rejected)
    asked = [kept.split, kept.user, kept.prompt, low, high]
    both = (kept.chosen == low).groupby(asked).transform("nunique") > 1
    again = kept.duplicated(["split", "user", *MESSAGES]) & ~both
    table.loc[both[both].index, "reason"] = "contradictory pair"
    table.loc[again[again].index, "reason"] = "duplicated pair"


def _mark_leaks(table: pd.DataFrame, rules: Mapping[str, str]) -> None:
    """Test pairs whose prompt is in `train` or `adapt_unseen` too."""
    kept = table[table.reason == ""]
    test = kept.split.str.startswith("test")
    shared = kept[test & kept.prompt.isin(kept.prompt[~test])]
    before = shared[shared.asked.isin(kept.asked[~test])]  # not only since they are shortened
    if len(before) and rules["prompt in train and test"] == "refuse":
        first = before.iloc[0]
        n = before.asked[before.split == first.split].nunique()
        raise SchemaError(
            f"{n} prompts of split {first.split!r} are in train or adapt_unseen too, first that of the pair "
            f"{first.pair_id!r}. Split by prompt, so that a test asks something new, or pass "
            "rules={'prompt in train and test': 'drop'} to leave those test pairs out."
        )
    table.loc[shared.index, "reason"] = "prompt in train and test"


def _mark_users(table: pd.DataFrame, rules: Mapping[str, str], min_pairs: int) -> None:
    """Users with fewer than `min_pairs` training pairs; and users who are in a split where they can't be."""
    if not (table.split == "train").any():
        return
    kept = table[table.reason == ""]
    counts = kept.user[kept.split == "train"].value_counts()
    enough = counts.index[counts >= min_pairs]
    few = "user with too few pairs"
    if rules[few] == "refuse":
        for split in table.split.unique():
            rows = table[table.split == split]
            lost = sorted(set(rows.user) - set(enough if split == "train" else rows.user[rows.reason == ""]))
            if lost:
                why = rows.reason[(rows.user == lost[0]) & (rows.reason != "")].value_counts().to_dict()
                raise SchemaError(
                    f"{len(lost)} users of split {split!r} have no pairs left, or fewer than {min_pairs}, first "
                    f"{lost[0]!r} (dropped: {why}). Mend those pairs, remove the users, or pass "
                    f"rules={{{few!r}: 'drop'}}."
                )
    else:
        seen = kept[kept.split.isin(["train", "test_seen"])]
        table.loc[seen[~seen.user.isin(enough)].index, "reason"] = few
    kept = table[table.reason == ""]
    trained = set(table.user[table.split == "train"])
    for split in kept.split.unique():
        users = kept.user[kept.split == split]
        if split == "test_seen" and (odd := set(users) - set(enough)):
            raise SchemaError(f"split 'test_seen' has users who are not in train: {sorted(odd)[:3]}.")
        if split.endswith("unseen") and (odd := set(users) & trained):
            raise SchemaError(f"split {split!r} has users who are in train: {sorted(odd)[:3]}.")


def _refuse(table: pd.DataFrame, rules: Mapping[str, str]) -> None:
    """Repeated ids, pairs that fail a check whose rule is "refuse", and data with no training pair left."""
    again = table[table.pair_id.duplicated(keep=False)]
    if len(again):
        same = again[again.pair_id == again.pair_id.iloc[0]]
        raise SchemaError(
            f"the pair id {same.pair_id.iloc[0]!r} comes {len(same)} times (in {', '.join(same.split.unique())}), "
            "expected once in the dataset. Make ids unique, for instance by putting the split's name in front."
        )
    for name, rule in rules.items():
        failed = table[table.reason == name]
        if rule == "refuse" and len(failed) and name != "prompt in train and test":  # there shortened ones are left
            first = failed.iloc[0]
            raise SchemaError(
                f"{(failed.split == first.split).sum()} pairs of split {first.split!r} fail the check {name!r}, first "
                f"{first.pair_id!r} of user {first.user!r}. Mend them, or pass rules={{{name!r}: 'drop'}} to leave "
                "them out."
            )
    train = table[table.split == "train"] if (table.split == "train").any() else table
    if not (train.reason == "").any():
        raise SchemaError(f"no training pair is left ({train.reason.value_counts().to_dict()}).")
