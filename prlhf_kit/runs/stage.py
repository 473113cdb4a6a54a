"""What a notebook leaves behind: its artefacts, and a record of everything that made them. It calls `begin` right after
its parameters and ends with `stage.finish(metrics)`, which writes `run.json`; the runner, `notebook.py`, adds to it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import resource
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from prlhf_kit.files import file_states, git_state, now, sha256, short_hash, versions, write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NOTEBOOK, PAGE = "notebook.ipynb", "notebook.html"  # as it was executed, and as a page
RECORD = "run.json"
SCHEMA = 1  # version of `run.json`; docs/runs.md has its fields and says when it changes
PREVIOUS = ".previous"
REQUIRED = {"schema": int, "status": str, "started": str}  # fields of a record
REQUIRED |= dict.fromkeys(("parameters", "metrics", "artifacts", "versions", "git"), dict)
# others, where a page or a table reads them
OPTIONAL: dict[str, Any] = {"inputs": dict, "provenance": dict, "notes": list, "error": str, "pid": int, "host": str}
OPTIONAL |= {"seconds": (int, float), "peak_memory_bytes": (int, float)}
PATIENCE = 30  # seconds to wait for another kernel that works in the same folder
UNDER_RUNNER = "PRLHF_KIT_RUNNER"  # the folder of the stage that a kernel of the runner works for


class StageError(RuntimeError):
    """A stage can't begin or end; the message says why and what to do."""


def read_record(stage_dir: Path) -> dict[str, Any] | None:
    """`run.json` of a stage. What is no record, one of a later schema than this version knows, or one that names files
    outside its folder counts as none. Status `died`: it says `running`, but its process, on this machine, is gone."""
    try:
        record = json.loads((stage_dir / RECORD).read_text(encoding="utf-8"))
        kinds = REQUIRED | {name: kind for name, kind in OPTIONAL.items() if name in record}
        named = [record["artifacts"], record.get("provenance", {}), record.get("inputs", {})]
        right = record["schema"] <= SCHEMA and all(isinstance(record[name], kind) for name, kind in kinds.items())
        right &= all(isinstance(entry, dict) for entries in named for entry in entries.values())
        right &= all({"kind", "caption"} <= entry.keys() for entry in record["artifacts"].values())
        right &= not any(Path(name).is_absolute() or ".." in Path(name).parts for names in named for name in names)
        if right and record["status"] == "running" and record.get("host") == platform.node():
            with contextlib.suppress(PermissionError):  # another user's
                os.kill(record["pid"], 0)
    except (ProcessLookupError, OverflowError):
        record["status"] = "died"
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, LookupError):
        return None
    return record if right else None


