"""Which pairs soups of adapters (`training.soups`) rank right, beside everybody's own adapter."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prlhf_kit.evaluation.accuracy import by_implicit_reward
from prlhf_kit.evaluation.intervals import long_table
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.training.soups import soup

OWN, ALIKE, OTHERS = "own adapter", "soup, all alike", "soup of the others"


def ranked_by_soup(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folders: Mapping[str, str | Path],
    pairs: Dataset,
    reference: pd.DataFrame,
) -> pd.DataFrame:
    """The long table of which pairs are ranked right (1, 1/2 where equal, 0) by DPO's implicit reward
    (`by_implicit_reward`, which says what `reference` is) of the soup of all users' adapters; and, of users who have
    one in `folders`, by that of their own adapter and of the soup of the others'."""

    def ranked(method: str, names: list[str], asked: Dataset) -> pd.DataFrame:
        mixed = soup(model, {name: folders[name] for name in names})
        right = by_implicit_reward(score_pairs(mixed, tokenizer, asked), reference)
        mixed.unload()
        return long_table(asked, {method: right})

    tables, users = [ranked(ALIKE, [*folders], pairs)], np.array(pairs["user_id"])
    for user in sorted(folders.keys() & set(users)):
        own, others = pairs.select(np.flatnonzero(users == user)), [other for other in folders if other != user]
        tables.append(ranked(OWN, [user], own))
        if others:
            tables.append(ranked(OTHERS, others, own))
    return pd.concat(tables, ignore_index=True)
