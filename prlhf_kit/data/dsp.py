"""`dsp`: Domain-Specific Preferences (Cheng et al. 2023, arXiv 2309.03126): which domain's style is preferred.

From https://github.com/Linear95/DSP: `data/domain_specific_preference.{train,test}.json`, each row `query` (an Alpaca
instruction) and `responses{academy, business, entertainment, literature, normal}` by ChatGPT under a domain's system
prompt (`normal`: Alpaca's own response). A user is a domain: it prefers its own response to each other one. Also read:
one domain's pairs in `text`-`score` format, as DSP's own script writes them.

13K queries; the test file has 661 rows (README and file of the release).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import DatasetDict, Features, List, Value

from prlhf_kit.data.collect import Card, Tally, collect, names, require_known, split_of
from prlhf_kit.data.dialogue import text_score_records
from prlhf_kit.data.schema import FEATURES, SchemaError, message, record
from prlhf_kit.data.sources import local_rows, require_columns

DOMAINS = {  # what a reader of each domain would say
    "academy": "I work in research: be precise and give reasons.",
    "business": "I work in business: be practical and convincing.",
    "entertainment": "I am here to be entertained: be lively and fun.",
    "literature": "I love literature and art: write beautifully.",
    "normal": "A plain answer is all I need.",
}
CARD = Card(
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


log = logging.getLogger(__name__)


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

    Args:
        path: a file, or a folder with `*train.json` and `*test.json` (then their split is taken).
        domains: users to make; the others' responses are still what they are compared with.
        domain: whose pairs a `text`-`score` file holds.
        test_share, seed: for a single file, which is split by query.
        unseen: domains that are not trained on.
    """
    domains, unseen = names(domains), names(unseen)
    require_known(domains, DOMAINS, "domain")
    require_known(unseen, domains, "domain")
    for rows, part in _parts(path):
        for number, row in enumerate(rows()):
            if "text" in row:
                if domain is None:
                    raise SchemaError("a text-score file does not say whose pairs it holds: pass domain='academy' etc.")
                require_known([domain], DOMAINS, "domain")
                split = {"train": "train", "test": "test_seen"}.get(part)
                records = text_score_records(rows(), tally, "dsp", domain, split, test_share, seed, unseen)
                for where, pair in records:
                    yield where, pair | {"user_text": DOMAINS[domain]}
                break
            responses = _responses(row)
            tally.count(f"queries, {part}" if part else "queries")
            for user in domains:
                where = _where(part, user, row["query"], unseen, test_share, seed)
                for other in responses:
                    if other != user:
                        pair_id = f"{part or 'all'}-{number}-{user}-{other}"
                        yield (
                            where,
                            record(pair_id, user, row["query"], responses[user], responses[other], DOMAINS[user]),
                        )


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
    domains, unseen = names(domains), names(unseen)
    require_known(domains, DOMAINS, "domain")
    require_known(unseen, domains, "domain")
    messages = FEATURES["prompt"]
    text = Value("string")
    features = Features(
        {
            "list_id": text,
            "user_id": text,
            "user_text": text,
            "group": text,
            "prompt": messages,
            "responses": List(messages),
            "scores": List(Value("float64")),
        }
    )

    def rows():
        for source, part in _parts(path):
            for number, row in enumerate(source()):
                responses = _responses(row)
                if not all((text or "").strip() for text in responses.values()):
                    log.warning("listwise: row %d has an empty response and is left out", number)
                    continue
                for user in domains:
                    yield (
                        _where(part, user, row["query"], unseen, test_share, seed),
                        {
                            "list_id": f"{part or 'all'}-{number}-{user}",
                            "user_id": user,
                            "user_text": DOMAINS[user],
                            "group": None,
                            "prompt": message("user", row["query"]),
                            "responses": [message("assistant", response) for response in responses.values()],
                            "scores": [float(name == user) for name in responses],
                        },
                    )

    return collect(rows(), features)


def _parts(path: str | Path | None):
    if path is None:
        raise SchemaError(
            "'dsp' is not on the hub: download data/domain_specific_preference.train.json and .test.json from "
            "https://github.com/Linear95/DSP and pass their folder, or one of them, as path."
        )
    found = {part: f"domain_specific_preference.{part}.json" for part in ("train", "test")}
    found = {part: name for part, name in found.items() if (Path(path) / name).is_file()}
    if found:
        return [(local_rows(path, name), part) for part, name in found.items()]
    return [(local_rows(path, "domain_specific_preference*.json", "*.json"), "")]  # "": split by query


def _where(part: str, user: str, query: str, unseen: Sequence[str], test_share: float, seed: int) -> str:
    if part:
        return {"train": ("train", "adapt_unseen"), "test": ("test_seen", "test_unseen")}[part][user in unseen]
    return split_of(user, query, unseen, test_share, seed)


def _responses(row: dict) -> dict[str, str]:
    require_columns(row, ("query", "responses"), "dsp")
    missing = [name for name in DOMAINS if name not in row["responses"]]
    if missing:
        raise SchemaError(f"a row has no response of {missing[0]!r}, found {sorted(row['responses'])}.")
    return {name: row["responses"][name] for name in DOMAINS}