def begun(stage: str, parameters: dict[str, Any], made_from: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    """The record of a stage that begins in this process. `made_from`: see `inputs`."""
    return {
        "schema": SCHEMA,
        "stage": stage,
        "status": "running",
        "parameters": parameters,
        "inputs": made_from,
        "metrics": {},
        "artifacts": {},
        "versions": versions(),
        "git": git_state(),
        "pid": os.getpid(),
        "host": platform.node(),
        "started": now(),
    }


def hash_now(path: Path, entry: Mapping[str, str]) -> str | None:
    """SHA-256 of a recorded artefact as it is now; taken from the record where sizes and times agree, or it is gone."""
    if not path.exists() or entry.get("state") == short_hash(file_states(path)):
        return entry.get("sha256")
    return sha256(path)


def inputs(run_dir: Path, stages: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """What `stages` of a run left for later ones: stage -> data or model artefact -> SHA-256 of what is there now."""
    found = {stage: (read_record(run_dir / stage) or {}).get("artifacts", {}) for stage in stages}
    return {
        stage: {
            name: hash_now(run_dir / stage / name, entry)
            for name, entry in left.items()
            if entry["kind"] in ("data", "model")
        }
        for stage, left in found.items()
    }


def left_by(stage: str, run_dir: Path, name: str) -> Path:
    """Artefact `name` that a stage of a run left. Raises `StageError` where it isn't there, or not as it was left."""
    path, again = run_dir / stage / name, f"`prlhf run {stage} --run {run_dir.name}`"
    if not path.exists():
        raise StageError(f"{path} is missing, written by notebook {stage}: {again}, or set run_dir to another run.")
    entry = (read_record(run_dir / stage) or {}).get("artifacts", {}).get(name)
    if entry and hash_now(path, entry) != entry.get("sha256"):
        raise StageError(f"{path} was changed since notebook {stage} left it. Put it back, or make it again: {again}.")
    return path


def set_aside(stage_dir: Path) -> None:
    """Move a stage's folder to `.previous` and say so. Only a completed stage takes a completed one's place there."""
    completed = (read_record(stage_dir) or {}).get("status") == "completed"
    place = stage_dir.parent / PREVIOUS / (stage_dir.name if completed else f"{stage_dir.name}.unfinished")
    what = "the completed stage" if completed else "an attempt that did not complete"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    stage_dir.rename(place)
    print(f"{stage_dir.name}: {what} is replaced, and kept in {place}", flush=True)


_names: dict[str, list[str]] = {}  # stage -> its parameters, as found when it first began in this process


class Stage:
    """One notebook's folder in a run, and what has been recorded for it so far. Made by `begin`."""

    def __init__(self, name: str, run_dir: str | Path, parameters: dict[str, Any]):
        self.name, self.run_dir, self.parameters = name, Path(run_dir).resolve(), parameters
        self.dir = self.run_dir / name
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.provenance: dict[str, dict[str, str]] = {}
        self.notes: list[str] = []
        # one for all of this kernel, where the `begin` cell may be run again
        self._lock = FileLock(self.run_dir / f".{name}.kernel.lock", is_singleton=True)
        try:  # an earlier kernel whose runner was killed may take a moment to notice
            self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise StageError(f"another process is working in {self.dir}. Wait, or choose another run.") from None
        if os.environ.get(UNDER_RUNNER) == str(self.dir):
            self.record = read_record(self.dir) or {}
        else:  # in JupyterLab
            earlier = [p.name for p in self.run_dir.iterdir() if p.is_dir() and p.name[0] != "." and p.name < name]
            self.record = begun(name, parameters, inputs(self.run_dir, earlier))
            if (old := read_record(self.dir)) is not None:  # training resumes in a folder that was made from the same
                made_from, given = old.get("inputs", {}), json.loads(json.dumps(parameters))
                same = old["parameters"] | {"run_dir": None} == given | {"run_dir": None}
                if not same or inputs(self.run_dir, made_from) != made_from:
                    set_aside(self.dir)
            write_json(self.dir / RECORD, self.record)
        self.dir.mkdir(exist_ok=True)

    def input(self, stage: str, name: str) -> Path:
        """Artefact `name` that an earlier stage of the same run left; what that stage said of it (`uses`) is recorded.

        Raises:
            StageError: it isn't there, or not as that stage left it.
        """
        path = left_by(stage, self.run_dir, name)
        known = (read_record(self.run_dir / stage) or {}).get("provenance", {})
        self.provenance |= {name: known[name]} if name in known else {}
        return path

    def data(self, stage: str = "01_data_preparation", name: str = "data") -> Any:
        """The dataset that an earlier stage left, see `input`."""
        from datasets import load_from_disk  # takes seconds to import

        return load_from_disk(self.input(stage, name))

    def note(self, text: str) -> None:
        """Record a line that whoever ran the notebook should read: the runner shows it when the stage has completed."""
        self.notes.append(text)

    def uses(self, name: str, **what: str) -> None:
        """Record under `name` what the stage worked with: a dataset's `fingerprint`, or a model's `id` too."""
        self.provenance[name] = what

    def artifact(self, name: str, kind: str, caption: str) -> Path:
        """Path for an artefact (file or folder) that the caller writes; it is recorded with `kind` and `caption`."""
        self.artifacts[name] = {"kind": kind, "caption": caption}
        return self.dir / name

    def figure(
        self,
        figure: Figure,
        name: str,
        caption: str,
        table: pd.DataFrame | None = None,
        kind: str = "table",
        columns: Sequence[str] | None = None,
    ) -> None:
        """Save a figure as PNG and SVG, and show it: IPython shows pyplot's figures only, these are apart from it. The
        `table` that it was drawn from is saved, and shown below, as by `table`."""
        from IPython.core.interactiveshell import InteractiveShell  # these take seconds to import
        from IPython.display import Image, display

        from prlhf_kit.figures.style import save

        png, width = self.artifact(f"{name}.png", "figure", caption), int(90 * figure.get_figwidth())
        self.artifacts[png.name]["width"] = width  # CSS pixels: its texts are as large as the page's
        save(figure, png)
        if InteractiveShell.initialized():
            display(Image(png, width=width, alt=caption))
        if table is not None:
            self.table(table, name, caption, kind, columns)

    def table(
        self, table: pd.DataFrame, name: str, caption: str, kind: str = "table", columns: Sequence[str] | None = None
    ) -> None:
        """Save a table as parquet. One that is to be read is shown under its caption, or some `columns` of it.

        Args:
            kind: "shown" and "headline" are to be read: here, and on the run's index page, which begins with a
                "headline". "table" and "data" are not.
        """
        table.to_parquet(path := self.artifact(f"{name}.parquet", kind, caption))
        if columns is not None:
            self.artifacts[path.name]["columns"] = list(columns)
        if kind in ("shown", "headline"):
            from prlhf_kit.runs.tables import show

            show(table if columns is None else table[list(columns)], caption)

    def finish(self, metrics: Mapping[str, float | None] | None = None) -> None:
        """The closing cell: checks the artefacts, then writes the record.

        Args:
            metrics: flat, name -> number; None where a number could not be computed.
        """
        flat = {name: None if value is None else float(value) for name, value in (metrics or {}).items()}
        for name, value in flat.items():
            if value is not None and not math.isfinite(value):
                raise StageError(f"metric {name!r} is {value}; expected a finite number, or None.")
        for name, entry in self.artifacts.items():
            path = self.dir / name
            if not path.exists():
                raise StageError(f"artefact {path} was announced but not written. Write it before stage.finish.")
            entry |= {"sha256": sha256(path), "state": short_hash(file_states(path))}
        for path in list(self.dir.rglob("*-checkpoints/checkpoint-*")):  # a tracker's log beside them stays
            shutil.rmtree(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        record = self.record | {
            "status": "running" if "key" in self.record else "completed",  # the runner says how its notebook ended
            "metrics": flat,
            "artifacts": self.artifacts,
            "provenance": self.provenance,
            "notes": self.notes,
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "ended": now(),
            "peak_memory_bytes": peak,
        }
        write_json(self.dir / RECORD, record)
        self._lock.release(force=True)


def begin(name: str, run_dir: str | Path, namespace: Mapping[str, Any]) -> Stage:
    """Begin a notebook's stage. Call it in the cell after the parameters.

    Args:
        name: the notebook's stem, e.g. "03_pdpo_training".
        run_dir: the run's folder, e.g. "../papermill_runs/interactive".
        namespace: `globals()`; its plain values at this point are the resolved parameters.
    """
    # TRL 1.16 and PEFT 0.21 use names that transformers 6 will drop: nothing that a notebook's reader could mend
    warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
    plain = (bool, int, float, str, list, dict, type(None))
    found = [k for k, v in namespace.items() if k[0] != "_" and k not in ("In", "Out") and isinstance(v, plain)]
    # when the cell is run again in JupyterLab, later cells' variables are there too
    return Stage(name, run_dir, {key: namespace[key] for key in _names.setdefault(name, found)})
