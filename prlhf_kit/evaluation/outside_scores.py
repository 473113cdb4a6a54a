"""Rewards from outside the kit, for `prlhf bench`."""

import importlib
import json
from inspect import getsource
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.files import short_hash


class BenchError(ValueError):
    """A configuration or an outside scorer that can't be used; the message says what was expected."""


class Scorer:
    """Rewards from outside, of the `datasets` of which it knows a pair: NAME=FILE, JSON of {pair_id: [chosen score,
    rejected score]}, or NAME=MODULE:FUNCTION, which gives such scores, `[n, 2]`, of a `Dataset` of n pairs."""

    def __init__(self, text: str, whole: dict[str, DatasetDict]):
        self.name, _, place = text.partition("=")
        self.datasets = list(whole)
        try:
            if not Path(place).is_file():
                name, _, function = place.partition(":")
                module = importlib.import_module(name)
                self.made_from, self.score = getsource(module), getattr(module, function)
                return
            scores = {pair: (float(a), float(b)) for pair, (a, b) in json.loads(Path(place).read_text()).items()}
        except (ValueError, TypeError, AttributeError, ImportError, OSError) as error:
            form = "NAME=FILE, JSON of {pair_id: [chosen score, rejected score]}, or NAME=MODULE:FUNCTION"
            raise BenchError(f"--outside {text}: {error}. Expected {form}, its folder in PYTHONPATH.") from error
        ids = {name: {pair for pairs in sets.values() for pair in pairs["pair_id"]} for name, sets in whole.items()}
        if unknown := sorted(scores.keys() - set().union(*ids.values())):
            raise BenchError(f"{place} scores {len(unknown)} pairs of no dataset ({unknown[0]!r}). Leave them out.")
        self.datasets = [name for name, known in ids.items() if known & scores.keys()]
        self.made_from, missing = short_hash(scores), (np.nan, np.nan)
        self.score = lambda pairs: [scores.get(pair, missing) for pair in pairs["pair_id"]]

    def ranked(self, pairs: Dataset) -> np.ndarray:
        """Which pairs it ranks right: `[n]`."""
        found = np.asarray(self.score(pairs), float)
        right_form = found.shape == (len(pairs), 2)
        wrong = np.flatnonzero(~np.isfinite(found).all(1)) if right_form else range(len(pairs))
        if len(wrong):
            which = f"{len(wrong)} of {len(pairs)} pairs, the first {pairs['pair_id'][wrong[0]]!r}"
            raise BenchError(f"{self.name} has no two finite scores of {which}. Score every pair of each test split.")
        return ranked_right(*found.T)
