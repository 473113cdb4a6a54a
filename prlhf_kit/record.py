"""What a notebook leaves behind: its artefacts, and a record of everything that made them.

A notebook begins with `stage = begin("03_pdpo_training", run_dir, globals())` right after its parameters and ends with
`stage.finish(metrics)`. Under the runner (`runs.py`) the record completes `run.json`; in JupyterLab it is `run.json`.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

RESULT = "result.json"
RECORD = "run.json"
UNDER_RUNNER = "PRLHF_KIT_RUNNER"  # set by runs.py for the kernels that it starts
PACKAGES = (
    "prlhf_kit",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "papermill",
    "numpy",
    "pandas",
)


class StageError(RuntimeError):
    """A stage can't begin or end; the message says why and what to do."""


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as f:
        json.dump(content, f, indent=1, allow_nan=False)
        f.flush()
        os.fsync(f.fileno())
    Path(f.name).replace(path)


def read_record(stage_dir: Path) -> dict[str, Any] | None:
    """`run.json` of a stage, or None where there is none."""
    try:
        return json.loads((stage_dir / RECORD).read_text())
    except (OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit and whether the work tree differs from it; both None outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", *args], cwd=folder or Path(__file__).parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Stage:
    """One notebook's folder in a run, and what has been recorded for it so far. Made by `begin`."""

    def __init__(self, name: str, run_dir: str | Path, parameters: dict[str, Any]):
        self.name, self.run_dir, self.parameters = name, Path(run_dir).resolve(), parameters
        self.dir = self.run_dir / name
        self.dir.mkdir(parents=True, exist_ok=True)
        self.started = now()
        self.artifacts: dict[str, dict[str, str]] = {}
        self.provenance: dict[str, dict[str, str]] = {}
        self._lock = FileLock(self.dir / ".lock")
        try:  # an earlier kernel whose runner was killed may take a moment to notice
            self._lock.acquire(timeout=30)
        except Timeout:
            raise StageError(
                f"another process is working in {self.dir}. Wait for it or end it, or choose another run folder."
            ) from None
        (self.dir / RESULT).unlink(missing_ok=True)

    def input(self, stage: str, name: str) -> Path:
        """Artefact `name` that an earlier stage of the same run left. Raises `StageError` if it isn't there."""
        path = self.run_dir / stage / name
        if not path.exists():
            raise StageError(
                f"{path} is missing: it is written by notebook {stage}. Run that first "
                f"(`prlhf run notebooks/{stage}.ipynb --run {self.run_dir.name}`), or set run_dir to a run that has it."
            )
        return path

    def uses(self, name: str, thing: object) -> None:
        """Record a dataset's or a model's name and fingerprint under `name`."""
        from datasets import DatasetDict  # here, since torch and datasets take seconds to import

        from prlhf_kit import data, models

        if isinstance(thing, DatasetDict):
            self.provenance[name] = {"fingerprint": data.fingerprint(thing)}
        else:
            model: Any = thing
            self.provenance[name] = {"id": models.name_of(model), "fingerprint": models.fingerprint(model)}

    def artifact(self, name: str, kind: str, caption: str) -> Path:
        """Path for an artefact (file or folder) that the caller writes; it is recorded with `kind` and `caption`."""
        self.artifacts[name] = {"kind": kind, "caption": caption}
        return self.dir / name

    def figure(self, figure: Figure, name: str, caption: str) -> Figure:
        """Save a figure as PNG and SVG and return it for display."""
        figure.savefig(self.artifact(f"{name}.png", "figure", caption), dpi=150, bbox_inches="tight")
        figure.savefig(self.dir / f"{name}.svg", bbox_inches="tight")
        plt.close(figure)
        return figure

    def table(self, table: pd.DataFrame, name: str, caption: str, kind: str = "table") -> pd.DataFrame:
        """Save a table as parquet and return it for display. `kind="headline"` opens the run's index page."""
        table.to_parquet(self.artifact(f"{name}.parquet", kind, caption))
        return table

    def finish(self, metrics: Mapping[str, float] | None = None) -> None:
        """The closing cell: checks the artefacts, then writes the record.

        Args:
            metrics: flat, name -> number; None where a number could not be computed.
        """
        flat = {name: None if value is None else float(value) for name, value in (metrics or {}).items()}
        bad = [name for name, value in flat.items() if value is not None and not math.isfinite(value)]
        if bad:
            raise StageError(f"metric {bad[0]!r} is {flat[bad[0]]}; expected a finite number, or None.")
        for name, entry in self.artifacts.items():
            path = self.dir / name
            if not path.exists():
                raise StageError(f"artefact {path} was announced but not written.")
            if path.is_file():
                entry["sha256"] = sha256(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        record = {
            "stage": self.name,
            "parameters": self.parameters,
            "metrics": flat,
            "artifacts": self.artifacts,
            "versions": versions(),
            "git": git_state(),
            "provenance": self.provenance,
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "started": self.started,
            "ended": now(),
            "peak_memory_bytes": peak,
        }
        under_runner = os.environ.get(UNDER_RUNNER)
        write_json(
            self.dir / (RESULT if under_runner else RECORD),
            record if under_runner else record | {"status": "completed"},
        )
        self._lock.release()


def begin(name: str, run_dir: str | Path, namespace: Mapping[str, Any]) -> Stage:
    """Begin a notebook's stage. Call it in the cell after the parameters.

    Args:
        name: the notebook's stem, e.g. "03_pdpo_training".
        run_dir: the run's folder, e.g. "../papermill_runs/interactive".
        namespace: `globals()`; its plain values at this point are the resolved parameters.
    """
    plain = (bool, int, float, str, list, dict, type(None))
    hidden = {"In", "Out"}
    parameters = {
        key: value
        for key, value in namespace.items()
        if not key.startswith("_") and key not in hidden and isinstance(value, plain)
    }
    return Stage(name, run_dir, parameters)
