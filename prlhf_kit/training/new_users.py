"""New users of a trained P-DPO model: what is theirs is fitted to a few of their pairs, and nothing else changes.

Beyond P-RLHF, which serves whoever it has not seen with the generic user's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.models.conditioning import user_model_of, user_models
from prlhf_kit.models.logprobs import as_read, response_logps, score_pairs
from prlhf_kit.models.saving import reference_of
from prlhf_kit.models.tokenize import tokenize_completion
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.models.user_models import UserModel


@dataclass(frozen=True)
class Adapted:
    """What `adapt` found.

    Args:
        user_ids: the new users, sorted.
        own: `[n, ...]`, their own numbers, in the order of `user_ids` (see `UserModel.own`).
        history: `step`, `user_id`, `loss` (nats a pair, before that step).
        start: where each user began: the row of a known user, or 0, the generic one.
    """

    user_ids: list[str]
    own: torch.Tensor
    history: pd.DataFrame
    start: list[int]


def adapt(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    *,
    steps: int = 10,
    learning_rate: float = 3e-3,
    beta: float = 0.1,
    decay: float = 0.0,
    candidates: Sequence[int] | None = None,
    batch_size: int = 16,
    evidence: Evidence | None = None,
) -> Adapted:
    """Fit the rows of users who have none, by DPO's loss on their own pairs; everything else is frozen.

    Every user starts at the candidate row that explains their pairs best, or at the generic one, and goes on by Adam.
    The log-probs under the reference and under the candidates are computed once; all users are fitted together, and
    since nothing is shared among them each gets what it would get alone.

    Args:
        model: trained personalised model (of `load_personalized` or a trainer) whose user model is a `UserModel`.
        pairs: preference records of the new users (`kit.data.few_shot`).
        steps: of Adam; 0 keeps the best candidate.
        learning_rate: of the users' own numbers.
        beta: of DPO.
        decay: pulls a user to where they started: `decay / 2 * |own - start|^2` is added to the summed loss.
        candidates: rows of known users to start from; default: all of up to 64 known users, none of more.
        batch_size: pairs in a forward pass.
        evidence: of the pairs, under the candidates (`weigh`), where it is known already.

    Raises:
        ValueError: no pairs, or a user model of another kind.
    """
    table = user_table(model)
    if not len(pairs):
        raise ValueError("there are no pairs to adapt to; a user without pairs is the generic user, row 0.")
    user_ids = sorted(set(pairs["user_id"]))
    who = torch.tensor([user_ids.index(user) for user in pairs["user_id"]])
    candidates = known_users(model) if candidates is None else list(candidates)
    if evidence is None:
        evidence = weigh(model, tokenizer, pairs, candidates, batch_size)
    reference = torch.tensor(evidence.reference)
    nats = np.logaddexp(0, -beta * evidence.margins)  # DPO's loss of each pair under each row
    losses = np.stack([np.bincount(who, weights=one, minlength=len(user_ids)) for one in nats.T])
    start = [(GENERIC, *candidates)[i] for i in np.argmin(losses, axis=0)]
    asked = tokenized(model, tokenizer, pairs) if steps else []
    frozen = [p for p in model.parameters() if p.requires_grad]
    bar = tqdm(total=steps * len(asked), desc="adapting", unit=" pairs", disable=None, leave=False)
    training = model.training
    model.eval()
    for p in frozen:
        p.requires_grad_(False)
    try:
        begun = table.user_offsets(torch.tensor(start)).detach().clone()
        own = begun.clone().requires_grad_()
        optimizer = torch.optim.Adam([own], lr=learning_rate)
        rows = []
        for step in range(steps):
            optimizer.zero_grad()
            seen = torch.zeros(len(user_ids))
            for i in range(0, len(asked), batch_size):
                part = slice(i, i + batch_size)
                gap = log_ratios(model, asked[part], own[who[part]], tokenizer.pad_token_id)
                gap = gap - reference[part].to(gap)
                loss = -logsigmoid(beta * gap)
                loss.sum().backward()
                seen.index_add_(0, who[part], loss.detach().float().cpu())
                bar.update(len(loss))
            if decay:
                (decay / 2 * (own - begun).square().sum()).backward()
            rows += [
                (step, user, value) for user, value in zip(user_ids, (seen / who.bincount()).tolist(), strict=True)
            ]
            optimizer.step()
    finally:
        bar.close()
        model.train(training)
        for p in frozen:
            p.requires_grad_(True)
    return Adapted(user_ids, own.detach(), pd.DataFrame(rows, columns=["step", "user_id", "loss"]), start)


Tokens = tuple[list[int], list[int]]  # of a prompt and a completion


def tokenized(model, tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> list[tuple[Tokens, Tokens]]:
    """Chosen and rejected of each pair, as `log_ratios` takes them; with the users' words where `model` has them."""
    return [
        (
            tokenize_completion(tokenizer, row["prompt"], row["chosen"]),
            tokenize_completion(tokenizer, row["prompt"], row["rejected"]),
        )
        for row in as_read(model, pairs)
    ]


