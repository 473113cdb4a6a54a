"""`dsp`: Domain-Specific Preferences (Cheng et al. 2023, arXiv 2309.03126): which domain's style is preferred."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import DatasetDict, Features, List, Value

from prlhf_kit.data.cards import Tally, dataset, names, require_known, split_of
from prlhf_kit.data.collect import collect
from prlhf_kit.data.dialogue import scored_records
from prlhf_kit.data.schema import FEATURES, message, record
from prlhf_kit.data.sources import local_parts

log = logging.getLogger(__name__)

DOMAINS = {  # what a reader of each domain would say
    "academy": "I work in research: be precise and give reasons.",
    "business": "I work in business: be practical and convincing.",
    "entertainment": "I am here to be entertained: be lively and fun.",
    "literature": "I love literature and art: write beautifully.",
    "normal": "A plain answer is all I need.",
}
NAME = "domain_specific_preference"
FILES = ([f"{NAME}.{{part}}.json"], [f"{NAME}*.json", "*.json"])  # with train and test apart, or together
_LISTS = {name: FEATURES[name] for name in ("user_id", "user_text", "group", "prompt")}
LISTWISE = Features(
    {"list_id": Value("string"), **_LISTS, "responses": List(FEATURES["chosen"]), "scores": List(Value("float64"))}
)


@dataset(
    "dsp",
    title="Domain-Specific Preferences (Cheng et al. 2023, arXiv 2309.03126)",
    source="https://github.com/Linear95/DSP, data/domain_specific_preference.{train,test}.json",
    licence="CC BY-NC 4.0",
    users="5 domains (academy, business, entertainment, literature, normal)",
    pairs="13K queries, each 20 pairs (5 domains, 4 others each)",
    quality="Preferred by construction, nobody was asked. The four domains' responses have about twice the characters "
    "of `normal`: a length rule per user does well. Rewards of any writing style tell domains apart.",
    counts={"queries, test": 661},
    rules={"prompt in train and test": "drop"},
)
def read(
    tally: Tally,
    path: str | Path,
    *,
    domains: str | Sequence[str] = tuple(DOMAINS),
    domain: str | None = None,
    test_share: float = 0.2,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> Iterator[tuple[str, dict]]:
    """Records: for every query and domain, its own response against each other one.

    The responses to an Alpaca instruction are ChatGPT's under a domain's system prompt (`normal`: Alpaca's own).
    A row: `{"query": "What is tea?", "responses": {"academy": "An infusion.", "business": "A market.",
    "entertainment": "A party!", "literature": "A poem.", "normal": "A drink."}}`.

    Args:
        path: a file, or a folder with `*train.json` and `*test.json` (then their split is taken).
        domains: users to make; the others' responses are still what they are compared with.
        domain: for a file in `text`-`score` format, as DSP's own script writes them: whose pairs it holds.
        test_share, seed: for a single file, which is split by query.
        unseen: domains that are not trained on.
    """
    if domain is not None:
        require_known([domain], DOMAINS, "domain")
        yield from scored_records(
            local_parts(path, *FILES),
            tally,
            "dsp",
            user_id=domain,
            user_text=DOMAINS[domain],
            unseen=names(unseen),
            test_share=test_share,
            seed=seed,
        )
        return
    for split, list_id, user, query, responses in _lists(tally, path, domains, test_share, unseen, seed):
        for other in DOMAINS:
            if other != user:
                answers = responses[user], responses[other]
                yield split, record(f"{list_id}-{other}", user, query, *answers, DOMAINS[user])


def listwise(
    path: str | Path,
    *,
    domains: str | Sequence[str] = tuple(DOMAINS),
    test_share: float = 0.2,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> DatasetDict:
    """The same data as lists, for listwise reward losses: one row a query and domain, split as `read` splits.

    Returns:
        Columns `list_id`, `user_id`, `user_text`, `group`, `prompt`, `responses` (all five, a list of messages each)
        and `scores` (1 for the domain's own response, else 0).
    """

    def rows() -> Iterator[tuple[str, dict]]:
        for split, list_id, user, query, responses in _lists(Tally(), path, domains, test_share, unseen, seed):
            if not all((text or "").strip() for text in responses.values()):
                log.warning("listwise: %s has an empty response and is left out", list_id)
                continue
            yield (
                split,
                {
                    "list_id": list_id,
                    "user_id": user,
                    "user_text": DOMAINS[user],
                    "group": None,
                    "prompt": message("user", query),
                    "responses": [message("assistant", text) for text in responses.values()],
                    "scores": [float(name == user) for name in DOMAINS],
                },
            )

    return collect(rows(), LISTWISE)


def _lists(
    tally: Tally,
    path: str | Path,
    domains: str | Sequence[str],
    test_share: float,
    unseen: str | Sequence[str],
    seed: int,
) -> Iterator[tuple[str, str, str, str, dict[str, str]]]:
    """(split, id, user, query, all responses) of every query and domain."""
    domains, unseen = names(domains), names(unseen)
    require_known(domains, DOMAINS, "domain")
    require_known(unseen, domains, "domain")
    for part, rows in local_parts(path, *FILES):
        for number, row in enumerate(rows):
            tally.count(f"queries, {part}" if part else "queries")
            responses = {name: row["responses"][name] for name in DOMAINS}
            for user in domains:
                split = split_of(user, row["query"], unseen, test_share, seed, part)
                yield split, f"{part or 'all'}-{number}-{user}", user, row["query"], responses
