"""Getting to know a dataset: tables for notebook 01, each a pure function of preference records."""

import html
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from IPython.display import HTML
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.simulated import oracle_accuracy
from prlhf_kit.evaluation.accuracy import length_rules, words
from prlhf_kit.evaluation.intervals import intervals, long_table


def overview(data: DatasetDict) -> pd.DataFrame:
    """One row a split: `split`, `pairs`, `users`, `prompts`, pairs a user (`fewest`, `median`, `most`), and, where the
    true probabilities are known, the `oracle accuracy`."""
    rows = []
    for split, pairs in data.items():
        counts = pd.Series(pairs["user_id"]).value_counts()
        prompts = len({hash(str(prompt)) for prompt in pairs["prompt"]})
        rows.append((split, len(pairs), len(counts), prompts, counts.min(), counts.median(), counts.max()))
    table = pd.DataFrame(rows, columns=["split", "pairs", "users", "prompts", "fewest", "median", "most"])
    if all("p_chosen" in pairs.column_names for pairs in data.values()):
        table["oracle accuracy"] = [oracle_accuracy(pairs["p_chosen"]) for pairs in data.values()]
    return table


def lengths(data: DatasetDict) -> pd.DataFrame:
    """One row a pair: `split`, `user_id`, `chosen_words` and `rejected_words`."""
    tables = []
    for split, pairs in data.items():
        counted = {f"{of}_words": words(pairs[of]) for of in ("chosen", "rejected")}
        tables.append(pd.DataFrame({"split": split, "user_id": list(pairs["user_id"]), **counted}))
    return pd.concat(tables, ignore_index=True)


def length_rule(data: DatasetDict, seed: int = 0) -> pd.DataFrame:
    """What a length-only rule ranks right, its direction learned on the train split: `intervals` by `split` and
    `method`, over users, of the tests and of "train (in sample)", where the rule is too optimistic."""
    tables = []
    for split, pairs in data.items():
        if split != "adapt_unseen":
            name = "train (in sample)" if split == "train" else split
            tables.append(long_table(pairs, length_rules(data["train"], pairs), split=name))
    by = ["split", "method"]
    return intervals(pd.concat(tables), by=by, cluster="user_id", seed=seed, users=("user_id", "nunique"))


def agreement(data: DatasetDict, max_users: int = 15) -> pd.DataFrame:
    """How often two users who compared the same two responses preferred the same: `user_a`, `user_b` (both orders),
    `agreement`, `shared`, of the `max_users` who share most pairs with others. Empty where nobody shares any."""
    rows = []
    for pairs in data.values():
        for user, *texts in zip(*(pairs[name] for name in ("user_id", "prompt", "chosen", "rejected")), strict=True):
            asked, a, b = (hash(prompt_text(text)) for text in texts)
            rows.append((hash((asked, min(a, b), max(a, b))), user, a < b))
    table = pd.DataFrame(rows, columns=["pair", "user_id", "first"]).drop_duplicates(["pair", "user_id"], keep="last")
    others = table.groupby("pair").user_id.transform("size") - 1
    partners = others.groupby(table.user_id, sort=False).sum().sort_values(ascending=False, kind="stable")
    table = table[table.user_id.isin(partners[partners > 0].index[:max_users])]
    both = table.merge(table, on="pair", suffixes=("_a", "_b")).query("user_id_a != user_id_b")
    both = both.rename(columns={"user_id_a": "user_a", "user_id_b": "user_b"}).assign(same=both.first_a == both.first_b)
    return both.groupby(["user_a", "user_b"]).agg(agreement=("same", "mean"), shared=("same", "size")).reset_index()


