"""`dsp`: Domain-Specific Preferences (Cheng et al. 2023, arXiv 2309.03126): which domain's style is preferred."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from prlhf_kit.data.dialogue import scored_records
from prlhf_kit.data.registry import Records, Tally, dataset, names, require_known, split_of
from prlhf_kit.data.schema import record
from prlhf_kit.data.sources import local_parts

DOMAINS = {  # what a reader of each domain would say
    "academy": "I work in research: be precise and give reasons.",
    "business": "I work in business: be practical and convincing.",
    "entertainment": "I am here to be entertained: be lively and fun.",
    "literature": "I love literature and art: write beautifully.",
    "normal": "A plain answer is all I need.",
}


@dataset(
    "dsp",
    title="Domain-Specific Preferences (Cheng et al. 2023, arXiv 2309.03126)",
    source="https://github.com/Linear95/DSP, data/domain_specific_preference.{train,test}.json",
    licence="CC BY-NC 4.0",
    users="5 domains (academy, business, entertainment, literature, normal)",
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
) -> Records:
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
    domains = names(domains, DOMAINS, "domain")
    unseen = names(unseen, domains, "domain")
    name = "domain_specific_preference"
    parts = local_parts(path, [f"{name}.{{part}}.json"], [f"{name}*.json", "*.json"])
    if domain is not None:
        require_known([domain], DOMAINS, "domain")
        text = DOMAINS[domain]
        yield from scored_records(parts, tally, "dsp", test_share, seed, unseen=unseen, user_id=domain, user_text=text)
        return
    for part, rows in parts:
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


def listwise(pairs: Dataset) -> Dataset:
    """Pairs as lists, for listwise reward losses: one row a user, prompt and chosen response.

    Returns:
        Columns `user_id`, `user_text`, `group`, `prompt`, `responses` (the chosen one, then all rejected ones, a list
        of messages each) and `scores` (1, 0, 0, ...).
    """
    lists: dict[str, dict] = {}
    for row in pairs:
        new = {name: row[name] for name in ("user_id", "user_text", "group", "prompt")}
        key = str((row["user_id"], row["prompt"], row["chosen"]))
        found = lists.setdefault(key, {**new, "responses": [row["chosen"]], "scores": [1.0]})
        found["responses"].append(row["rejected"])
        found["scores"].append(0.0)
    return Dataset.from_list(list(lists.values()))
