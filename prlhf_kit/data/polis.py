"""`polis`: what people agree and disagree with in a public Polis conversation: real people's tastes in short texts."""

from pathlib import Path

import numpy as np
import pandas as pd

from prlhf_kit.data.registry import Records, Tally, dataset
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.sources import local_files

QUESTION = "{}: which statement do you agree with? (round {})"
TRAINING = ("train", "adapt_unseen")


@dataset(
    "polis",
    title="Polis conversations (Small et al. 2021)",
    source="a folder of https://github.com/compdemocracy/openData, with comments.csv and participants-votes.csv",
    licence="CC BY 4.0. Data was gathered using the Polis software (compdemocracy.org/polis) and is sub-licensed under "
    "CC BY 4.0 with Attribution to The Computational Democracy Project",
    users="real people with enough votes, unnamed",
    quality="People vote on one statement at a time; a pair puts one that a person agreed with over one that they "
    "disagreed with. Statements on which nearly all agree say little of a person and are left out.",
    folder=True,
)
def read(
    tally: Tally,
    path: str | Path,
    *,
    agreement: tuple[float, float] = (0.25, 0.75),
    min_votes: int = 8,
    pairs_per_user: int = 40,
    test_pairs_per_user: int = 15,
    new_statements: float = 0.25,
    own_held_out: float = 0.2,
    unseen_share: float = 0.2,
    seed: int = 0,
) -> Records:
    """Pairs of two statements, of which a person agreed with the first and disagreed with the second.

    | split | people | statements |
    |---|---|---|
    | `train` | seen | for training, without some of each person's own votes |
    | `test_seen` | seen | new to everybody: in no pair of `train` or `adapt_unseen` |
    | `test_own` | seen | of the training statements, those that this person's training pairs leave out |
    | `adapt_unseen` | never in training | as in `train` |
    | `test_unseen` | never in training | as in `test_own`: those that this person's pairs of `adapt_unseen` leave out |

    All pairs of a conversation share one question, but the record wants no prompt in train and test. So the prompt
    names the topic and a round, 1 (training) or 2 (tests): what is kept apart are the statements, the responses.

    A row of `participants-votes.csv`: `participant` 0, `group-id` 1, and a column a statement with 1 (agrees), -1
    (disagrees), 0 (passed) or nothing (not seen). `group-id`, made from all votes, is the record's `group`: no input.

    Args:
        path: folder with `comments.csv` and `participants-votes.csv`; `summary.csv`, if there, names the topic.
        agreement: share of agreement among all who voted that a statement may have.
        min_votes: agreements, and disagreements, that a person needs on the statements that are left.
        pairs_per_user, test_pairs_per_user: of each person, at most; the latter in each test split.
        new_statements: share of the statements that are kept for `test_seen`.
        own_held_out: share of each person's votes on training statements that is kept for tests.
        unseen_share: share of the people who are never in training.
        seed: draws all of these, and the pairs.
    """
    texts, votes, groups, topic = _conversation(Path(path))
    share = (votes == 1).sum() / (votes.abs() == 1).sum()
    votes = votes.loc[:, share.between(*agreement)]
    fewest = pd.concat([(votes == 1).sum(axis=1), (votes == -1).sum(axis=1)], axis=1).min(axis=1)
    votes = votes[fewest >= min_votes]
    if len(votes) < 2:
        raise SchemaError(
            f"{len(votes)} people of {path} have {min_votes} agreements and as many disagreements on the "
            f"{votes.shape[1]} statements within {agreement=}. Lower min_votes or widen agreement."
        )
    tally.count("people", len(votes))
    tally.count("statements", votes.shape[1])
    rng = np.random.default_rng(seed)
    new = set(rng.permutation(votes.columns)[: round(new_statements * votes.shape[1])])
    unseen = set(rng.permutation(votes.index)[: round(unseen_share * len(votes))])
    rows: list[tuple[str, str, str, str]] = []
    for person, own in votes.iterrows():
        agrees, disagrees = (rng.permutation(own.index[own == vote]) for vote in (1, -1))
        old = [[s for s in side if s not in new] for side in (agrees, disagrees)]
        fresh = [[s for s in side if s in new] for side in (agrees, disagrees)]
        cut = [round(own_held_out * len(side)) for side in old]
        held_out = [side[:n] for side, n in zip(old, cut, strict=True)]
        kept = [side[n:] for side, n in zip(old, cut, strict=True)]
        if not all(kept):
            split = "adapt_unseen" if person in unseen else "train"
            tally.drop(split, str(person), "no agreement, or no disagreement, on a training statement")
            continue
        if person in unseen:
            plan = {"adapt_unseen": (kept, pairs_per_user), "test_unseen": (held_out, test_pairs_per_user)}
        else:
            plan = {"train": (kept, pairs_per_user), "test_seen": (fresh, test_pairs_per_user)}
            plan["test_own"] = (held_out, test_pairs_per_user)
        for split, ((liked, disliked), most) in plan.items():
            # each statement of the longer list in one pair before any is in a second
            few, many = sorted((liked, disliked), key=len)
            turns = range(len(few))
            pairs = [(a, few[(i + turn) % len(few)]) for turn in turns for i, a in enumerate(many)]
            pairs = pairs if many is liked else [(b, a) for a, b in pairs]
            rows += [(split, str(person), *pair) for pair in pairs[:most]]
    for split, user, chosen, rejected in rows:
        question = QUESTION.format(topic, 1 if split in TRAINING else 2)
        answers, pair_id = (texts[chosen], texts[rejected]), f"{user}-{chosen}-{rejected}-{split}"
        yield split, record(pair_id, user, question, *answers, group=groups[user])


def _conversation(folder: Path) -> tuple[dict[str, str], pd.DataFrame, dict[str, str | None], str]:
    """Statements by id, votes `[people, statements]`, each person's group, and the topic."""
    [first], [second] = (local_files(folder, name) for name in ("comments.csv", "participants-votes.csv"))
    comments = pd.read_csv(first, dtype=str, keep_default_na=False)
    votes = pd.read_csv(second, dtype={"participant": str, "group-id": str}).set_index("participant")
    texts: dict[str, str] = dict(zip(comments["comment-id"], comments["comment-body"].str.strip(), strict=True))
    groups = {str(person): None if pd.isna(group) else str(group) for person, group in votes["group-id"].items()}
    known = [column for column in votes if column in texts]
    if not known:
        raise SchemaError(f"no column of {second} is a comment-id of {first}: take both from one conversation.")
    summary, topic = folder / "summary.csv", "A public discussion"
    if summary.is_file():
        facts = pd.read_csv(summary, header=None, index_col=0)[1]
        topic = str(facts.get("topic", topic)).split(": ", 1)[-1]  # "JOIN THE DISCUSSION: ..."
    return texts, votes[known], groups, topic
