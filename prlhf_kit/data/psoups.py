"""`psoups`: Personalized Soups (Jang et al. 2023, arXiv 2310.11564), with P-RLHF's six users."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from prlhf_kit.data.registry import Records, Tally, dataset, names, require_known, split_of
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import local_rows

PROFILES = {  # P-RLHF's users 1 to 6, in its order, and what such a person would say
    "P1A": "Explain it so that a child in primary school can follow.",
    "P1B": "Answer me as one expert of the field to another.",
    "P2A": "Keep it short and to the point.",
    "P2B": "Tell me everything, with all the background.",
    "P3A": "Be friendly and funny, as a close friend would be.",
    "P3B": "Do not be friendly with me.",
}
COUNTS = (53_471, 8_959, 9_069, 8_239, 8_626, 9_356, 9_222)  # P-RLHF's pairs: of all users, and of each


@dataset(
    "psoups",
    title="Personalized Soups (Jang et al. 2023, arXiv 2310.11564)",
    source="link in https://github.com/joeljang/RLPHF; allcombo_8_cleaned.json or rm_training/",
    licence="none stated",
    users="6 (P1A to P3B): opposite wishes for expertise, detail and style",
    quality="GPT-4 judged whether a response fits the wish; both responses come from models that had been given "
    "wishes, so the style alone often tells. The same prompts serve all users.",
    counts=dict(zip(["pairs", *(f"pairs of {user}" for user in PROFILES)], COUNTS, strict=True)),
)
def read(
    tally: Tally,
    path: str | Path,
    *,
    test_share: float = 0.1,
    fold: int = 0,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> Records:
    """Records split by prompt: P-RLHF splits by pair, so that the same prompts and responses are in train and test.

    A row: `{"user_id": 3, "user_input": "How do I make tea?", "completion_a": "Boil water, add leaves.",
    "completion_b": "Tea has a long history."}`, of which the first completion is preferred.

    Args:
        path: `allcombo_8_cleaned.json`, as P-RLHF makes it, or a folder with it; or the folder `rm_training` with
            `P1A.json` ... `P3B.json`, which have no `user_id`, many duplicates, and the wish of the profile at the end
            of every `user_input`. It is cut off: it would tell the model what to learn. Or AlignX' selection
            (`pairs.jsonl`): `{"user_id": "P1A", "user_text": "...", "prompt": ..., "chosen": ..., "rejected": ...}`.
        test_share, seed: share of the prompts for tests, and what draws them.
        fold: which share: with `test_share=0.2`, 0 to 4 are five disjoint tests of all prompts.
        unseen: profiles that are not trained on.
    """
    unseen = names(unseen, PROFILES, "profile")
    if fold < 0 or (fold + 1) * test_share > 1:
        raise SchemaError(f"{fold=} of {test_share=}: expected 0 or more, and no share beyond the last.")
    told: set[tuple] = set()
    for user, text, question, a, b in _comparisons(Path(path)):
        key = (user, hash(question), hash(a), hash(b))
        if key in told:
            tally.drop(None, user, "duplicate in the source")
            continue
        told.add(key)
        if a != b:  # as P-RLHF counts
            tally.count("pairs")
            tally.count(f"pairs of {user}")
        split = split_of(user, question, unseen, test_share, seed, fold=fold)
        yield split, record(f"{user}-{len(told)}", user, question, a, b, text)


def _comparisons(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """User, what the user wants in words, question, preferred and other answer."""
    files = ("allcombo_8_cleaned.json", "pairs.jsonl")
    if path.is_file() or any((path / file).is_file() for file in files):
        for row in local_rows(path, *files):
            if "user_text" in row:
                require_known([row["user_id"]], PROFILES, "profile")
                yield row["user_id"], row["user_text"], row["prompt"], row["chosen"], row["rejected"]
                continue
            if row["user_id"] not in range(1, 7):
                raise SchemaError(f"user_id is {row['user_id']!r}, expected 1 to 6 for {', '.join(PROFILES)}.")
            user = list(PROFILES)[row["user_id"] - 1]
            yield user, PROFILES[user], row["user_input"], row["completion_a"], row["completion_b"]
        return
    for user in PROFILES:
        rows = local_rows(path, f"{user}.json*", f"rm_training/{user}.json*")
        backwards: list[str] = []
        for row in rows:
            backwards = [os.path.commonprefix([*backwards, row["user_input"][::-1]])]  # noqa: RUF071 (of characters)
        ending = backwards[0][::-1] if backwards else ""  # what all questions end with; the wish is its last sentence
        starts = [found.end() for found in re.finditer(r"(?:(?<=[.?!:])\s+|\n+|^\s+)(?=\S)", ending)]
        wish = ending[starts[-1] :] if starts else ""
        if not wish:
            raise SchemaError(
                f"the questions of {user} do not all end with the same sentence, its wish. Pass {files[0]} instead."
            )
        for row in rows:
            asked = row["user_input"].removesuffix(wish).strip()
            yield user, PROFILES[user], asked, row["completion_a"], row["completion_b"]
