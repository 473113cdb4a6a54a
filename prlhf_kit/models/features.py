"""Frozen features of responses: one vector each, computed once and kept on disk by fingerprint.

Rewards that are linear in such features are fitted in seconds (`training/heads.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prlhf_kit.data.attributes import measure_all
from prlhf_kit.files import in_chunks, short_hash
from prlhf_kit.models import hub
from prlhf_kit.models.tokenize import encode, padded

ATTRIBUTES = "attributes"
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Embedder:
    """A frozen model that gives every response one vector.

    A decoder reads prompt and response; the vector is the mean of its last hidden states over the response's tokens. A
    sentence encoder reads the response alone; the vector is the mean over all its tokens, of length 1.

    Args:
        model: backbone; None: the vector is the response's text attributes (`data/attributes.py`).
        max_length: tokens; of longer texts a decoder does not read the beginning, so that the response is left, and a
            sentence encoder not the end.
    """

    name: str
    model: Any = None
    tokenizer: Any = None
    decoder: bool = False
    max_length: int = 512
    batch_size: int = 32

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[Messages], cache: Path | None = None
    ) -> np.ndarray:
        """`[n, d]` float32. Equal texts are embedded once.

        Args:
            cache: folder in which the vectors are kept (`cache_dir() / "features"`, for instance); None: not.
        """
        if self.model is None:
            texts = [" ".join(m["content"] for m in response) for response in responses]
            return measure_all(texts).to_numpy(np.float32)
        asked: list[tuple[tuple[int, ...], int]] = []
        for prompt, response in zip(prompts, responses, strict=True):
            ids, start = encode(
                self.tokenizer,
                prompt if self.decoder else [],
                response,
                self.max_length,
                "left" if self.decoder else "right",
                self.decoder,
            )
            asked.append((tuple(ids), start))
        unique = sorted(set(asked), key=lambda item: (len(item[0]), item))
        folder = None if cache is None else cache / short_hash(self._weights, unique)
        vectors = in_chunks(self._embed, unique, folder, what=f"embedding ({self.name})")
        place = {item: i for i, item in enumerate(unique)}
        return vectors[[place[item] for item in asked]]

    @cached_property
    def _weights(self) -> str:
        return hub.weights_hash(self.model)

    @torch.inference_mode()
    def _embed(self, items: Sequence[tuple[tuple[int, ...], int]]) -> np.ndarray:
        found = []
        for start in tqdm(range(0, len(items), self.batch_size), desc="batches", disable=None, leave=False):
            batch = items[start : start + self.batch_size]
            ids, mask = padded([list(text) for text, _ in batch], self.tokenizer.pad_token_id or 0)
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            options = {"use_cache": False} if self.decoder else {}
            hidden = self.model(input_ids=ids, attention_mask=mask, **options).last_hidden_state.float()
            first = torch.tensor([start for _, start in batch], device=ids.device)
            counted = (mask * (mask.cumsum(1) > first[:, None]))[..., None]
            vectors = (hidden * counted).sum(1) / counted.sum(1)
            if not self.decoder:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            found.append(vectors.cpu().numpy())
        return np.concatenate(found)


def load_embedder(name: str, max_length: int = 512, batch_size: int = 32) -> Embedder:
    """An embedder by name: "attributes"; `models.SENTENCES` (all-MiniLM-L6-v2); or any language model or encoder of
    transformers, by hub id or folder.

    Raises:
        ModelError: no such model.
    """
    if name == ATTRIBUTES:
        return Embedder(name)
    decoder = hub.from_hub(AutoConfig, name).model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    model = hub.from_hub(AutoModel, name, dtype=torch.float32).eval()
    tokenizer = hub.load_tokenizer(name) if decoder else hub.from_hub(AutoTokenizer, name)
    limit = getattr(model.config, "max_position_embeddings", max_length)
    return Embedder(
        name,
        model.to("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer,
        decoder,
        min(max_length, limit),
        batch_size,
    )
