"""Speed and memory of fitting low-rank heads: the kit's against scipy's L-BFGS on the same objective, one core.

Data are drawn from the model itself: users whose own numbers are few, features with a decaying spectrum. The reference
is given the objective, its gradient and random starts, one fold and setting after the other, as a plain script would;
the kit compares strengths at the largest rank only.
With `--only-kit` for many users, where the reference would take hours.

    python benchmarks/heads.py --json heads.json
    python benchmarks/heads.py --only-kit --users 100000 --pairs 400000 --strengths 1 --sizes 4
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from prlhf_kit.training.heads import fit_heads


def simulated(pairs: int, users: int, d: int, rank: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Differences of features `[n, d]` and the number of each pair's user `[n]`."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(pairs, d)).astype(np.float32) / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    shared, own, who = rng.normal(size=(rank, d)), rng.normal(size=(users, rank)), rng.integers(users, size=pairs)
    odds = ((z @ shared.T.astype(np.float32)) * own[who]).sum(1)
    z[rng.random(pairs) > expit(odds)] *= -1
    return z, who


def plain(z: np.ndarray, who: np.ndarray, strength: float, pooled_strength: float, size: int) -> np.ndarray:
    """w_0, a_u and V, flat: the least of the objective of `fit_heads`, by scipy."""
    users, d = who.max() + 1, z.shape[1]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w0, own, shared = flat[:d], flat[d : -size * d].reshape(users, size), flat[-size * d :].reshape(size, d)
        seen, mine = z @ shared.T, own[who]
        odds = z @ w0 + (seen * mine).sum(1)
        penalty = pooled_strength * w0 @ w0 + strength * ((own**2).sum() + (shared**2).sum())
        error = -expit(-odds)[:, None]
        of_own = np.column_stack([np.bincount(who, (error * seen)[:, k], users) for k in range(size)])
        parts = (
            (z.T @ error)[:, 0] + pooled_strength * w0,
            of_own + strength * own,
            (error * mine).T @ z + strength * shared,
        )
        return np.logaddexp(0, -odds).sum() + penalty / 2, np.concatenate([part.ravel() for part in parts])

    start = np.random.default_rng(0).normal(scale=0.1, size=d + users * size + size * d)
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only-kit", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the ratios")
    args = parser.parse_args()
    z, who = simulated(args.pairs, args.users, args.features)
    prompts, scale = np.arange(args.pairs), z.std(0)
    start = time.perf_counter()
    found = fit_heads("low_rank", z, who, prompts, scale, args.strengths, args.sizes)
    ours = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"kit: {ours:.1f} s, peak memory {peak:.1f} GiB, r = {found.size}, strength {found.strength}")
    ratios = {}
    if not args.only_kit:
        start, scaled = time.perf_counter(), (z / found.scale).astype(np.float64)
        for train, _ in GroupKFold(5).split(z, groups=prompts):
            for strength in args.strengths:
                for size in args.sizes:
                    plain(scaled[train], who[train], strength, args.strengths[-1], size)
        theirs = time.perf_counter() - start
        print(f"scipy, all settings and folds: {theirs:.1f} s, {theirs / ours:.1f} times as long")
        ratios["low rank, scipy / kit"] = theirs / ours
    if args.json:
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        n = {"pairs": args.pairs, "users": args.users, "features": args.features, "runs": 1}
        args.json.write_text(json.dumps({"ratios": ratios, "machine": machine, "n": n}, indent=1))


if __name__ == "__main__":
    main()
