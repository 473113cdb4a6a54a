"""The checks that every load goes through: each has a name, a rule and a count."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import count_tokens, prompt_texts, require_prefix, shorten
from prlhf_kit.data.schema import COLUMNS, MESSAGES, SchemaError

# name -> what happens to a pair that fails it. `rules=` of `check` changes a rule; "shorten" drops the oldest turns.
RULES = {
    "empty prompt": "drop",
    "empty response": "drop",
    "chosen equals rejected": "drop",
    "over-long prompt": "shorten",
    "over-long pair": "drop",
    "duplicated pair": "drop",
    "contradictory pair": "drop",
    "prompt in train and test": "refuse",
    "user with too few pairs": "refuse",
}
BATCH = 1000  # rows in memory at a time


@dataclass(frozen=True)
class Report:
    """What the checks found, and what a loader had dropped before them.

    Args:
        table: one row per split, user and reason: columns `split`, `user_id`, `reason`, `pairs` (dropped).
        kept: pairs that are left, all splits together.
        checks: one row a check: columns `check`, `rule`, `pairs` (that failed it).
        counts: what the loader counted on its way, for comparison with a paper's own numbers.
        shortened: prompts that are kept without their oldest turns.
    """

    table: pd.DataFrame
    kept: int
    checks: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["check", "rule", "pairs"]))
    counts: Mapping[str, int] = field(default_factory=dict)
    shortened: int = 0

    def __str__(self) -> str:
        more = f"; {self.shortened} prompts without their oldest turns" if self.shortened else ""
        if self.table.empty:
            return f"{self.kept} pairs kept, none dropped{more}"
        found = self.table.groupby("reason").agg(pairs=("pairs", "sum"), users=("user_id", "nunique"))
        lines = [f"  {row.pairs} {reason} (of {row.users} users)" for reason, row in found.iterrows()]
        return f"{self.kept} pairs kept, {self.table.pairs.sum()} dropped{more}:\n" + "\n".join(lines)


def check(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    users: Iterable[str] = (),
    *,
    max_tokens: int | None = None,
    min_pairs: int = 1,
    rules: Mapping[str, str] | None = None,
) -> tuple[DatasetDict, Report]:
    """Refuse what can't be used, drop what must not be trained on, and report every drop by user.

    Always refused with `SchemaError`: a missing column, an id that is not text, a pair id that comes twice, messages
    of another form, a prompt that does not end with the user, a response that does not begin with the assistant, a
    seen-user test split with users who are not in train (or the reverse), a chat template that does not keep the
    prompt in front, no training pair left. What else is checked, and what happens then, is `RULES`:

    - *duplicated pair*: the same user, prompt and responses again in a split; the first is kept.
    - *contradictory pair*: a user who prefers both a to b and b to a for a prompt; none of them is kept.
    - *prompt in train and test*: a test prompt that is in `train` or `adapt_unseen` (white space apart); "drop" drops
      the test pair. Prompts that became the same by shortening are always dropped.
    - *user with too few pairs*: fewer than `min_pairs` pairs in `train`; "drop" drops the user's test pairs too.
    - *over-long prompt*, *over-long pair*: where `tokenizer` and a limit are given. "shorten" leaves out as many of the
      oldest turns as it takes, never the last user turn, and drops the pair if that alone is too long.

    Args:
        data: splits of preference records. They are read in batches: memory-mapped data stays on disk.
        tokenizer: counts tokens, chat template included.
        max_prompt_tokens: longest prompt, in tokens.
        users: ids that must have pairs in `train`.
        max_tokens: longest prompt and response together, in tokens.
        min_pairs: training pairs that a user needs.
        rules: check -> "refuse" or "drop" (or "shorten"), in place of `RULES`.

    Returns:
        The data without the dropped pairs, and the report.
    """
    rules = _rules(rules)
    if not data:
        raise SchemaError("the data have no split, expected at least 'train'.")
    if tokenizer is None and (max_prompt_tokens or max_tokens):
        raise SchemaError("max_prompt_tokens and max_tokens count a tokenizer's tokens: pass tokenizer too.")
    if tokenizer is not None:
        require_prefix(tokenizer)
    for split, dataset in data.items():
        _check_columns(split, dataset)
    scans = {
        split: _Scan(split, dataset, rules, tokenizer, max_prompt_tokens, max_tokens) for split, dataset in data.items()
    }
    for scan in scans.values():
        scan.find_repeats()
    _find_shared_prompts(scans)
    _find_users_without_pairs(scans, rules, min_pairs, set(users))
    _refuse_repeated_ids(scans)
    for scan in scans.values():
        scan.refuse()
    if "train" in scans and not (scans["train"].reason == "").any():
        raise SchemaError(f"no training pair is left ({scans['train'].drops().reason.value_counts().to_dict()}).")
    clean = DatasetDict({split: scan.select() for split, scan in scans.items() if len(scan.kept())})
    if not clean:
        raise SchemaError(
            f"no pair is left ({ {s: scan.drops().reason.value_counts().to_dict() for s, scan in scans.items()} })."
        )
    shortened = sum(len(scan.kept_short()) for scan in scans.values())
    table = pd.concat([scan.drops() for scan in scans.values()], ignore_index=True)
    found: dict[str, int] = {}
    for scan in scans.values():
        for name, n in scan.found().items():
            found[name] = found.get(name, 0) + n
    checks = pd.DataFrame(
        [(name, rule, found.get(name, 0)) for name, rule in rules.items()], columns=["check", "rule", "pairs"]
    )
    return clean, Report(table, sum(len(d) for d in clean.values()), checks, shortened=shortened)


def _rules(changed: Mapping[str, str] | None) -> dict[str, str]:
    if changed is not None and not isinstance(changed, Mapping):
        raise SchemaError(f"rules={changed!r}: expected a dict such as {{'contradictory pair': 'refuse'}}.")
    for name, rule in (changed or {}).items():
        if name not in RULES:
            raise SchemaError(f"no check {name!r}; there are: {', '.join(RULES)}.")
        allowed = ("refuse", "drop", "shorten") if name == "over-long prompt" else ("refuse", "drop")
        if rule not in allowed:
            raise SchemaError(f"the rule of {name!r} is {rule!r}, expected one of {allowed}.")
    return RULES | dict(changed or {})


class _Scan:
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


def _check_columns(split: str, dataset: Dataset) -> None:
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


def _refuse_repeated_ids(scans: dict[str, _Scan]) -> None:
    ids = pd.Series(np.concatenate([scan.ids for scan in scans.values()]))
    if not ids.duplicated().any():
        return
    twice = ids[ids.duplicated()].iloc[0]
    where = [split for split, scan in scans.items() if twice in scan.ids]
    row = int(np.flatnonzero(scans[where[0]].ids == twice)[0])
    raise SchemaError(
        f"the pair id {scans[where[0]].dataset[row]['pair_id']!r} comes {(ids == twice).sum()} times (in "
        f"{', '.join(where)}), expected once in the dataset. Make ids unique, for instance by putting the split's "
        "name in front."
    )


def _find_shared_prompts(scans: dict[str, _Scan]) -> None:
    learning = [scan for split, scan in scans.items() if not split.startswith("test")]
    learned = [scan.prompt[scan.kept()] for scan in learning]
    before = [scan.asked[scan.kept()] for scan in learning]
    for split, scan in scans.items():
        if not split.startswith("test") or not learned:
            continue
        kept = scan.kept()
        shared = kept[np.isin(scan.prompt[kept], np.concatenate(learned))]
        always = shared[np.isin(scan.asked[shared], np.concatenate(before))]  # not only since they are shortened
        if len(always) and scan.rules["prompt in train and test"] == "refuse":
            prompts = len(np.unique(scan.asked[always]))
            raise SchemaError(
                f"{prompts} prompts of split {split!r} are in train or adapt_unseen too, first "
                f"{str(scan.dataset[int(always[0])]['prompt'])[:80]}. Split by prompt, so that a test asks something "
                "new, or pass rules={'prompt in train and test': 'drop'} to leave those test pairs out."
            )
        scan.reason[shared] = "prompt in train and test"


def _find_users_without_pairs(scans: dict[str, _Scan], rules, min_pairs: int, wanted: set[str]) -> None:
    if "train" not in scans:
        return
    few = "user with too few pairs"
    train = scans["train"]
    counts = pd.Series(train.user[train.kept()]).value_counts()
    enough = set(counts[counts >= min_pairs].index)
    missing = sorted(wanted - enough)
    if missing:
        raise SchemaError(
            f"{len(missing)} users have no pairs in train, first {missing[0]!r}, expected at least {min_pairs}. A user "
            "without pairs can't be learned: add pairs, or leave the user out (at inference they are the generic user)."
        )
    if rules[few] == "refuse":
        for split, scan in scans.items():
            left = enough if split == "train" else set(scan.user[scan.kept()])
            lost = sorted(set(scan.user) - left)
            if lost:
                why = pd.Series(scan.reason[scan.user == lost[0]])
                raise SchemaError(
                    f"{len(lost)} users of split {split!r} have no pairs left, or fewer than {min_pairs}, first "
                    f"{lost[0]!r} (dropped: {why[why != ''].value_counts().to_dict()}). Mend those pairs, remove the "
                    f"users, or pass rules={{{few!r}: 'drop'}}."
                )
    else:
        for split in ("train", "test_seen"):
            if split in scans:
                kept = scans[split].kept()
                scans[split].reason[kept[~pd.Series(scans[split].user[kept]).isin(enough).to_numpy()]] = few
    for split, scan in scans.items():
        users = set(scan.user[scan.kept()])
        if split == "test_seen" and users - enough:
            raise SchemaError(f"split 'test_seen' has users who are not in train: {sorted(users - enough)[:3]}.")
        if split.endswith("unseen") and users & set(train.user):
            raise SchemaError(f"split {split!r} has users who are in train: {sorted(users & set(train.user))[:3]}.")
