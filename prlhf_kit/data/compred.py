"""`compred`: preferences of Reddit communities (Kumar et al. 2024, arXiv 2410.16027)."""

import re
from collections import defaultdict
from collections.abc import Sequence

from prlhf_kit.data.registry import Records, Source, Tally, dataset, names, require_known, share, split_for
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import hub_rows, local_rows

HUB = "allenai/compred"
FACTORS = ("finance", "gender_sexuality", "history", "politics", "science")


@dataset(
    "compred",
    title="ComPRed (Kumar et al. 2024, arXiv 2410.16027)",
    source=f"hub: {HUB}, {', '.join(FACTORS)}",
    licence="ODC-BY; Reddit comments keep their authors' rights",
    users="subreddits, grouped by five factors",
    quality="Upvotes, not judgements: when a comment was written and who saw it count too. A community can also be "
    "told by the style and topic of its posts.",
    counts={"test_pref of finance": 58_603, "validation_pref of finance": 55_518},
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
    folder=True,
)
def read(
    tally: Tally,
    path: Source = None,
    *,
    factors: str | Sequence[str] = FACTORS,
    test_split: str = "test_pref",
    min_score_ratio: float = 2.0,
    max_pairs_per_post: int = 5,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> Records:
    """Records: `train_pref` for training, `test_split` for tests. The defaults are those of the paper's code.

    A row (SHP's schema): `{"domain": "tea_train", "post_id": "p1", "title": "Green tea?", "history": "I like it.",
    "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_ratio": 3.0}`: a community, a post, two comments,
    1 where A was preferred and 0 where B was, the ratio of their votes.

    Args:
        path: a folder with `<factor>/<split>*`, as the hub's.
        factors: which of `FACTORS`.
        test_split: "test_pref" or "validation_pref".
        min_score_ratio: smallest ratio of the preferred comment's votes to the other's.
        max_pairs_per_post: more than that are drawn at random.
        unseen: communities that are not trained on.
        seed: draws the pairs of a post.
    """
    factors, unseen = names(factors, FACTORS, "factor"), names(unseen)
    require_known([test_split], ("test_pref", "validation_pref"), "test split")
    communities = set()
    for factor in factors:
        for source, part in {"train_pref": "train", test_split: "test"}.items():
            patterns = (f"{factor}/{source}*", f"{factor}/{source}/*", f"{factor}_{source}*")
            rows = hub_rows(HUB, source, factor) if path is None else local_rows(path, *patterns)
            best: dict[str, list[tuple[float, int]]] = defaultdict(list)  # of each post: random numbers, rows
            for number, row in enumerate(rows):
                if row["score_ratio"] >= min_score_ratio:
                    drawn = share(seed, row["post_id"], row["human_ref_A"], row["human_ref_B"])
                    best[row["post_id"]].append((drawn, number))
            kept = {number for own in best.values() for _, number in sorted(own)[:max_pairs_per_post]}
            for number, row in enumerate(rows):
                tally.count(f"{source} of {factor}")
                user = community_of(row["domain"])
                communities.add(user)
                split = split_for(user in unseen, part == "test")
                if row["score_ratio"] < min_score_ratio:
                    tally.drop(split, user, f"score ratio below {min_score_ratio:g}")
                elif number not in kept:
                    tally.drop(split, user, f"more than {max_pairs_per_post} pairs of a post")
                else:
                    if row["labels"] not in (0, 1) or isinstance(row["labels"], bool):
                        raise SchemaError(f"labels is {row['labels']!r}, expected 1 (A was preferred) or 0 (B).")
                    chosen, rejected = (row[f"human_ref_{side}"] for side in ("AB" if row["labels"] else "BA"))
                    pair_id = f"{factor}-{source}-{number}"
                    asked = post_text(row["title"], row.get("history"))
                    yield split, record(pair_id, user, asked, chosen, rejected, f"r/{user}", factor)
    require_known(unseen, communities, "community")


def community_of(domain: str) -> str:
    """A community's name, without the part that the source puts behind it."""
    return re.sub(r"_(train|validation|test)$", "", domain)


def post_text(title: str, text: str | None) -> str:
    """Title and text of a post as the paper's code lays them out, but for white space around them."""
    return "\n".join(part.strip() for part in (title, text or "") if part and part.strip())
