"""Log-probabilities of chosen and rejected responses, with or without a user in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import require_prefix, with_user_text
from prlhf_kit.files import unfinished
from prlhf_kit.models.conditioning import check_length, embed_with_users, takes_user_text
from prlhf_kit.models.tokenize import in_batches, padded, require_tokenizer, tokenize_completions

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
Sequences = Sequence[tuple[list[int], list[int]]]


def response_logps(model, sequences: Sequences, pad_token_id: int, users: torch.Tensor | None = None) -> torch.Tensor:
    """Summed log-probability (nats) of each completion given its prompt, in one forward pass: `[n]`, differentiable.

    Args:
        sequences: token ids of (prompt, completion).
        users: `[n]` rows, or `[n, T_u, d_model]` user tokens; None leaves the model unconditioned.
    """
    logits = completion_logits(model, sequences, pad_token_id, users)
    ids, asked = (part.to(logits.device) for part in padded([c for _, c in sequences], pad_token_id, "left"))
    per_token = logits.float().log_softmax(-1).gather(-1, ids[:, :, None]).squeeze(-1)
    return (per_token * asked).sum(1)


def completion_logits(
    model, sequences: Sequences, pad_token_id: int, users: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits at the positions that predict each completion's tokens: `[n, longest completion, V]`, shorter ones at the
    end of their row. Arguments: see `response_logps`."""
    keep = max(len(completion) for _, completion in sequences)
    device = model.get_input_embeddings().weight.device
    texts = [prompt + completion for prompt, completion in sequences]
    # padded on the left, so that the LM head runs over completions only
    ids, mask = (part.to(device) for part in padded(texts, pad_token_id, "left"))
    if users is None:
        check_length(model, ids.shape[1])
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    else:
        inputs = embed_with_users(model, users, ids, mask)
    # one position before the first completion token predicts it
    return model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, :-1]


@torch.inference_mode()
def sequence_logps(
    model,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences,
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> list[float]:
    """`response_logps` in batches of about equal length; repeated sequences are computed once.

    `user_rows`: `[n]` rows of the users; None leaves the model unconditioned (the reference).
    """
    require_prefix(tokenizer)
    require_tokenizer(model, tokenizer)
    check_length(model, max((len(p) + len(c) for p, c in sequences), default=0), users=user_rows is not None)

    def run(batch: Sequence[tuple[tuple[int, ...], int, int]]) -> np.ndarray:
        parts = [(list(ids[:start]), list(ids[start:])) for ids, start, _ in batch]
        rows = None if user_rows is None else torch.tensor([row for _, _, row in batch])
        return response_logps(model, parts, tokenizer.pad_token_id or 0, rows).cpu().numpy()

    rows = [0] * len(sequences) if user_rows is None else user_rows
    asked = [((*p, *c), len(p), row) for (p, c), row in zip(sequences, rows, strict=True)]
    return in_batches(run, asked, batch_size, what="scoring").tolist() if asked else []


def score_pairs(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Log-probabilities of both responses, with `user_rows` of `as_read(model, pairs)`. One row a pair: `pair_id`,
    `user_id`, `chosen_logp`, `rejected_logp` (nats, summed over tokens), `chosen_tokens`, `rejected_tokens`."""
    rows = None if user_rows is None else [*user_rows, *user_rows]
    asked = tokenize_pairs(tokenizer, pairs if user_rows is None else as_read(model, pairs))
    sequences = [(p, c) for p, c, _ in asked] + [(p, r) for p, _, r in asked]
    logps = sequence_logps(model, tokenizer, sequences, rows, batch_size)
    return pd.DataFrame(
        {
            "pair_id": pairs["pair_id"],
            "user_id": pairs["user_id"],
            "chosen_logp": logps[: len(asked)],
            "rejected_logp": logps[len(asked) :],
            "chosen_tokens": [len(c) for _, c, _ in asked],
            "rejected_tokens": [len(r) for _, _, r in asked],
        }
    )


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> list[tuple[list[int], ...]]:
    """Token ids of prompt, chosen and rejected response of each pair, as TRL's DPOTrainer cuts them."""
    texts = zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True)
    return [tokenize_completions(tokenizer, *text) for text in texts]


def require_lengths(tokenizer: PreTrainedTokenizerBase, pairs: Dataset, max_length: int | None, name="train") -> int:
    """Tokens of the longest pair, its prompt and longer response; refuses (`ValueError`) what `max_length` would cut,
    before anything is computed from the whole texts. `name`: of the set, for the message."""
    lengths = [len(p) + max(len(c), len(r)) for p, c, r in tokenize_pairs(tokenizer, pairs)]
    long = [n for n in lengths if n > (max_length or math.inf)]
    if long:
        raise ValueError(
            f"{len(long):,} of {len(lengths):,} pairs of the {name} set are longer than max_length={max_length}: "
            f"`-p max_length {max(long)}`, or `-p max_tokens {max_length}` in notebook 01 leaves them out."
        )
    return max(lengths)


def as_read(model, pairs: Dataset, reference: bool = False) -> Dataset:
    """`pairs` with the users' words in the prompts, where `model`'s user model has them beside its soft tokens;
    `reference`: where its reference reads them too (`UserModel.user_text`)."""
    told = takes_user_text(model)
    return with_user_text(pairs) if told == "authors" or (told and not reference) else pairs


def add_reference_logps(pairs: Dataset, model, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> Dataset:
    """`pairs` with the columns `ref_chosen_logps` and `ref_rejected_logps`, from an unconditioned `model`. The trainer
    uses them where they are there, so that several trainings on the same pairs share one reference pass."""
    scores = score_pairs(model, tokenizer, pairs, batch_size=batch_size)
    for name, column in zip(REFERENCE, ("chosen_logp", "rejected_logp"), strict=True):
        pairs = pairs.add_column(name, scores[column].tolist())
    return pairs


def save_with_reference(
    pairs: Dataset, model, tokenizer: PreTrainedTokenizerBase, folder: str | Path, batch_size: int = 16
) -> Dataset:
    """Write `add_reference_logps` of `pairs` into `folder`, which appears only when complete, and return what lies
    there; if it is there already, nothing is computed."""
    folder = Path(folder)
    if not folder.exists():
        temporary = unfinished(folder)
        add_reference_logps(pairs, model, tokenizer, batch_size).save_to_disk(temporary)
        temporary.rename(folder)
    return Dataset.load_from_disk(folder)
