"""What a reward model has learned: accuracy over its training, on own and on general pairs."""

from collections.abc import Iterable

import numpy as np
import pandas as pd


def pair_by_pair(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of a reward training (`step`, `set`, `prompt`, `right`, `pairs`, ...) as a long table. A list of
    responses has several pairs, which share its accuracy; `asked` names its prompt in its set."""
    table = evaluations.assign(
        value=evaluations.right / evaluations.pairs, asked=evaluations["set"] + "\n" + evaluations["prompt"]
    )
    return table.loc[table.index.repeat(table.pairs)].reset_index(drop=True)


def trade_off(evaluations: pd.DataFrame, general: Iterable[str]) -> pd.DataFrame:
    """`pair_by_pair` of what bears on the trade-off: `of` ("custom" or `general` sets) and `point` (share of the
    evaluations after the first, 0 to 1). `evaluations` has `strategy` and `domain`, whose model it is: other domains
    are left out."""
    of = np.where(evaluations.set.isin(list(general)), "general", "custom")
    table = evaluations.assign(of=of)[(of == "general") | (evaluations.set == evaluations.domain)]
    number = table.groupby(["strategy", "domain"]).step.rank(method="dense") - 1
    table["point"] = number / number.groupby([table.strategy, table.domain]).transform("max").clip(lower=1)
    return pair_by_pair(table)
