"""From preference pairs, or scored lists of responses, to the token ids that a reward model is trained on."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.schema import SchemaError
from prlhf_kit.models.tokenize import encode, padded, token_types
from prlhf_kit.training.reward_losses import normalised


def tokenized_lists(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None, decoder: bool
) -> tuple[Dataset, Counter[str]]:
    """Token ids of every list, longest first, and how many lists were dropped, by reason.

    Args:
        rows: preference pairs (`prompt`, `chosen`, `rejected`), or lists (`prompt`, `responses`, `scores`, as
            `data.dsp.listwise` makes them).

    Returns:
        Columns `text_ids` and `prompt_tokens` (for each response), `scores` (normalised), `row` (in `rows`), `length`.
    """
    columns = set(rows.column_names)
    lists = {"prompt", "responses", "scores"} <= columns
    if not lists and not {"prompt", "chosen", "rejected"} <= columns:
        expected = "prompt, chosen and rejected, or prompt, responses and scores (data.dsp.listwise)"
        raise SchemaError(f"the {name} set has columns {sorted(columns)}, expected {expected}.")
    if "margin" in columns:
        raise SchemaError(f"the {name} set has a column 'margin', which this loss does not use. Remove it.")
    dropped: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        responses = row["responses"] if lists else [row["chosen"], row["rejected"]]
        scores = row["scores"] if lists else [1.0, 0.0]
        numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        if not numbers or len(responses) != len(scores) or len(responses) < 2:
            said = f"row {number} of the {name} set has {len(responses)} responses and the scores {scores}"
            raise SchemaError(f"{said}, expected a finite number for each of at least two responses.")
        if len(set(scores)) == 1:
            dropped["all scores equal"] += 1
            continue
        if not all("".join(m["content"] or "" for m in response).strip() for response in responses):
            dropped["empty text"] += 1
            continue
        encoded = [encode(tokenizer, row["prompt"], r, max_length, decoder) for r in responses]
        texts, prompt_tokens = map(list, zip(*encoded, strict=True))
        if all(ids == texts[0] for ids in texts):
            dropped["the same text after truncation" if max_length else "the same text"] += 1
            continue
        scores = normalised(torch.tensor([scores], dtype=torch.float64))[0].tolist()
        own = {"text_ids": texts, "prompt_tokens": prompt_tokens, "scores": scores}
        found.append({**own, "row": number, "length": max(map(len, texts))})
    if not found:
        raise SchemaError(f"nothing is left of the {name} set's {len(rows)} rows: {dict(dropped)}.")
    return Dataset.from_list(sorted(found, key=lambda row: -row["length"])), dropped


@dataclass
class RewardCollator:
    """Batches of lists: all responses as rows of one padded batch, lists of different lengths without rows of padding.

    Returns `scores` and `mask` `[B, r]`, `rows` `[B]`, and for the N responses `input_ids`, `attention_mask` `[N, L]`;
    `lm_asked` `[N, L]` where the language-modelling term is wanted (of texts whose score exceeds `lm_threshold`);
    `user_rows` `[N]` where rows have a user; `token_type_ids` `[N, L]` where the model tells two texts apart.
    """

    pad_token_id: int
    lm_threshold: float | None
    two_types: bool = False
    padding_side: str = "right"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        scores = pad_sequence([torch.tensor(e["scores"]) for e in examples], batch_first=True)
        mask = pad_sequence([torch.ones(len(e["scores"]), dtype=torch.bool) for e in examples], batch_first=True)
        # N responses of all lists in one batch, [N, L]; scores[mask] gives their scores back in this order
        ids, attended = padded([t for e in examples for t in e["text_ids"]], self.pad_token_id, self.padding_side)
        batch = {  # scores first: Trainer takes the batch size from there
            "scores": scores,
            "mask": mask,
            "rows": torch.tensor([e["row"] for e in examples]),
            "input_ids": ids,
            "attention_mask": attended,
        }
        if self.two_types:
            batch["token_type_ids"] = token_types(attended, [n for e in examples for n in e["prompt_tokens"]])
        if self.lm_threshold is not None:
            batch["lm_asked"] = attended * (scores[mask] > self.lm_threshold)[:, None]  # [N, L]
        if "user_row" in examples[0]:
            batch["user_rows"] = torch.tensor([e["user_row"] for e in examples for _ in e["scores"]])
        return batch
