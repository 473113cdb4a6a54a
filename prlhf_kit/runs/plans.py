"""The stages of a sweep or a pipeline: what each needs, where it lies, and which of them are to run."""

from __future__ import annotations

import graphlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prlhf_kit.runs import grid
from prlhf_kit.runs.notebook import plan
from prlhf_kit.runs.parameters import RunError, defaults, needs_of, uses_of
from prlhf_kit.runs.stage import read_record, set_aside

SHARED = ".shared"  # in a sweep's folder: stages that several of its runs are made from
DONE = ("completed", "unchanged")


@dataclass
class Node:
    """A stage of a run. What it needs from other stages lies beside it in `run_dir`, or is linked from there."""

    name: str  # "stage/run"
    notebook: Path
    run_dir: Path
    parameters: dict[str, Any]
    after: list[str] = field(default_factory=list)  # names of nodes that complete before
    needs: list[str] = field(default_factory=list)  # stages that it is made from, besides those of its metadata
    status: str = "not run"
    seconds: float | None = None
    cell: int | None = None
    message: str | None = None

    @property
    def stage_dir(self) -> Path:
        return self.run_dir / self.notebook.stem

    @property
    def log(self) -> Path:
        return self.run_dir / f"{self.notebook.stem}.log"

    @property
    def job(self) -> str:
        """Its name for Snakemake, which reads braces, "=" and "," in a name as its own."""
        return quote(self.name, safe="/+").replace("%", "~")

    def end(self, status: str, message: str | None = None) -> None:
        """Take over what the stage's record says."""
        record = read_record(self.stage_dir) or {}
        self.status, self.message, self.seconds = status, message, record.get("seconds")
        if status == "failed" and (error := record.get("error")):
            cell, self.message = re.match(r"(?:cell (\d+) (?:raised )?)?(.*)", error).groups()  # type: ignore[union-attr]
            self.cell = None if cell is None else int(cell)


def link(place: Path, target: Path) -> None:
    """Make `place` a link to the stage's folder `target`, which need not be there yet."""
    address = os.path.relpath(target, place.parent)
    if place.is_symlink() and os.readlink(place) == address:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        set_aside(place)
    place.symlink_to(address)


def in_order(nodes: Iterable[Node]) -> list[Node]:
    """`nodes`, each after those that it needs. Raises `RunError` where they need each other in a circle."""
    by_name = {node.name: node for node in nodes}
    try:
        order = graphlib.TopologicalSorter({name: node.after for name, node in by_name.items()}).static_order()
        return [by_name[name] for name in order]
    except graphlib.CycleError as error:
        names = " <- ".join(name.partition("/")[0] for name in error.args[1])
        raise RunError(f"stages need each other in a circle: {names}.") from None


def look(nodes: Sequence[Node]) -> list[Node]:
    """Mark nodes that completed with the same inputs as unchanged; returns the others. `nodes` are in order."""
    fresh: set[str] = set()
    for node in nodes:
        if fresh.issuperset(node.after) and plan(node.notebook, node.run_dir, node.parameters, node.needs).done():
            fresh.add(node.name)
            node.end("unchanged")
    return [node for node in nodes if node.name not in fresh]