def _sample(pairs: Dataset, responses: int, max_groups: int, seed: int) -> tuple[list[str], list[str]]:
    """(group, chosen response) of up to `responses` pairs, as many of each of the most frequent groups (or users, where
    groups are unknown)."""
    values = np.array(pairs["group" if any(pairs["group"]) else "user_id"], dtype=object)
    names = pd.Series([value for value in values if value]).value_counts().index[:max_groups]
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for name in names:
        found = np.flatnonzero(values == name)
        rows += rng.permutation(found)[: responses // len(names)].tolist()
    chosen = pairs.select_columns("chosen").select(rows)["chosen"]
    # a response that was compared with several others counts once
    distinct = dict.fromkeys((str(values[row]), prompt_text(text)) for row, text in zip(rows, chosen, strict=True))
    return [group for group, _ in distinct], [text for _, text in distinct]


def _tfidf(texts: list[str], **options: Any) -> tuple[Any, Any]:
    """TF-IDF weights `[texts, words]` and the words; None where no word is left (numbers, or one word each)."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", **options)
    try:
        return vectorizer.fit_transform(texts), vectorizer.get_feature_names_out()
    except ValueError:
        return None, None


def response_map(pairs: Dataset, responses: int = 800, max_groups: int = 8, seed: int = 0) -> pd.DataFrame:
    """A map of chosen responses by words: TF-IDF, 50 dimensions by SVD, two by t-SNE: `group`, `x`, `y`, `text` (its
    beginning). Empty for fewer than 10 responses, or where all have the same words (t-SNE would crash the process)."""
    groups, texts = _sample(pairs, responses, max_groups, seed)
    empty = pd.DataFrame(columns=["group", "x", "y", "text"])
    if len(texts) < 10:
        return empty
    weights, _ = _tfidf(texts, min_df=2)
    if weights is None or weights.shape[1] < 3 or (weights.max(0) - weights.min(0)).max() < 1e-6:
        return empty
    dense = TruncatedSVD(min(50, weights.shape[1] - 1), random_state=seed).fit_transform(weights)
    perplexity = min(30, (len(texts) - 1) / 3)
    x, y = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(dense).T
    return pd.DataFrame({"group": groups, "x": x, "y": y, "text": [text[:80] for text in texts]})


def typical_words(
    pairs: Dataset, responses: int = 4000, max_groups: int = 6, words: int = 60, seed: int = 0
) -> pd.DataFrame:
    """The `words` that a group's chosen responses have most more of than all groups', by mean TF-IDF (of one group, its
    most frequent ones): `group`, `word`, `weight`."""
    groups, texts = _sample(pairs, responses, max_groups, seed)
    weights, names = _tfidf(texts, min_df=min(2, len(texts)), token_pattern=r"(?<!['’\w])[^\W\d_]{3,}(?!['’\w])")
    if weights is None:
        return pd.DataFrame(columns=["group", "word", "weight"])
    labels = np.array(groups, dtype=object)
    order = list(dict.fromkeys(groups))
    means = np.stack([np.asarray(weights[labels == name].mean(axis=0)).ravel() for name in order])
    typical = means - means.mean(axis=0) if len(means) > 1 else means
    rows = []
    for name, line in zip(order, typical, strict=True):
        rows += [(name, names[i], line[i]) for i in np.argsort(-line)[:words] if line[i] > 0]
    return pd.DataFrame(rows, columns=["group", "word", "weight"])


def browse(data: DatasetDict, users: int = 12, pairs: int = 4, seed: int = 0) -> HTML:
    """Pairs to read, drawn by `seed`: one foldable block for each of the `users` who have most pairs."""
    places = [(user, split, row) for split, found in data.items() for row, user in enumerate(found["user_id"])]
    place = pd.DataFrame(places, columns=["user", "split", "row"])
    rng = np.random.default_rng(seed)
    look: Any = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap", "max-width": "32em"}
    blocks = []
    for user, count in place.user.value_counts().head(users).items():
        mine = place[place.user == user]
        shown = mine.iloc[np.sort(rng.permutation(len(mine))[:pairs])]
        rows = [data[split][row] for split, row in zip(shown.split, shown.row, strict=True)]
        table = pd.DataFrame({"split": [*shown.split]}).assign(prompt=[row["prompt"][-1]["content"] for row in rows])
        table = table.assign(**{of: [prompt_text(row[of]) for row in rows] for of in ("chosen", "rejected")})
        page = table.style.format(escape="html").hide(axis="index").set_properties(**look).to_html()
        who = html.escape(f"{user}, {count} pairs. {(rows[0]['user_text'] or '')[:300]}")
        blocks.append(f"<details><summary>{who}</summary>{page}</details>")
    return HTML("\n".join(blocks))
