"""A personalised model beside its controls: which pairs each ranks right, whom it serves, what it answers."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import ArrayLike
from scipy.special import softmax
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text, tell, with_user_text, without_user_text
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.data.select import few_shot
from prlhf_kit.data.simulated import Population, oracle_accuracy
from prlhf_kit.decoding.generate import generate
from prlhf_kit.evaluation.intervals import BY_USER_AND_PROMPT, differences, intervals, long_table
from prlhf_kit.evaluation.statistics import FEW, expanded
from prlhf_kit.models.conditioning import user_model_of
from prlhf_kit.models.logprobs import as_read, score_pairs, tokenize_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.training.controls import LABELS, Control
from prlhf_kit.training.new_users import Adapted, adapt, log_ratios, weigh

PERSONAL, GENERIC_ROW, VANILLA = "P-DPO, user", "P-DPO, generic row", LABELS["dpo"]
TEXT, UNTRAINED = "prompt with user text", "untrained"
LENGTH, USER_LENGTH = "length rule", "length rule per user"
NEAREST, MIXED = "P-DPO, nearest known user", "P-DPO, known users mixed"
FITTED, PLACED = "P-DPO, fitted row", "P-DPO, placed by a head"
TIE = 1e-3  # nats, of a whole response: float32 rounds sums of some hundreds of nats by up to that


def tests_of(data: DatasetDict) -> dict[str, Dataset]:
    """The splits of held-out pairs."""
    return {split: pairs for split, pairs in data.items() if split.startswith("test")}


def words(messages: list[list[dict[str, str]]]) -> np.ndarray:
    """Number of words of each response: `[n]`."""
    return np.array([sum(len(m["content"].split()) for m in response) for response in messages])


def likelier(scores: pd.DataFrame) -> np.ndarray:
    """Which pairs a model ranks right (1, 1/2, 0) by its mean log-prob a token, from rows of `score_pairs`: `[n]`."""
    return ranked_right(scores.chosen_logp / scores.chosen_tokens, scores.rejected_logp / scores.rejected_tokens)


def by_implicit_reward(scores: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    """Which pairs the reward log pi(y|x, u) - log pi_ref(y|x) ranks right (1, 1/2 if less than `TIE` apart, 0): `[n]`.
    It is DPO's implicit reward (arXiv 2305.18290, Eq. 5) up to beta. `scores`: rows of `score_pairs` of the policy;
    `reference`: the reference's, one a pair, found by `pair_id`."""
    base = scores[["pair_id"]].merge(reference, "left", on="pair_id", validate="many_to_one")
    chosen, rejected = (scores[of].to_numpy() - base[of].to_numpy() for of in ("chosen_logp", "rejected_logp"))
    return by_margin(chosen - rejected)  # NaN without a reference, which `ranked_right` refuses


def by_margin(margins: np.ndarray) -> np.ndarray:
    """Which pairs reward margins (nats) rank right: 1, 1/2 if less than `TIE` apart, 0."""
    return ranked_right(np.where(np.abs(margins) < TIE, 0.0, margins), 0)


def ranked_by_method(
    personal,
    controls: Iterable[Control],
    tokenizer: PreTrainedTokenizerBase,
    index: UserIndex,
    pairs: Dataset,
    train: Dataset,
    batch_size: int = 16,
) -> pd.DataFrame:
    """The long table of which pairs each method ranks right (1, 1/2 where equal, 0).

    Rewards: P-DPO and trained controls by `by_implicit_reward`; "prompt with user text" (where all users have one) by
    how much it raises the untrained model's log-prob; "untrained" by its mean log-prob a token; the length rules by
    words, in the direction that the training pairs favour. Users without a row get the generic row and the pooled rule.
    """
    rows = index.rows(pairs["user_id"], unknown="generic")
    # the generic row is not told who asks, nor what they say of themselves
    silent = without_user_text(pairs) if user_model_of(personal).user_text else pairs
    generic = [GENERIC] * len(pairs)
    own = score_pairs(personal, tokenizer, silent, generic, batch_size)
    scores = {GENERIC_ROW: own}
    if rows != generic or user_model_of(personal).user_text:
        own = score_pairs(personal, tokenizer, pairs, rows, batch_size)
    scores |= {control.label: control.score(tokenizer, pairs, batch_size) for control in controls}
    read = as_read(personal, pairs, reference=True)
    with reference_of(personal) as untrained:
        reference = told = score_pairs(untrained, tokenizer, pairs, batch_size=batch_size)
        if read is not pairs:
            told = score_pairs(untrained, tokenizer, read, batch_size=batch_size)
        if all(pairs["user_text"]):
            scores[TEXT] = score_pairs(untrained, tokenizer, with_user_text(pairs), batch_size=batch_size)
    right = {PERSONAL: by_implicit_reward(own, told)}
    right |= {method: by_implicit_reward(found, reference) for method, found in scores.items()}
    right[UNTRAINED] = likelier(reference)
    return long_table(pairs, right | length_rules(train, pairs))