def plan_sweep(
    notebooks: Sequence[Path],
    rows: Sequence[Mapping[str, Any]],
    same: Mapping[str, Any],
    folder: Path,
    source: Path | None = None,
) -> tuple[dict[str, list[Node]], dict[Path, Path]]:
    """The stages of each run, and which folders are links to which.

    A stage has the parameters that its own notebook has, or one of those that it is made from. Where these are all of
    its run's, it lies in the run's folder; else it is the same in several runs, and lies in `.shared`.

    Args:
        rows: combinations of parameters, one a run.
        same: parameters of all runs.
        source: finished run whose stages the notebooks need.

    Raises:
        RunError: two notebooks have one name, or a stage that one needs can come from nowhere.
    """
    paths = {path.stem: path for path in notebooks}
    if len(paths) < len(notebooks):
        raise RunError(f"two notebooks have the same name, but a run has one folder for each: {', '.join(paths)}.")
    taken: dict[str, Path] = {}
    for path in notebooks:
        for stage in [*needs_of(path), *uses_of(path)]:
            record = read_record(source / stage) if source else None
            if stage in paths or (record is None and stage in uses_of(path)):
                continue
            if record is None or record["status"] != "completed":
                raise RunError(
                    f"{path.name} needs the stage {stage}, which "
                    + (f"is not completed in --from {source}." if source else "is not among the notebooks.")
                    + " Name its notebook as well, or start from a finished run that has it: --from RUN."
                )
            assert source
            taken[stage] = source / stage
    if source and not taken:
        raise RunError(f"--from {source}: no notebook needs a stage of it, as its metadata says (docs/runs.md).")
    above = {stem: [s for s in [*needs_of(path), *uses_of(path)] if s in paths] for stem, path in paths.items()}
    order = [node.name for node in in_order(Node(stem, paths[stem], folder, {}, above[stem]) for stem in paths)]
    deciding: dict[str, set[str]] = {}  # stage -> parameters
    made_from: dict[str, set[str]] = {}  # stage -> stages
    for stem in order:
        deciding[stem] = set(defaults(paths[stem])).union(*(deciding[other] for other in above[stem]))
        made_from[stem] = set(above[stem]).union(*(made_from[other] for other in above[stem]))
    nodes: dict[str, Node] = {}
    runs: dict[str, list[Node]] = {}
    links: dict[Path, Path] = {}
    for row in rows:
        names: dict[str, str] = {}
        for stem in order:
            own = {name: value for name, value in row.items() if name in deciding[stem]}
            run_dir = folder / grid.name_of(own) if len(own) == len(row) else folder / SHARED / grid.name_of(own)
            names[stem] = f"{stem}/{grid.name_of(own)}"
            known = defaults(paths[stem])
            given = {name: value for name, value in {**same, **own}.items() if name in known}
            after = [names[other] for other in above[stem]]
            node = nodes.setdefault(names[stem], Node(names[stem], paths[stem], run_dir, given, after))
            links |= {node.run_dir / stage: target for stage, target in taken.items()}
            links |= {node.run_dir / other: nodes[names[other]].stage_dir for other in made_from[stem]}
            links[folder / grid.name_of(row) / stem] = node.stage_dir
        runs[grid.name_of(row)] = [nodes[name] for name in names.values()]
    return runs, {place: target for place, target in links.items() if place != target}


def read_pipeline(file: Path, run_dir: Path, given: Sequence[tuple[str, str]] = ()) -> list[Node]:
    """The stages of a pipeline, each after what it needs. `given`: parameters in place of the file's."""
    content = grid.read_yaml(file)
    entries = content.get("stages") if isinstance(content, dict) and content.keys() == {"stages"} else None
    if not isinstance(entries, list) or not entries:
        raise RunError(f"{file} holds no list of stages. Expected:\nstages:\n- notebook: my.ipynb")
    paths: dict[str, Path] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "notebook" not in entry or entry.keys() - {"notebook", "parameters", "needs"}:
            raise RunError(
                f"stage {number} of {file} is {entry!r}, expected notebook, and perhaps parameters and needs."
            )
        path = file.parent / str(entry["notebook"])
        if paths.setdefault(path.stem, path) is not path:
            raise RunError(f"{file} names the stage {path.stem} twice, but a run has one folder for each.")
    known = {path: defaults(path) for path in paths.values()}
    everywhere = {name: grid.checked(name, value, known) for name, value in grid.once(given).items()}
    nodes = []
    for entry, (stem, path) in zip(entries, paths.items(), strict=True):
        parameters, needs = entry.get("parameters") or {}, entry.get("needs") or []
        if not isinstance(parameters, dict) or not isinstance(needs, list):
            raise RunError(f"{stem} of {file}: expected parameters as a mapping and needs as a list, found {entry!r}.")
        parameters = {str(name): grid.checked(str(name), v, {path: known[path]}) for name, v in parameters.items()}
        parameters |= {name: value for name, value in everywhere.items() if name in known[path]}
        after = dict.fromkeys([*needs_of(path), *map(str, needs), *(s for s in uses_of(path) if s in paths)])
        if unknown := [need for need in after if need not in paths]:
            raise RunError(f"{file}: {stem} needs {unknown[0]!r}, which is no stage of it. It has: {', '.join(paths)}.")
        run = run_dir.name
        nodes.append(Node(f"{stem}/{run}", path, run_dir, parameters, [f"{n}/{run}" for n in after], list(after)))
    return in_order(nodes)
