"""Long computations over many texts: kept on disk chunk by chunk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from prlhf_kit.record import unfinished


def fingerprint(*parts: object) -> str:
    """16 hex digits that tell inputs apart. `parts`: whatever JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def in_chunks(
    compute: Callable[[Sequence], np.ndarray], items: Sequence, folder: Path | None, size: int = 256, what: str = ""
) -> np.ndarray:
    """`compute(items)`, `[n, ...]`, `size` items at a time.

    Args:
        compute: called with some of the items, returns one row each.
        folder: where finished chunks lie; its name must tell these items and this computation from any other
            (`fingerprint`). None: nothing is kept.
        what: said by the progress bar.
    """
    found = []
    for start in tqdm(range(0, len(items), size), desc=what, disable=None, leave=False):
        file = None if folder is None else folder / f"{start:09d}.npy"
        if file is not None and file.exists():
            found.append(np.load(file))
            continue
        found.append(np.asarray(compute(items[start : start + size])))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = unfinished(file)
            with temporary.open("wb") as f:  # by a path, numpy would add .npy to its name
                np.save(f, found[-1])
            temporary.replace(file)
    return np.concatenate(found)
