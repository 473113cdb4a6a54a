"""What a reward model has learned: accuracy over its training, on own and on general pairs."""

from collections.abc import Iterable

import numpy as np
import pandas as pd


def trade_off(evaluations: pd.DataFrame, general: Iterable[str]) -> pd.DataFrame:
    """The evaluations of reward trainings (`step`, `set`, `prompt`, `right`, `pairs`) that bear on the trade-off as a
    long table, with `of` ("custom" or `general` sets) and `point` (share of the evaluations after the first, 0 to 1).

    `evaluations` has `strategy` and `domain`, whose model it is: other domains are left out. A list of responses has
    several pairs, which share its accuracy; `asked` names its prompt in its set."""
    of = np.where(evaluations.set.isin(list(general)), "general", "custom")
    table = evaluations.assign(of=of)[(of == "general") | (evaluations.set == evaluations.domain)]
    number = table.groupby(["strategy", "domain"]).step.rank(method="dense") - 1
    table["point"] = number / number.groupby([table.strategy, table.domain]).transform("max").clip(lower=1)
    table = table.assign(value=table.right / table.pairs, asked=table["set"] + "\n" + table.prompt)
    return table.loc[table.index.repeat(table.pairs)].reset_index(drop=True)