def oracle(tests: Mapping[str, Dataset]) -> pd.DataFrame:
    """The best that can be expected where the truth (`p_chosen`) is known, as rows "oracle" of an intervals table by
    `split` and `method`."""
    rows = []
    for split, pairs in tests.items():
        if "p_chosen" in pairs.column_names:
            best, users = oracle_accuracy(pairs["p_chosen"]), len(set(pairs["user_id"]))
            found = {"value": best, "low": best, "high": best, "n": len(pairs), "clusters": users, "users": users}
            rows.append({"split": split, "method": "oracle", **found})
    return pd.DataFrame(rows)


def spread(scores: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How evenly a method serves its users, by `split` and `method`: `of` "worst user", "10th percentile", "median
    user" and "best user", with `user_id` (None for percentiles), `value`, `low`, `high`, `n` and `clusters`.

    Intervals of the worst and best user are by prompt, those of percentiles over users drawn anew. The least of several
    noisy numbers is too low on average: look at the controls' rows beside it.
    """
    keys = ["split", "method"]
    scores = scores[scores.value.notna()]
    own = scores.groupby([*keys, "user_id"], sort=False).value.mean().reset_index()
    tables = []
    for of, end in (("worst user", "idxmin"), ("best user", "idxmax")):
        who = own.loc[own.groupby(keys, sort=False).value.agg(end), [*keys, "user_id"]]
        tables.append(intervals(scores.merge(who), by=[*keys, "user_id"], cluster="prompt", seed=seed).assign(of=of))
    rows = []
    for (split, method), part in own.groupby(keys, sort=False):
        n = int(((scores.split == split) & (scores.method == method)).sum())
        drawn = np.random.default_rng(seed).choice(part.value.to_numpy(), (resamples, len(part)))
        for of, q in (("10th percentile", 10), ("median user", 50)):
            ends = [np.nan] * 2
            if len(part) >= FEW:
                ends = np.quantile(np.percentile(drawn, q, axis=1), expanded(len(part))).tolist()
            rows.append((split, method, None, np.percentile(part.value, q), *ends, n, len(part), of))
    return pd.concat([*tables, pd.DataFrame(rows, columns=tables[0].columns)], ignore_index=True)


def general_ranks(
    personal,
    controls: Iterable[Control],
    tokenizer: PreTrainedTokenizerBase,
    index: UserIndex,
    sets: Mapping[str, Dataset],
    batch_size: int = 16,
) -> pd.DataFrame:
    """The long table, with `set`, of which pairs of general sets (helpful, harmless, RewardBench, ...) are found
    likelier by mean log-prob a token: by the untrained model, P-DPO with the generic row and with the seen users' rows
    in turn, and trained controls. `intervals.differences` of it is what personalisation costs on preferences that
    everybody shares."""
    if empty := [name for name, pairs in sets.items() if not len(pairs)]:
        raise ValueError(f"the general set {empty[0]!r} has no pair left. Raise the limit of its texts' length.")
    controls, tables = list(controls), []
    for name, pairs in sets.items():
        with reference_of(personal) as untrained:
            right = {UNTRAINED: likelier(score_pairs(untrained, tokenizer, pairs, batch_size=batch_size))}
        in_turn = index.rows([index.user_ids[i % len(index.user_ids)] for i in range(len(pairs))])
        for method, rows in ((GENERIC_ROW, [GENERIC] * len(pairs)), ("P-DPO, a user in turn", in_turn)):
            right[method] = likelier(score_pairs(personal, tokenizer, pairs, rows, batch_size))
        right |= {control.label: likelier(control.score(tokenizer, pairs, batch_size)) for control in controls}
        tables.append(long_table(pairs, right, set=name))
    return pd.concat(tables, ignore_index=True)


def ranked_by_pairs(
    model,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    steps: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    **options,
) -> tuple[pd.DataFrame, Adapted]:
    """The long table, with `k`, of which pairs of `test_unseen` are ranked right after adapting to k of each new user's
    pairs of `adapt_unseen`: `GENERIC_ROW` (at k=0), `NEAREST`, `MIXED` (known users' rewards, weighted by how likely
    each makes the k pairs) and, unless `steps=0`, `FITTED`; and what `adapt` found for the largest k. The pairs of k=2
    are among those of k=4. `steps`, `batch_size` and `options` are those of `adapt`."""
    test = data["test_unseen"]
    largest = few_shot(data, max(ks), seed)
    at = {pair: i for i, pair in enumerate(largest["pair_id"])}
    known = weigh(model, tokenizer, largest, batch_size)
    tested = weigh(model, tokenizer, test, batch_size)
    asked = tokenize_pairs(tokenizer, as_read(model, test)) if steps else []
    tables = [long_table(test, {GENERIC_ROW: by_margin(tested.margins[:, 0])}, k=0)]
    for k in tqdm(sorted(ks), desc="known pairs a user", disable=None, leave=False):
        pairs = few_shot(data, k, seed)
        of_k = [at[pair] for pair in pairs["pair_id"]]
        evidence = known._replace(margins=known.margins[of_k], reference=known.reference[of_k])
        found = adapt(model, tokenizer, pairs, steps=steps, batch_size=batch_size, evidence=evidence, **options)
        who = [found.user_ids.index(user) for user in test["user_id"]]
        nearest = [tested.rows.index(found.start[i]) for i in who]
        weights = softmax(-found.losses, axis=1)[who]  # [n, rows]
        margins = {NEAREST: tested.margins[np.arange(len(test)), nearest], MIXED: (weights * tested.margins).sum(1)}
        if steps:
            ratios = []
            with torch.no_grad():
                for i in range(0, len(test), batch_size):
                    own = found.own[who[i : i + batch_size]]
                    ratios.append(log_ratios(model, asked[i : i + batch_size], own, tokenizer.pad_token_id))
            margins[FITTED] = torch.cat(ratios).cpu().double().numpy() - tested.reference
        tables.append(long_table(test, {method: by_margin(margin) for method, margin in margins.items()}, k=k))
    return pd.concat(tables, ignore_index=True), found


def new_user_gaps(
    ranked: pd.DataFrame, scores: pd.DataFrame, cluster: Sequence[str] = BY_USER_AND_PROMPT, seed: int = 0
) -> pd.DataFrame:
    """How far each method of `ranked` (of `ranked_by_pairs` or `heads.ranked_when_placed`) is ahead of vanilla DPO and
    the generic row on the same pairs of `test_unseen` (`scores`: long table, with `split`): `differences` by `k`."""
    told = ranked[ranked.k > 0]
    others = scores[(scores.split == "test_unseen") & scores.method.isin([VANILLA, GENERIC_ROW])]
    both = pd.concat([told, *(others.assign(k=k) for k in told.k.unique())])
    pairs = list(itertools.product(told.method.unique(), others.method.unique()))
    return differences(both, pairs, ["k"], cluster, seed=seed)


def answers_by_system(
    personal,
    vanilla: Control | None,
    tokenizer: PreTrainedTokenizerBase,
    index: UserIndex,
    train: Dataset,
    prompts: Sequence[list[dict[str, str]]],
    users: Sequence[str],
    **options,
) -> pd.DataFrame:
    """The answers table (`ANSWERS`) of P-DPO with the user's and the generic row, vanilla DPO, the untrained model, and
    that with the users' own words in its prompt (where all of them said something in `train`).

    `options` are those of `generate`; `index` knows all `users`.
    """
    words = dict(zip(train["user_id"], train["user_text"], strict=True))
    asked_by = [user for user in users for _ in prompts]
    asked = [*prompts] * len(users)
    told = [tell(prompt, words[user]) for user, prompt in zip(asked_by, asked, strict=True)]
    keys = pd.DataFrame({"user_id": asked_by, "prompt": [prompt_text(prompt) for prompt in asked]})
    tables = []

    def answer(system: str, model, questions: Sequence, rows: list[int] | None = None) -> None:
        """`questions`: of every user and prompt, or of every prompt alike for all users."""
        found = generate(model, tokenizer, list(questions), rows, **options)
        tables.append(keys.assign(system=system, answer=found * (len(keys) // len(found))))

    answer(PERSONAL, personal, told if user_model_of(personal).user_text else asked, index.rows(asked_by))
    answer(GENERIC_ROW, personal, prompts, [GENERIC] * len(prompts))
    if vanilla is not None:
        answer(VANILLA, vanilla.model, prompts)
    with reference_of(personal) as untrained:
        answer(UNTRAINED, untrained, prompts)
        if all(words[user] for user in users):
            answer(TEXT, untrained, told)
    return pd.concat(tables, ignore_index=True)[list(ANSWERS)]


def swapped(
    people: Population, user_ids: Sequence[str], prompts: Sequence[object], texts: Sequence[str]
) -> pd.DataFrame:
    """Every user judges every other user's answer (`texts` `[n]`, for `user_ids` and the same `prompts`): is one's own
    answer really one's own? Columns `judge`, `author`, `prompt`, `utility` (of the author's answer for the judge) and
    `own_wins` (1, 1/2, 0)."""
    answers = pd.DataFrame({"author": list(user_ids), "prompt": list(prompts), "text": list(texts)})
    table = pd.DataFrame({"judge": answers.author.unique()}).merge(answers, how="cross")
    table["utility"] = people.utility(table.judge, table.text)
    own = table.loc[table.judge == table.author, ["judge", "prompt", "utility"]].rename(columns={"utility": "own"})
    table = table.merge(own, on=["judge", "prompt"], validate="many_to_one")
    table["own_wins"] = ranked_right(table.own, table.utility)
    return table.drop(columns=["text", "own"])


def ranked_right(chosen: ArrayLike, rejected: ArrayLike) -> np.ndarray:
    """1 where the chosen response has the higher reward, 1/2 where both are equal, else 0: `[n]`. NaN is refused.

    >>> ranked_right([2.0, 1.0, 0.0], [1.0, 1.0, 3.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    difference = np.asarray(chosen, float) - np.asarray(rejected, float)
    if unknown := np.isnan(difference).sum():
        raise ValueError(f"{unknown} of {difference.size} reward differences are NaN, expected none.")
    return (np.sign(difference) + 1) / 2


def length_rules(train: Dataset, pairs: Dataset) -> dict[str, np.ndarray]:
    """Which of `pairs` rules rank right (1, 1/2, 0; `[n]`) that see the number of words alone: `LENGTH`, with one
    direction for all users, and `USER_LENGTH`, with each user's, learned from `train` (the pooled one for users who are
    not there)."""
    learned, gap = (words(rows["chosen"]) - words(rows["rejected"]) for rows in (train, pairs))

    def direction(differences: pd.Series) -> int:
        return 1 if ranked_right(differences, 0).mean() >= 0.5 else -1

    pooled = direction(pd.Series(learned))
    own = pd.Series(learned).groupby(np.asarray(train["user_id"], object)).agg(direction)
    signs = own.reindex(np.asarray(pairs["user_id"], object)).fillna(pooled).to_numpy()
    return {LENGTH: ranked_right(pooled * gap, 0), USER_LENGTH: ranked_right(signs * gap, 0)}
