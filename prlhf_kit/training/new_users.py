"""New users of a trained P-DPO model: what is theirs is fitted to a few of their pairs (beyond P-RLHF)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.models.conditioning import user_model_of, user_models
from prlhf_kit.models.features import Embedder, embed, feature_cache
from prlhf_kit.models.logprobs import as_read, response_logps, score_pairs, tokenize_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.models.user_models import UserModel
from prlhf_kit.training.heads import Heads


class Evidence(NamedTuple):
    """What pairs say of user rows, the first of which is the generic one."""

    rows: list[int]
    margins: np.ndarray  # `[n, rows]`, DPO's reward margins without beta (nats) under each of `rows`
    reference: np.ndarray  # `[n]`, the reference's log pi(chosen) - log pi(rejected)


@dataclass(frozen=True)
class Adapted:
    """What `adapt` or `placed` found."""

    user_ids: list[str]  # the new users, sorted
    own: torch.Tensor  # [n, ...], their own numbers (see `UserModel.own`)
    start: list[int] = field(default_factory=list)  # where each user began: a known user's row, or 0, the generic one
    # DPO's loss (nats) of all pairs of a user under each row that `weigh` tried: [n, rows]
    losses: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))


def adapt(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    *,
    steps: int = 10,
    learning_rate: float = 3e-3,
    beta: float = 0.1,
    batch_size: int = 16,
    evidence: Evidence | None = None,
) -> Adapted:
    """Fit the rows of users who have none, by DPO's loss on their own pairs; everything else is frozen.

    Every user starts at the row that explains their pairs best (`weigh`), and goes on by Adam. Nothing is shared among
    them, so each gets what it would get alone.

    Args:
        model: trained personalised model whose user model is a `UserModel`.
        pairs: preference records of the new users (`kit.data.few_shot`).
        steps: of Adam; 0 keeps the best row to start from.
        batch_size: pairs a pass; a quarter of them where gradients are taken.
        evidence: of the pairs (`weigh`), where it is known already.
    """
    table = user_table(model)
    if not len(pairs):
        raise ValueError("there are no pairs to adapt to; a user without pairs is the generic user, row 0.")
    user_ids = sorted(set(pairs["user_id"]))
    who = torch.tensor([user_ids.index(user) for user in pairs["user_id"]])
    evidence = evidence or weigh(model, tokenizer, pairs, batch_size)
    nats = np.logaddexp(0, -beta * evidence.margins)  # DPO's loss of each pair under each row
    losses = np.stack([np.bincount(who, weights=one, minlength=len(user_ids)) for one in nats.T])
    start = [evidence.rows[i] for i in losses.argmin(0)]
    own = table.user_offsets(torch.tensor(start)).detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([own], lr=learning_rate)
    asked = tokenize_pairs(tokenizer, as_read(model, pairs)) if steps else []
    reference = torch.tensor(evidence.reference)
    few = max(1, batch_size // 4)  # a pass with gradients keeps every layer's numbers
    model.eval()  # no dropout
    for _ in tqdm(range(steps), desc="adapting", unit=" steps", disable=None, leave=False):
        optimizer.zero_grad()
        for i in range(0, len(asked), few):
            part = slice(i, i + few)
            ratios = log_ratios(model, asked[part], own[who[part]], tokenizer.pad_token_id)
            loss = -logsigmoid(beta * (ratios - reference[part].to(ratios))).sum()
            loss.backward(inputs=[own])
        optimizer.step()
    return Adapted(user_ids, own.detach(), start, losses.T)


def placed(model, index: UserIndex, heads: Heads, embedder: Embedder, pairs: Dataset) -> Adapted:
    """New users as the known users who are most like them, by an encoder (`training.encoder`) or other heads of the
    known users on frozen features of `embedder`: with no pass of the language model, in well under a second.

    Alike is who has the largest cosine with what is personal in a new user's weights. Where the heads find nothing
    personal in `pairs`, all get the generic row.
    """
    features = embed({"pairs": pairs}, [embedder], feature_cache())["pairs"]
    found = heads.adapt(features.difference, pairs["user_id"])
    user_ids = sorted(set(pairs["user_id"]))
    new, known = (found.weights(who) - found.pooled for who in (user_ids, index.user_ids))
    rows = index.rows([index.user_ids[i] for i in cosine_similarity(new, known).argmax(1)])
    if not found.are_personal(features.difference, pairs["user_id"]):
        rows = [GENERIC] * len(user_ids)
    return Adapted(user_ids, user_table(model).user_offsets(torch.tensor(rows)).detach(), start=rows)


def log_ratios(model, asked: Sequence[tuple[list[int], ...]], own: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """log pi(chosen) - log pi(rejected) of pairs (`tokenize_pairs`) in one forward pass: `[n]`, differentiable in the
    users' `own` `[n, ...]`."""
    users = user_table(model).tokens(own).repeat(2, 1, 1)
    texts = [(prompt, chosen) for prompt, chosen, _ in asked] + [(prompt, rejected) for prompt, _, rejected in asked]
    chosen, rejected = response_logps(model, texts, pad_token_id, users).chunk(2)
    return chosen - rejected


