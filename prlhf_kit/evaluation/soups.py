"""Which pairs soups of adapters (`training.soups`) rank right, beside everybody's own adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prlhf_kit.data.registry import require_known
from prlhf_kit.data.select import split_by
from prlhf_kit.evaluation.accuracy import UNTRAINED, by_implicit_reward, likelier
from prlhf_kit.evaluation.intervals import long_table
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.training.soups import soup

OWN, ALIKE, OTHERS = "own adapter", "soup, all alike", "soup of the others"


def ranked_by_soup(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folders: Mapping[str, str | Path],
    pairs: Dataset,
    column: str = "user_id",
    batch_size: int = 16,
) -> pd.DataFrame:
    """The long table of which pairs are ranked right (1, 1/2 where equal, 0) by DPO's implicit reward of the adapter of
    their value of `column`, of the soup of all `folders`, and of that of the others; and by `model` itself, by its mean
    log-prob a token. Refuses (`SchemaError`) values without an adapter."""
    require_known(pairs[column], folders, column)
    tables = []
    for name, part in split_by(pairs, column, sorted(set(pairs[column]))).items():
        reference = score_pairs(model, tokenizer, part, batch_size=batch_size)
        right = {UNTRAINED: likelier(reference)}
        others = [other for other in folders if other != name]
        for method, names in {OWN: [name], ALIKE: [*folders], OTHERS: others}.items():
            if names:
                mixed = soup(model, {of: folders[of] for of in names})
                right[method] = by_implicit_reward(score_pairs(mixed, tokenizer, part, None, batch_size), reference)
                mixed.unload()
        tables.append(long_table(part, right))
    return pd.concat(tables, ignore_index=True)
