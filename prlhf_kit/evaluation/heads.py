"""Rewards on frozen features beside each other and their controls: notebook 02b; new users placed by them: 06."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from scipy.special import expit
from scipy.stats import entropy
from sklearn.model_selection import GroupKFold
from torch.nn.functional import softplus
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_texts_of
from prlhf_kit.data.select import few_shot
from prlhf_kit.evaluation.accuracy import GENERIC_ROW, PLACED, by_implicit_reward, length_rules, ranked_right, tests_of
from prlhf_kit.evaluation.intervals import intervals, long_table
from prlhf_kit.models.features import Embedded, Embedder, embed, feature_cache
from prlhf_kit.models.logprobs import as_read, score_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.training.encoder import KINDS as ENCODERS, fit_encoder
from prlhf_kit.training.heads import STRENGTHS, Heads, fit_heads
from prlhf_kit.training.lbfgs import minimised
from prlhf_kit.training.new_users import Adapted, placed

INFORMATIVE, RANDOM = "most informative", "random"  # ways to choose what a new user is asked


def fit(kind: str, pairs: Dataset, embedded: Embedded, embedders: Sequence[Embedder] = ()) -> Heads:
    """`fit_heads` of the training pairs, or `fit_encoder`. Where all `embedders`, which made the features, are reward
    models, their own heads are the prior of heads."""
    if kind in ENCODERS:
        responses = pairs["chosen"], pairs["rejected"]
        return fit_encoder(kind, embedded.difference, pairs["user_id"], responses, embedded.scale)
    known = [embedder.head for embedder in embedders if embedder.head is not None]
    prior = np.concatenate(known) if known and len(known) == len(embedders) else None
    return fit_heads(kind, embedded.difference, pairs["user_id"], prompt_texts_of(pairs), embedded.scale, prior=prior)


def held_out(heads: Heads, data: DatasetDict, embedded: dict[str, Embedded]) -> pd.DataFrame:
    """Which pairs of each test split the heads rank right: the long table, with `split`."""
    tables = []
    for split, pairs in tests_of(data).items():
        odds = heads.reward(embedded[split].difference, pairs["user_id"])
        tables.append(long_table(pairs, {heads.kind: ranked_right(odds, 0)}, split=split))
    return pd.concat(tables, ignore_index=True)


def ranked_after_few_shot(
    heads: Heads, data: DatasetDict, embedded: dict[str, Embedded], shots: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Which pairs of `test_unseen` are ranked right after fitting each new user's own numbers to k of their pairs: the
    long table, with `k`. Empty where no user is unseen; a k that some user has not is left out."""
    tables = [pd.DataFrame()]
    if {"test_unseen", "adapt_unseen"} <= set(data):
        test = data["test_unseen"]
        place = {pair: i for i, pair in enumerate(data["adapt_unseen"]["pair_id"])}
        given = pd.Series(data["adapt_unseen"]["user_id"]).value_counts()
        fewest = given.reindex(sorted(set(test["user_id"])), fill_value=0).min()
        for k in (k for k in shots if k <= fewest):
            adapted = heads
            if k:
                few = few_shot(data, k, seed)
                chosen = [place[pair] for pair in few["pair_id"]]
                adapted = heads.adapt(embedded["adapt_unseen"].difference[chosen], few["user_id"])
            odds = adapted.reward(embedded["test_unseen"].difference, test["user_id"])
            tables.append(long_table(test, {heads.kind: ranked_right(odds, 0)}, k=k))
    return pd.concat(tables, ignore_index=True)