def weigh(model, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, batch_size: int = 16) -> Evidence:
    """Score `pairs` under the reference and the rows that a new user may start from: the generic one and those of up to
    64 known users; of more, those of 16 who stand for the rest."""

    def ratios(scored, pairs: Dataset, rows: list[int] | None = None) -> np.ndarray:
        scores = score_pairs(scored, tokenizer, pairs, rows, batch_size)
        return (scores.chosen_logp - scores.rejected_logp).to_numpy()

    table = user_table(model)
    rows = list(range(table.num_rows))
    if len(rows) > 65:  # those who are nearest to the centres of all users' numbers
        own = table.own.detach()[GENERIC + 1 :].flatten(1).float().cpu().numpy()
        centres = KMeans(16, n_init=4, random_state=0).fit(own).cluster_centers_
        rows = sorted({GENERIC, *(GENERIC + 1 + int(row) for row in pairwise_distances_argmin(centres, own))})
    read = as_read(model, pairs, reference=True)
    with reference_of(model) as base:
        reference = ratios(base, read)
    shown = tqdm(rows, desc="known users", disable=None, leave=False)
    margins = np.stack([ratios(model, pairs, [row] * len(pairs)) - reference for row in shown], 1)
    return Evidence(rows, margins, reference)


def user_table(model) -> UserModel:
    """The trained user model. Raises `ConditioningError` if there is none."""
    user_model_of(model)
    return user_models(model)[-1]


def add_users(model, index: UserIndex, adapted: Adapted) -> UserIndex:
    """Give the users of `adapt` rows behind those that are there. Changes `model`; returns the longer index.

    The generic user stays what it is: where it is the users' mean, that of those in training.
    """
    if known := [user for user in adapted.user_ids if user in index]:
        raise ValueError(f"user {known[0]!r} has row {index.row(known[0])} already; forget_users removes it.")
    for table in user_models(model):
        own = table.own.detach().clone()
        own[GENERIC] = table.user_offsets(torch.tensor([GENERIC])).detach()[0]
        table.generic_is_mean = False
        longer = torch.cat([own, adapted.own.to(own)])
        table.own = torch.nn.Parameter(longer, requires_grad=table.own.requires_grad)
    return UserIndex([*index.user_ids, *adapted.user_ids])


def forget_users(model, index: UserIndex, user_ids: Iterable[str]) -> UserIndex:
    """Delete users' rows. Changes `model`; returns the shorter index, in which later users move up.

    What is shared (adapter, e_0, centres, basis) was trained on their pairs too and stays.
    """
    gone = set(index.rows(list(user_ids)))
    left = [row for row in range(len(index)) if row not in gone]
    for table in user_models(model):
        table.own = torch.nn.Parameter(table.own.detach()[left].clone(), requires_grad=table.own.requires_grad)
    return UserIndex([user for user in index.user_ids if index.row(user) not in gone])
