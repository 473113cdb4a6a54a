"""Controls of a personalised training: the same pairs and compute, with the users taken away in different ways."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prlhf_kit.data.chat import with_user_text
from prlhf_kit.data.registry import require_known
from prlhf_kit.models.hub import load_model
from prlhf_kit.models.logprobs import REFERENCE, score_pairs
from prlhf_kit.models.saving import load_personalized
from prlhf_kit.models.user_index import UserIndex

EVERYONE = "everyone"
LABELS = {
    "dpo": "vanilla DPO",
    "dpo_text": "DPO with user text",
    "pooled": "pooled user",
    "random_users": "random users",
}
WITHOUT_USERS = ("dpo", "dpo_text")  # trained as plain DPO


def require_user_text(pairs: Dataset) -> None:
    """Raise `ValueError` where users say nothing that could be put into their prompts."""
    if silent := sum(not text for text in pairs["user_text"]):
        raise ValueError(f"{silent} of {len(pairs)} pairs have no user_text. Leave them, or user_text (dpo_text), out.")


def with_words(pairs: Dataset) -> Dataset:
    """`with_user_text` of training pairs: all users say something, and the reference was computed without it."""
    require_user_text(pairs)
    if not set(REFERENCE) <= set(pairs.column_names):
        raise ValueError("the reference does not see the users' words: call models.logprobs.add_reference_logps first.")
    return with_user_text(pairs)


def control_pairs(method: str, pairs: Dataset, seed: int = 0) -> tuple[Dataset, bool]:
    """What "pdpo" or a control of `LABELS` is trained on, and whether as P-DPO (else as DPO without users).

    "pooled": all pairs are those of one user, `EVERYONE`: soft tokens and both passes, but nothing personal.
    "random_users": the users' names are shuffled among the pairs: as many rows, trained as often, that mean nothing.
    "dpo_text": the users' words are in the prompts, but not in the reference's.
    """
    if method == "dpo_text":
        pairs = with_words(pairs)
    if method in ("pooled", "random_users"):
        shuffled = np.random.default_rng(seed).permutation(np.array(pairs["user_id"], dtype=object)).tolist()
        names = [EVERYONE] * len(pairs) if method == "pooled" else shuffled
        pairs = pairs.remove_columns("user_id").add_column("user_id", names)
    return pairs, method not in WITHOUT_USERS


@dataclass(frozen=True)
class Control:
    """A trained control. `index` is None where it knows no users."""

    label: str
    model: Any
    index: UserIndex | None = None

    def score(self, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, batch_size: int = 16) -> pd.DataFrame:
        """`score_pairs` with what this control knows of each pair's user."""
        if self.index is None:
            pairs = with_user_text(pairs) if self.label == LABELS["dpo_text"] else pairs
            return score_pairs(self.model, tokenizer, pairs, batch_size=batch_size)
        pooled = self.label == LABELS["pooled"]  # by name: a user may be called so, too
        rows = self.index.rows([EVERYONE] * len(pairs) if pooled else pairs["user_id"], unknown="generic")
        return score_pairs(self.model, tokenizer, pairs, rows, batch_size)


def load_control(folder: str | Path, base: str | PreTrainedModel) -> Control:
    """The control that was trained into `folder`, whose name is its own (else `SchemaError`). Changes `base`, if it
    is a model."""
    folder = Path(folder)
    require_known([folder.name], LABELS, "control named as the folder")
    label = LABELS[folder.name]
    if UserIndex.load(folder)[1]["user_model"] is not None:
        return Control(label, *load_personalized(folder, base))
    if Path(folder, "adapter_config.json").exists():
        base = load_model(base) if isinstance(base, str) else base
        return Control(label, PeftModel.from_pretrained(base, folder).eval())
    return Control(label, load_model(str(folder)))


def load_controls(folder: str | Path, base: str) -> Iterator[Control]:
    """The controls that lie in `folder`, one after the other, so that one at a time is in memory."""
    for path in filter(Path.exists, (Path(folder, name) for name in LABELS)):
        yield load_control(path, base)
