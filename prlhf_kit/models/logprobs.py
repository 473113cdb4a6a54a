"""Log-probabilities of chosen and rejected responses, with or without a user in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import require_prefix, with_user_text
from prlhf_kit.files import unfinished
from prlhf_kit.models.conditioning import check_length, embed_with_users, takes_user_text
from prlhf_kit.models.tokenize import require_tokenizer, tokenize_completion

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


def response_logps(
    model, sequences: Sequence[tuple[list[int], list[int]]], pad_token_id: int, users: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed log-probability (nats) of each completion given its prompt, in one forward pass: `[n]`, differentiable.

    Args:
        sequences: token ids of (prompt, completion).
        users: `[n]` rows, or `[n, T_u, d_model]` user tokens; None leaves the model unconditioned.
    """
    logits = completion_logits(model, sequences, pad_token_id, users)
    keep = logits.shape[1]
    ids = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    asked = torch.zeros(logits.shape[:2], device=logits.device)
    for row, (_, completion) in enumerate(sequences):
        ids[row, keep - len(completion) :] = torch.tensor(completion, device=logits.device)
        asked[row, keep - len(completion) :] = 1
    per_token = logits.float().log_softmax(-1).gather(-1, ids[:, :, None]).squeeze(-1)
    return (per_token * asked).sum(1)


def completion_logits(
    model, sequences: Sequence[tuple[list[int], list[int]]], pad_token_id: int, users: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits at the positions that predict each completion's tokens: `[n, longest completion, V]`, shorter ones at the
    end of their row.

    Sequences are padded on the left, so that the LM head runs over completions only. Arguments: see `response_logps`.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    keep = max(len(completion) for _, completion in sequences)
    check_length(model, width)
    device = model.get_input_embeddings().weight.device
    ids = torch.full((len(sequences), width), pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(sequences):
        start = width - len(prompt) - len(completion)
        ids[row, start:] = torch.tensor(prompt + completion, device=device)
        mask[row, start:] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    if users is not None:
        inputs = embed_with_users(model, users, **inputs)
    # one position before the first completion token predicts it
    return model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, :-1]


@torch.inference_mode()
def completion_logps(
    model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict]],
    completions: Sequence[list[dict]],
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> tuple[list[float], list[int]]:
    """Summed log-probability (nats) and token count of each completion given its prompt.

    Sequences are batched by length and padded on the left, so that the LM head runs over completions only; repeated
    ones are computed once.

    Args:
        user_rows: `[n]` rows of the users; None leaves the model unconditioned (the reference).
    """
    require_prefix(tokenizer)
    require_tokenizer(model, tokenizer)
    asked = [tokenize_completion(tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
    rows = [None] * len(asked) if user_rows is None else list(user_rows)
    keys = [(row, *map(tuple, pair)) for row, pair in zip(rows, asked, strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the same question is answered once
    pairs = [asked[i] for i in first.values()]
    unique_rows = [rows[i] for i in first.values()]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logps = [0.0] * len(pairs)
    for start in tqdm(range(0, len(order), batch_size), desc="scoring", disable=None, leave=False):
        chunk = order[start : start + batch_size]
        users = None if user_rows is None else torch.tensor([unique_rows[i] for i in chunk])
        found = response_logps(model, [pairs[i] for i in chunk], tokenizer.pad_token_id, users).tolist()
        for i, value in zip(chunk, found, strict=True):
            logps[i] = value
    place = {key: i for i, key in enumerate(first)}
    return [logps[place[key]] for key in keys], [len(completion) for _, completion in asked]


def score_pairs(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Log-probabilities of both responses of each pair; with `user_rows`, of `as_read(model, pairs)`.

    Returns:
        One row a pair: `pair_id`, `user_id`, `chosen_logp`, `rejected_logp` (nats, summed over the completion's
        tokens), `chosen_tokens`, `rejected_tokens`.
    """
    prompts = list((pairs if user_rows is None else as_read(model, pairs))["prompt"])
    rows = None if user_rows is None else [*user_rows, *user_rows]
    logps, tokens = completion_logps(
        model, tokenizer, prompts * 2, [*pairs["chosen"], *pairs["rejected"]], rows, batch_size
    )
    n = len(prompts)
    return pd.DataFrame(
        {
            "pair_id": pairs["pair_id"],
            "user_id": pairs["user_id"],
            "chosen_logp": logps[:n],
            "rejected_logp": logps[n:],
            "chosen_tokens": tokens[:n],
            "rejected_tokens": tokens[n:],
        }
    )


def as_read(model, pairs: Dataset) -> Dataset:
    """`pairs` with the users' words in the prompts, where `model`'s user model has them beside its soft tokens."""
    return with_user_text(pairs) if takes_user_text(model) else pairs


def add_reference_logps(pairs: Dataset, model, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> Dataset:
    """`pairs` with the columns `ref_chosen_logps` and `ref_rejected_logps`, from an unconditioned `model`.

    `PersonalizedDPOTrainer` uses them where they are there, so that several trainings on the same pairs share one
    reference pass.
    """
    scores = score_pairs(model, tokenizer, pairs, batch_size=batch_size)
    columns = (scores.chosen_logp.tolist(), scores.rejected_logp.tolist())
    for name, values in zip(REFERENCE, columns, strict=True):
        pairs = pairs.add_column(name, values)
    return pairs


def save_with_reference(
    pairs: Dataset, model, tokenizer: PreTrainedTokenizerBase, folder: str | Path, batch_size: int = 16
) -> None:
    """Write `add_reference_logps` of `pairs` into `folder`, which appears only when it is complete; if it is there
    already, nothing is computed."""
    folder = Path(folder)
    if not folder.exists():
        temporary = unfinished(folder)
        add_reference_logps(pairs, model, tokenizer, batch_size).save_to_disk(temporary)
        temporary.rename(folder)


def text_nll(logits: torch.Tensor, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood a token (nats) of each text: `[N]`; 0 for a text of which nothing is asked.

    Args:
        logits: `[N, L, V]`.
        ids: `[N, L]`.
        asked: `[N, L]`, 1 for the tokens to predict; the first position has nothing to be predicted from.
    """
    asked = asked[:, 1:].to(torch.float32)
    nll = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return (nll * asked).sum(1) / asked.sum(1).clamp(min=1)