def log_ratios(model, asked: Sequence[tuple[Tokens, Tokens]], own: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """log pi(chosen) - log pi(rejected) in one forward pass: `[n]`, differentiable in the users' `own` `[n, ...]`."""
    users = user_table(model).tokens(own).repeat(2, 1, 1)
    texts = [chosen for chosen, _ in asked] + [rejected for _, rejected in asked]
    chosen, rejected = response_logps(model, texts, pad_token_id, users).chunk(2)
    return chosen - rejected


class Evidence(NamedTuple):
    """What pairs say of rows: `margins` `[n, 1 + candidates]`, DPO's reward margins without beta (nats) under the
    generic row and each candidate, and `reference` `[n]`, the reference's log pi(chosen) - log pi(rejected)."""

    margins: np.ndarray
    reference: np.ndarray

    def of(self, rows: Sequence[int]) -> Evidence:
        """That of some of the pairs."""
        return Evidence(self.margins[rows], self.reference[rows])


def weigh(
    model, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, candidates: Sequence[int], batch_size: int = 16
) -> Evidence:
    """Score `pairs` under the reference, the generic row and each of `candidates`."""
    with reference_of(model) as base:
        reference = _gap(score_pairs(base, tokenizer, pairs, batch_size=batch_size))
    rows = (GENERIC, *candidates)
    shown = tqdm(rows, desc="known users", disable=None, leave=False)
    found = [_gap(score_pairs(model, tokenizer, pairs, [row] * len(pairs), batch_size)) - reference for row in shown]
    return Evidence(np.stack(found, axis=1), reference)


def _gap(scores: pd.DataFrame) -> np.ndarray:
    return (scores.chosen_logp - scores.rejected_logp).to_numpy()


def known_users(model) -> list[int]:
    """Rows of up to 64 known users, to start from; none where there are more."""
    rows = user_table(model).num_rows
    return list(range(1, rows)) if rows <= 65 else []


def user_table(model) -> UserModel:
    """The trained user model. Raises `ConditioningError` if there is none, `ValueError` for one of another kind."""
    user_model_of(model)
    table = user_models(model)[-1]
    if not isinstance(table, UserModel):
        raise ValueError(f"adapt needs a prlhf_kit UserModel, got a {type(table).__name__}.")
    return table


def add_users(model, index: UserIndex, adapted: Adapted) -> UserIndex:
    """Give the users of `adapt` rows behind those that are there. Changes `model`; returns the longer index.

    Raises:
        ValueError: a user is known already.
    """
    known = [user for user in adapted.user_ids if user in index]
    if known:
        raise ValueError(f"user {known[0]!r} has row {index.row(known[0])} already; forget_users removes it.")
    for table in user_models(model):
        table.own = _like(table.own, torch.cat([table.own.detach(), adapted.own.to(table.own)]))
    return UserIndex([*index.user_ids, *adapted.user_ids])


def forget_users(model, index: UserIndex, user_ids: Iterable[str]) -> UserIndex:
    """Delete users' rows. Changes `model`; returns the shorter index, in which later users move up.

    What is shared (adapter, e_0, centres, basis) was trained on their pairs too and stays: only training again without
    them removes that.

    Raises:
        KeyError: a user is unknown.
    """
    gone = set(index.rows(list(user_ids)))
    left = [row for row in range(len(index)) if row not in gone]
    for table in user_models(model):
        table.own = _like(table.own, table.own.detach()[left].clone())
    return UserIndex([user for user in index.user_ids if index.row(user) not in gone])


def _like(parameter: torch.nn.Parameter, values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
