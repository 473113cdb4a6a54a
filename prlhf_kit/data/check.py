"""The checks that every load goes through: each has a name, a rule and a count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import require_prefix
from prlhf_kit.data.scan import Scan, check_columns
from prlhf_kit.data.schema import SchemaError

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
        check_columns(split, dataset)
    scans = {
        split: Scan(split, dataset, rules, tokenizer, max_prompt_tokens, max_tokens) for split, dataset in data.items()
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


def _refuse_repeated_ids(scans: dict[str, Scan]) -> None:
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


def _find_shared_prompts(scans: dict[str, Scan]) -> None:
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


def _find_users_without_pairs(scans: dict[str, Scan], rules, min_pairs: int, wanted: set[str]) -> None:
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
