"""Messages to tokens, and tokens to padded batches."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from prlhf_kit.data.chat import apply_template
from prlhf_kit.data.schema import message
from prlhf_kit.files import in_chunks, short_hash
from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.embedded import ModelError

Messages = list[dict[str, str]]
PROBE = "Ünïcode 12345, don't\n\n  def f(x): return {'x': x}\t<|im_end|></s> 東京 🙂"  # on which tokenizers differ
TOKENIZER = "tokenizer_hash"  # attribute of a trained model


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    response: Messages,
    max_length: int | None = None,
    decoder: bool = True,
    unfinished: bool = False,
) -> tuple[list[int], int]:
    """Token ids of a prompt with its response, and how many of them are the prompt's.

    A decoder reads both as its chat template lays them out; an encoder as its tokenizer joins two texts.

    Args:
        max_length: so many tokens are left at the end of prompt and response (DSP cuts the beginning); of an encoder's
            text without a prompt, at its beginning. None: all.
        unfinished: the response is the beginning of one, so a decoder's template does not end it.
    """
    if not decoder:
        texts = ["\n\n".join(m["content"] for m in messages) for messages in (prompt, response) if messages]
        found = tokenizer(*texts, verbose=False)  # it would warn of the length
        tokens = list(zip(found["input_ids"], found.sequence_ids(0), strict=True))  # (id, 0 or 1; None: neither's)
        if max_length is not None and (over := len(tokens) - max_length) > 0:
            of_text = [place for place, (_, text) in enumerate(tokens) if text is not None]
            gone = set(of_text[:over] if prompt else of_text[-over:])
            tokens = [token for place, token in enumerate(tokens) if place not in gone]
        ids, whose = ([*part] for part in zip(*tokens, strict=True))
        return ids, whose.index(1) if 1 in whose else 0
    asked, answered = tokenize_completions(tokenizer, prompt, response)
    if unfinished:
        layout = {"continue_final_message": True, "return_dict": True}
        answered = apply_template(tokenizer, prompt + response, **layout)["input_ids"][len(asked) :]
    cut = 0 if max_length is None else max(len(asked) + len(answered) - max_length, 0)
    asked, answered = asked[cut:], answered[max(cut - len(asked), 0) :]
    return asked + answered, len(asked)


def token_types(attention_mask: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """0 for the prompt, 1 for the response: `[N, L]`, for encoders that tell the two texts of a pair apart.
    `starts`: `[N]`, where each response begins among the real tokens."""
    behind = attention_mask.cumsum(1) > torch.tensor(starts)[:, None]
    return (behind & attention_mask.bool()).long()


@functools.lru_cache(maxsize=8)
def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase, _size: int) -> str:
    return short_hash(sorted(tokenizer.get_vocab().items()), tokenizer(PROBE, add_special_tokens=False)["input_ids"])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that tell apart tokenizers with other tokens, or that cut texts otherwise."""
    return _tokenizer_hash(tokenizer, len(tokenizer))


def require_tokenizer(model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` where `tokenizer` is not the one that `model` was trained with (by the kit, which keeps its
    hash in `users.json`), or has more tokens than the model."""
    bare = causal_lm(model)
    known, size = getattr(bare, TOKENIZER, None), bare.get_input_embeddings().weight.shape[0]
    if known not in (None, tokenizer_hash(tokenizer)) or len(tokenizer) > size:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} ({len(tokenizer)} tokens, the model's embedding has {size}) is "
            "not the one that the model was trained with. Pass the model's own: kit.load_tokenizer(name of its base)."
        )


def writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer by itself puts its BOS token in front of a text, as Llama's does."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a dialogue, as a model reads it, begins with the BOS token that its tokenizer writes by itself."""
    if not writes_bos(tokenizer):
        return False
    text: Any = tokenizer.apply_chat_template(message("user", "a"), tokenize=False)
    return text.startswith(tokenizer.bos_token)


def padded(
    texts: Sequence[Sequence[int]], pad_token_id: int | None, padding_side: str = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `[N, L]` each. `pad_token_id` None: padding repeats a text's first token, which a
    repetition penalty (it takes no mask) has met anyway."""
    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    ids = pad_sequence(rows, True, pad_token_id or 0, padding_side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, padding_side=padding_side)
    if pad_token_id is None:
        ids = torch.where(mask.bool(), ids, torch.tensor([[text[0]] for text in texts]))
    return ids, mask


def in_batches(
    run: Callable[..., Any], items: Sequence[tuple], batch_size: int, cache: Path | None = None, what: str = ""
) -> np.ndarray:
    """`run` of all `items`, `[n, ...]`, in batches of about equal length; equal items are computed once.

    Args:
        run: called with a list of at most `batch_size` of the items, returns one row each.
        items: token ids (a tuple) first, then what else the result depends on.
        cache: folder, named by the model, in which finished batches are kept, so that a killed computation goes on.
        what: said by the progress bar.
    """
    unique = sorted(set(items), key=lambda item: (len(item[0]), item))

    def chunk(some: Sequence[tuple]) -> np.ndarray:
        return np.concatenate([run(some[i : i + batch_size]) for i in range(0, len(some), batch_size)])

    if cache is None:
        found = in_chunks(run, unique, None, batch_size, what)
    else:
        found = in_chunks(chunk, unique, cache / short_hash(unique), what=what)
    place = {item: i for i, item in enumerate(unique)}
    return found[[place[item] for item in items]]


def fitting(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, columns: Sequence[str] = ("chosen", "rejected")
) -> Dataset:
    """The rows of which no response of `columns`, with its prompt, exceeds `max_length` tokens; prints what is lost."""

    def fits(row) -> bool:
        return all(len(encode(tokenizer, row["prompt"], row[name])[0]) <= max_length for name in columns)

    kept = [i for i, row in enumerate(rows) if fits(row)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept):,} of {len(rows):,} rows are longer than max_length={max_length}: left out")
    return rows.select(kept)


def tokenize_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, *completions: Messages
) -> tuple[list[int], ...]:
    """Token ids of a prompt and of each of its completions: `[P]`, `[C]`, ...

    As in TRL's DPOTrainer, all are cut where the prompt and each whole text agree: white space with which one of two
    responses begins may merge with the prompt's last token, which then belongs to neither prompt.
    """
    ids = apply_template(tokenizer, prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = [apply_template(tokenizer, prompt + one, return_dict=True)["input_ids"] for one in completions]
    cut = min(common_prefix_length(ids, one) for one in whole)
    return ids[:cut], *(one[cut:] for one in whole)
