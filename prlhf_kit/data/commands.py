"""What `prlhf data` does; `cli.py` holds its options."""

from __future__ import annotations

import argparse

from prlhf_kit import data
from prlhf_kit.data.prepare import cards_table, compare_counts, require_free
from prlhf_kit.data.prepare import prepare as write
from prlhf_kit.models import hub


def list_datasets(args: argparse.Namespace) -> int:
    """`prlhf data list`: every dataset and its options."""
    if args.markdown:
        print(cards_table())
        return 0
    for name, module in data.DATASETS.items():
        options = ", ".join(f"{key}={value!r}" for key, value in data.resolved(name, {}).items())
        print(f"{name}: {module.CARD.title}\n    source: {module.CARD.source}\n    options: {options or 'none'}")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """`prlhf data prepare`: load, check and write a dataset."""
    require_free(args.out, args.path, args.force)  # before any long work
    loaded, found, limits = _load(args)
    out = write(loaded, found, args.out, args.name, args.path, dict(args.option or []), limits, args.force)
    print(f"{found}\n{', '.join(f'{split}: {len(rows)}' for split, rows in loaded.items())} pairs\n{out.resolve()}")
    return 0


def check(args: argparse.Namespace) -> int:
    """`prlhf data check`: load and check a dataset, and compare its counts with the paper's."""
    loaded, found, _ = _load(args)
    print(f"{found}\n\n{found.checks.to_string(index=False)}\n")
    for split, rows in loaded.items():
        print(f"{split}: {len(rows)} pairs of {len(set(rows['user_id']))} users")
    counts = compare_counts(args.name, found)
    if counts.empty:
        print("\nno counts of a paper to compare with")
    else:
        print(f"\ncounted here and in the papers:\n{counts.to_string(index=False, na_rep='not counted')}")
        differ = counts[counts.difference.notna() & (counts.difference != 0)]
        print(f"{len(differ)} of {counts.found.notna().sum()} differ" if counts.found.notna().any() else "none counted")
    return 0


def _load(args: argparse.Namespace):
    """What `prlhf data` loads, its report, and the limits that were set."""
    if args.name not in data.DATASETS:
        data.load(args.name)  # says what there is
        raise data.SchemaError(f"{args.name} is prepared already; give the name of a dataset.")
    data.resolved(args.name, dict(args.option or []))
    tokenizer = hub.load_tokenizer(args.model) if args.max_prompt_tokens or args.max_tokens else None
    limits = {"max_prompt_tokens": args.max_prompt_tokens, "max_tokens": args.max_tokens, "min_pairs": args.min_pairs}
    loaded, found = data.load_with_report(
        args.name, args.path, tokenizer=tokenizer, rules=dict(args.rule or []), **limits, **dict(args.option or [])
    )
    return loaded, found, limits | {"tokenizer": args.model if tokenizer else None, "rules": dict(args.rule or [])}
