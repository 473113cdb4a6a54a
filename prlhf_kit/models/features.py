"""Frozen features of responses, on which heads are fitted: one vector each, computed once and kept on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoTokenizer

from prlhf_kit.data.attributes import measure_all
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import causal_lm, context_of
from prlhf_kit.models.embedded import cache_dir
from prlhf_kit.models.reward_model import REWARD_FILE, is_decoder, load_reward_model, pool
from prlhf_kit.models.tokenize import Messages, encode, in_batches, padded, token_types

ATTRIBUTES = "attributes"


@dataclass(frozen=True)
class Embedder:
    """A frozen model that gives every response one vector: the mean of a decoder's last hidden states over the response
    that follows its prompt; what a reward model's head reads, which is its hidden state at the last token as a rule
    (LoRe, arXiv 2504.14439); or a sentence encoder's mean over the response alone, of length 1.

    Args:
        model: backbone; None: the vector is the response's text attributes (`data/attributes.py`).
        head, pooling: a reward model's own weights `[d]` of these features, and how it pools; None of other models.
        max_length: tokens; of longer texts a decoder does not read the beginning, a sentence encoder not the end.
    """

    name: str
    model: Any = None
    tokenizer: Any = None
    decoder: bool = False
    head: np.ndarray | None = None
    pooling: str | None = None
    max_length: int = 512
    batch_size: int = 32

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[Messages], cache: Path | None = None
    ) -> np.ndarray:
        """`[n, d]` float32, kept in the folder `cache` where there is one."""
        if self.model is None:
            texts = [" ".join(m["content"] for m in response) for response in responses]
            return measure_all(texts).to_numpy(np.float32)
        asked = []
        for prompt, response in zip(prompts, responses, strict=True):
            read = prompt if self.decoder else []
            ids, start = encode(self.tokenizer, read, response, self.max_length, self.decoder)
            asked.append((tuple(ids), start))
        kept = None if cache is None else cache / f"{hub.weights_hash(self.model)}{self.pooling or ''}"
        return in_batches(self._embed, asked, self.batch_size, kept, f"embedding ({self.name})")

    @torch.inference_mode()
    def _embed(self, batch: Sequence[tuple[tuple[int, ...], int]]) -> np.ndarray:
        ids, mask = padded([list(text) for text, _ in batch], self.tokenizer.pad_token_id or 0)
        inputs = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        options = {"use_cache": False} if self.decoder else {}
        hidden = self.model(**inputs, **options).last_hidden_state.float()  # [B, L, d]
        if self.pooling is not None:
            real = inputs["attention_mask"]
            if self.pooling == "own":  # transformers': the last token that is not the padding token
                real = real * (inputs["input_ids"] != (self.model.config.pad_token_id or self.tokenizer.pad_token_id))
            return pool(hidden, real, self.pooling.replace("own", "last")).cpu().numpy()
        counted = token_types(mask, [start for _, start in batch]).to(hidden)[..., None]
        vectors = (hidden * counted).sum(1) / counted.sum(1)
        if not self.decoder:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.cpu().numpy()


def load_embedder(name: str) -> Embedder:
    """An embedder by name: "attributes"; `models.SENTENCES` (all-MiniLM-L6-v2); or any language model, encoder or
    reward model of transformers, by hub id or folder. The features of a reward model are those that its head reads,
    where it is a decoder with one output: published, or of notebook 02."""
    if name == ATTRIBUTES:
        return Embedder(name)
    more: dict[str, Any] = {}
    ours = Path(name, REWARD_FILE).is_file()
    kinds = [] if ours else hub.from_hub(AutoConfig, name).architectures or []
    rewards = ours or any(kind.endswith("ForSequenceClassification") for kind in kinds)
    whole: Any = causal_lm(load_reward_model(name)[0]) if rewards else None
    if whole is not None and is_decoder(whole) and whole.config.num_labels == 1:
        model, head = whole.base_model, whole.score.weight[0].detach().cpu().numpy()
        more = {"head": head, "pooling": getattr(whole, "pooling", "own")}
    else:
        model = hub.from_hub(AutoModel, name, dtype=torch.float32).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    decoder = is_decoder(model)
    tokenizer = hub.load_tokenizer(name) if decoder else hub.from_hub(AutoTokenizer, name)
    return Embedder(name, model, tokenizer, decoder, max_length=min(512, context_of(model.config) or 512), **more)


def feature_cache() -> Path:
    """The folder in which features are kept."""
    return cache_dir() / "features"


class Embedded(NamedTuple):
    """Features of both responses of some pairs, `[n, d]` each."""

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """f(x, chosen) - f(x, rejected)."""
        return self.chosen - self.rejected

    @property
    def scale(self) -> np.ndarray:
        """Standard deviation of each feature over all responses: `[d]`."""
        return np.concatenate(self).std(0)


def embed(data: Mapping[str, Dataset], embedders: Sequence[Embedder], cache: Path | None = None) -> dict[str, Embedded]:
    """Features of every split's pairs; those of several embedders side by side."""
    prompts = [prompt for pairs in data.values() for prompt in pairs["prompt"]]
    texts = [response for c in ("chosen", "rejected") for pairs in data.values() for response in pairs[c]]
    # in one call, since a response that one user chose another may have rejected
    features = np.concatenate([embedder(prompts * 2, texts, cache) for embedder in embedders], axis=1)
    ends = np.cumsum([len(pairs) for pairs in data.values()])[:-1]
    parts = zip(*(np.split(half, ends) for half in np.split(features, 2)), strict=True)
    return {split: Embedded(*part) for split, part in zip(data, parts, strict=True)}
