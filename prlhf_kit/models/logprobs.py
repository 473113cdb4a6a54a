"""Log-probabilities of chosen and rejected responses, with or without a user in front."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase

from prlhf_kit.data.chat import require_prefix, with_user_text
from prlhf_kit.files import unfinished
from prlhf_kit.models.conditioning import check_length, embed_with_users, user_model_of
from prlhf_kit.models.tokenize import padded, require_tokenizer, tokenize_completions

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
    # padded on the left, so that the LM head runs over completions only
    inputs = _inputs(model, [prompt + completion for prompt, completion in sequences], pad_token_id, users)
    # one position before the first completion token predicts it
    return model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, :-1]


def _inputs(
    model, texts: Sequence[Sequence[int]], pad_token_id: int, users: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Texts, padded on the left, as `model` takes them, with their users in front."""
    device = model.get_input_embeddings().weight.device
    ids, mask = (part.to(device) for part in padded(texts, pad_token_id, "left"))
    if users is not None:
        return embed_with_users(model, users, ids, mask)
    check_length(model, ids.shape[1])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _logps_behind(
    model,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    pad_token_id: int,
    users: torch.Tensor | None,
) -> torch.Tensor:
    """`response_logps` `[n]` of several completions behind each prompt, one prompt's after the other's: the model reads
    a prompt once and keeps its keys and values."""
    inputs = _inputs(model, prompts, pad_token_id, users)
    mask = inputs["attention_mask"]
    read = model(**inputs, use_cache=True, logits_to_keep=1)
    prompt = torch.tensor([i for i, some in enumerate(completions) for _ in some], device=mask.device)  # [n]
    behind = [completion for some in completions for completion in some]
    if not isinstance(getattr(read, "past_key_values", None), DynamicCache):  # of recurrent layers
        whole = [(list(prompts[i]), list(completion)) for i, completion in zip(prompt, behind, strict=True)]
        return response_logps(model, whole, pad_token_id, None if users is None else users[prompt.cpu()])
    ids, asked = (part.to(mask.device) for part in padded(behind, pad_token_id))
    logits = [read.logits[prompt]]  # [n, 1, V]: of each first token
    if ids.shape[1] > 1:
        read.past_key_values.batch_select_indices(prompt)
        seen = torch.cat([mask[prompt], asked[:, :-1]], 1)
        positions = (seen.cumsum(1) - 1)[:, mask.shape[1] :]  # padding stays within the model's context
        given = {"attention_mask": seen, "position_ids": positions, "past_key_values": read.past_key_values}
        logits.append(model(input_ids=ids[:, :-1], **given).logits)
    per_token = torch.cat(logits, 1).float().log_softmax(-1).gather(-1, ids[:, :, None]).squeeze(-1)
    return (per_token * asked).sum(1)


@torch.inference_mode()
def sequence_logps(
    model,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences,
    user_rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> list[float]:
    """`response_logps` in batches of about equal length. A prompt is read once for all its completions, and repeated
    sequences are computed once.

    `user_rows`: `[n]` rows of the users; None leaves the model unconditioned (the reference).
    """
    require_prefix(tokenizer)
    require_tokenizer(model, tokenizer)
    check_length(model, max((len(p) + len(c) for p, c in sequences), default=0), users=user_rows is not None)

    rows = [0] * len(sequences) if user_rows is None else user_rows
    asked = [(tuple(p), row, tuple(c)) for (p, c), row in zip(sequences, rows, strict=True)]
    behind = defaultdict(list)  # each prompt's, and user's, completions
    for prompt, row, completion in sorted(set(asked), key=lambda one: len(one[2])):
        behind[prompt, row].append(completion)
    parts = [(*of, some[i : i + batch_size]) for of, some in behind.items() for i in range(0, len(some), batch_size)]
    parts.sort(key=lambda part: (len(part[0]) + len(part[2][-1]), part))
    found: dict[tuple, float] = {}
    start = 0
    with tqdm(total=len(set(asked)), desc="scoring", disable=None, leave=False) as shown:
        while start < len(parts):
            sizes = accumulate(len(some) for _, _, some in parts[start : start + batch_size])
            batch = parts[start : start + sum(n <= batch_size for n in sizes)]
            start += len(batch)
            prompts, of, completions = zip(*batch, strict=True)
            users = None if user_rows is None else torch.tensor(of)
            logps = _logps_behind(model, prompts, completions, tokenizer.pad_token_id or 0, users).tolist()
            each = [(prompt, row, one) for prompt, row, some in batch for one in some]
            found |= zip(each, logps, strict=True)
            shown.update(len(each))
    return [found[one] for one in asked]


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
    told = user_model_of(model).user_text
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