def ranked_when_placed(
    model,
    tokenizer: PreTrainedTokenizerBase,
    index: UserIndex,
    data: DatasetDict,
    ks: Sequence[int],
    embedder: Embedder,
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[pd.DataFrame, Adapted]:
    """`accuracy.ranked_by_pairs` where a low-rank head on features of `embedder`, fitted to `train`, finds a known user
    for each new one (`new_users.placed`): `GENERIC_ROW` (at k=0) and `PLACED`, and who was found for the largest k."""
    test = data["test_unseen"]
    few_shot(data, max(ks), seed)  # refuses too large a k before any scoring
    known = embed({"train": data["train"]}, [embedder], feature_cache())["train"]
    heads = fit("low_rank", data["train"], known, [embedder])
    read = as_read(model, test, reference=True)
    with reference_of(model) as base:
        reference = score_pairs(base, tokenizer, read, batch_size=batch_size)
    rows, method, tables = [GENERIC] * len(test), GENERIC_ROW, []
    right: dict[tuple[int, ...], np.ndarray] = {}  # by rows, which are often the same for several k
    for k in sorted({0, *ks}):
        if k:
            found = placed(model, index, heads, embedder, few_shot(data, k, seed))
            rows, method = [found.start[found.user_ids.index(user)] for user in test["user_id"]], PLACED
        if tuple(rows) not in right:
            right[tuple(rows)] = by_implicit_reward(score_pairs(model, tokenizer, test, rows, batch_size), reference)
        tables.append(long_table(test, {method: right[tuple(rows)]}, k=k))
    return pd.concat(tables, ignore_index=True), found


def expected_information(heads: Heads, user_id: str | None, candidates: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """What a person's choice in each candidate pair is expected to tell about their own numbers `a_u` (low rank; PReF,
    arXiv 2503.06358): the mutual information of the two `[n]`, in nats, under a Laplace approximation of the posterior
    of `a_u`. It is the same whichever response of a pair is taken from the other.

    Args:
        heads: low rank, adapted to what the person chose (`Heads.adapt`); of None: who has not chosen yet.
        candidates: `[n, d]`, differences of features.
        asked: `[k, d]`, of the pairs that the person has been asked about; k may be 0.
    """
    if heads.kind != "low_rank":
        raise ValueError(f"heads of kind {heads.kind!r}: expected 'low_rank', which knows how people differ.")
    seen, answered = (part / heads.scale @ heads.shared.T for part in (candidates, asked))  # [n, r], [k, r]
    p = expit(heads.reward(asked, [user_id] * len(asked)))
    covariance = np.linalg.inv(heads.prior()[1] + (answered.T * (p * (1 - p))) @ answered)
    deviation = np.sqrt(((seen @ covariance) * seen).sum(1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    odds = heads.reward(candidates, [user_id] * len(candidates))[:, None] + deviation[:, None] * nodes
    p, weights = expit(odds), weights / weights.sum()  # [n, 20]
    mean = p @ weights
    return entropy([mean, 1 - mean]) - entropy([p, 1 - p]) @ weights


def most_informative(
    heads: Heads, user_id: str | None, candidates: np.ndarray, asked: np.ndarray, n: int = 1
) -> list[int]:
    """Numbers of the `n` candidates to ask about, the best first, each chosen as if those before it were asked."""
    found: list[int] = []
    for _ in range(min(n, len(candidates))):
        told = expected_information(heads, user_id, candidates, np.concatenate([asked, candidates[found]]))
        told[found] = -1.0
        found.append(int(told.argmax()))
    return found


def questions_asked(
    heads: Heads, data: DatasetDict, embedded: dict[str, Embedded], most: int = 10, draws: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Which pairs of `test_unseen` low-rank heads rank right after each new user has chosen in k = 0 to `most` pairs of
    theirs in `adapt_unseen`: those that tell most, one after the other, or random ones (the mean of `draws` orders).
    The long table, with `k`. Empty where no user is unseen; k ends where some user has no more pairs."""
    tables = [pd.DataFrame()]
    if {"test_unseen", "adapt_unseen"} <= set(data):
        test, pool, rng = data["test_unseen"], embedded["adapt_unseen"].difference, np.random.default_rng(seed)
        asked_of = np.array(data["adapt_unseen"]["user_id"])
        pairs = {user: np.flatnonzero(asked_of == user) for user in sorted(set(test["user_id"]))}
        orders = {
            (RANDOM, draw, user): list(rng.permutation(of)) for user, of in pairs.items() for draw in range(draws)
        }
        orders |= {(INFORMATIVE, 0, user): [] for user in pairs}
        known = heads
        for k in range(min(most, *map(len, pairs.values())) + 1):
            for (way, _, user), order in orders.items():
                if way == INFORMATIVE and k:
                    left = np.setdiff1d(pairs[user], order)
                    name = str((way, 0, user))
                    order.append(left[most_informative(known, name, pool[left], pool[order])[0]])
            rows = [(str(key), pair) for key, order in orders.items() for pair in order[:k]]
            if rows:
                names, places = zip(*rows, strict=True)
                known = heads.adapt(pool[list(places)], names)
            for way, n in ((INFORMATIVE, 1), (RANDOM, draws)):
                who = [[str((way, draw, user)) for user in test["user_id"]] for draw in range(n)]
                right = [ranked_right(known.reward(embedded["test_unseen"].difference, of), 0) for of in who]
                tables.append(long_table(test, {way: np.mean(right, 0)}, k=k))
    return pd.concat(tables, ignore_index=True)


def controls(data: DatasetDict) -> pd.DataFrame:
    """Which pairs of each test split the length rules rank right: the long table, with `split`."""
    tables = [long_table(of, length_rules(data["train"], of), split=split) for split, of in tests_of(data).items()]
    return pd.concat(tables, ignore_index=True)


PATHS = ("customised alone", "general, then customised", "the same with general pairs mixed in")


def trade_off(
    general: tuple[Dataset, Embedded],
    domains: Mapping[str, tuple[Dataset, Embedded]],
    general_test: tuple[Dataset, Embedded],
    domain_tests: Mapping[str, tuple[Dataset, Embedded]],
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy on the domains' own and on general held-out pairs, along each of `PATHS` and for each of `strengths` (of
    the penalty); sets are pairs with their features. `seed` draws the general pairs that are mixed in, as many as the
    domain has.

    Returns `intervals` by `strategy`, `strength` (infinite: the general head, or all rewards 0) and `of` ("custom" or
    "general" pairs), clustered by prompt; `chosen`: what cross-validation on the domains' pairs prefers (up to 5 folds,
    by prompt).
    """
    everything = np.concatenate([*general[1], *(part for _, e in domains.values() for part in e)])
    prompts = prompt_texts_of(general[0])
    first = fit_heads("pooled", general[1].difference, ["general"] * len(prompts), prompts, everything.std(0))

    def z(features: Embedded) -> torch.Tensor:
        return torch.tensor(features.difference / first.scale, dtype=torch.float64)

    mixed = z(general[1])[np.random.default_rng(seed).permutation(len(prompts))]
    own, tests = ({name: z(e) for name, (_, e) in sets.items()} for sets in (domains, domain_tests))
    for_all = z(general_test[1])
    groups = {name: pd.factorize(pd.Series(prompt_texts_of(pairs)))[0] for name, (pairs, _) in domains.items()}
    if single := [name for name, of in groups.items() if not max(of)]:
        raise ValueError(f"{single[0]!r} has pairs of one prompt, expected several to choose a strength. Leave it out.")
    folds = {name: list(GroupKFold(min(5, max(of) + 1)).split(of, groups=of)) for name, of in groups.items()}
    asked = {
        "custom": [prompt for name in domains for prompt in prompt_texts_of(domain_tests[name][0])],
        "general": prompt_texts_of(general_test[0]),
    }
    tables = []
    for path in PATHS:
        towards = torch.tensor(first.pooled) * (path != PATHS[0])
        for strength in (np.inf, *sorted(strengths, reverse=True)):
            nll, custom, everybody = 0.0, [], []
            for name, pairs in own.items():
                more = mixed[: len(pairs) if path == PATHS[2] else 0]
                for train, held in folds[name]:
                    fitted = _fit(torch.cat([pairs[train], more]), strength, towards)
                    nll += softplus(-pairs[held] @ fitted).sum().item()
                head = _fit(torch.cat([pairs, more]), strength, towards)
                custom.append(ranked_right(tests[name] @ head, 0))
                everybody.append(ranked_right(for_all @ head, 0))
            # every domain's head ranks the same general pairs
            right = {"custom": np.concatenate(custom), "general": np.mean(everybody, 0)}
            row = {"strategy": path, "strength": strength, "nll": nll}
            tables += [pd.DataFrame({**row, "of": of, "prompt": asked[of], "value": right[of]}) for of in right]
    by = ["strategy", "strength", "of"]
    table = intervals(pd.concat(tables), by=by, cluster="prompt", seed=seed, nll=("nll", "first"))
    table["chosen"] = table.nll == table.groupby("strategy").nll.transform("min")
    return table.drop(columns="nll")


def _fit(z: torch.Tensor, strength: float, towards: torch.Tensor) -> torch.Tensor:
    """One Bradley-Terry head `[d]` for the differences `z` `[n, d]`, regularised towards `towards`."""
    if np.isinf(strength):
        return towards

    def loss(w: torch.Tensor) -> torch.Tensor:
        return softplus(-z @ w).sum() + strength / 2 * (w - towards).square().sum()

    return minimised(loss, [towards], [(z.square().sum(0) / 4 + strength).rsqrt()])[0]
