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
from prlhf_kit.data.sources import Rows, local_parts

log = logging.getLogger(__name__)

DOMAINS = {  # what a reader of each domain would say
    "academy": "I work in research: be precise and give reasons.",
    "business": "I work in business: be practical and convincing.",
    "entertainment": "I am here to be entertained: be lively and fun.",
    "literature": "I love literature and art: write beautifully.",
    "normal": "A plain answer is all I need.",
}
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
    by_path="download data/domain_specific_preference.train.json and .test.json from https://github.com/Linear95/DSP",
)
def read(
    tally: Tally,
    path: str | Path | None = None,
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
    domains, unseen = _known(domains, unseen)
    if domain is not None:
        require_known([domain], DOMAINS, "domain")
        yield from scored_records(
            _parts(path),
            tally,
            "dsp",
            user_id=domain,
            user_text=DOMAINS[domain],
            unseen=unseen,
            test_share=test_share,
            seed=seed,
        )
        return
    for part, rows in _parts(path):
        for number, row in enumerate(rows):
            tally.count(f"queries, {part}" if part else "queries")
            query, responses = row["query"], {name: row["responses"][name] for name in DOMAINS}
            for user in domains:
                split = split_of(user, query, unseen, test_share, seed, part)
                for other in DOMAINS:
                    if other != user:
                        pair_id = f"{part or 'all'}-{number}-{user}-{other}"
                        answers = responses[user], responses[other]
                        yield split, record(pair_id, user, query, *answers, DOMAINS[user])


def listwise(
    path: str | Path,
    *,
    domains: str | Sequence[str] = tuple(DOMAINS),
    test_share: float = 0.2,
    unseen: str | Sequence[str] = (),
    seed: int = 0,
) -> DatasetDict:
    """The same data as lists, for listwise reward losses: one row a query and domain, all five responses.

    Returns:
        Columns `list_id`, `user_id`, `user_text`, `group`, `prompt`, `responses` (a list of messages each) and
        `scores` (1 for the domain's own response, else 0), split as `read` splits.
    """
    domains, unseen = _known(domains, unseen)

    def rows() -> Iterator[tuple[str, dict]]:
        for part, source in _parts(path):
            for number, row in enumerate(source):
                responses = [row["responses"][name] for name in DOMAINS]
                if not all((text or "").strip() for text in responses):
                    log.warning("listwise: row %d has an empty response and is left out", number)
                    continue
                for user in domains:
                    out = {
                        "list_id": f"{part or 'all'}-{number}-{user}",
                        "user_id": user,
                        "user_text": DOMAINS[user],
                        "group": None,
                        "prompt": message("user", row["query"]),
                        "responses": [message("assistant", text) for text in responses],
                        "scores": [float(name == user) for name in DOMAINS],
                    }
                    yield split_of(user, row["query"], unseen, test_share, seed, part), out

    return collect(rows(), LISTWISE)


def _known(domains: str | Sequence[str], unseen: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    domains, unseen = names(domains), names(unseen)
    require_known(domains, DOMAINS, "domain")
    require_known(unseen, domains, "domain")
    return domains, unseen


def _parts(path: str | Path | None) -> list[tuple[str | None, Rows]]:
    name = "domain_specific_preference"
    return local_parts(path or "", [f"{name}.{{part}}.json"], [f"{name}*.json", "*.json"])
