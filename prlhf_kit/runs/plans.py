"""The stages of a sweep or a pipeline: parameters, checked against the notebooks before any of them starts; what each
stage needs, where it lies, and which are to run."""

import graphlib
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from prlhf_kit.runs.notebook import plan
from prlhf_kit.runs.parameters import RunError, defaults, earlier, typed, unknown_parameter
from prlhf_kit.runs.stage import read_record, set_aside

SHARED = ".shared"  # in a sweep's folder: stages that several of its runs are made from
DONE = ("completed", "unchanged")
LONGEST = 80  # characters of a run's name; file systems take 255, a terminal's table fewer
Known = Mapping[Path, Mapping[str, Any]]  # notebook -> its parameters with their defaults
Row = dict[str, Any]  # parameters that are set together


def checked(given: Mapping[str, Any], known: Known) -> Row:
    """`given` in the types that the parameters have in the notebooks. Raises `RunError` where one can't have it."""
    found = {}
    for name, value in given.items():
        having = [values[name] for values in known.values() if name in values]
        if not having or name == "run_dir":
            names = {each: None for values in known.values() for each in values if each != "run_dir"}
            hint = " The run's folder is set with --run and --out." if name == "run_dir" else ""
            raise RunError(str(unknown_parameter(name, names, " / ".join(path.name for path in known))) + hint)
        for default in reversed(having):  # it must fit all; the first one's type holds
            found[name] = typed(name, value, default)
    return found


def once(given: Iterable[tuple[str, str]], file: Path | None = None) -> dict[str, Any]:
    """The parameters of `-p NAME VALUE ...`, over those of `-f FILE` (YAML). Raises `RunError` where one is given twice
    by -p."""
    given, read = list(given), read_yaml(file) or {} if file else {}
    if not isinstance(read, dict):
        raise RunError(f"-f {file} holds no mapping of parameters. Expected lines such as\nalpha: 0.7")
    if twice := [name for name, n in Counter(name for name, _ in given).items() if n > 1]:
        raise RunError(f"parameter {twice[0]!r} is given twice by -p. Several values are for `prlhf sweep --grid`.")
    return {str(name): value for name, value in read.items()} | dict(given)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises `RunError` where it can't be read."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} can't be read: {error}. Expected a file of YAML.") from error


def split(text: str, default: Any) -> list[Any]:
    """The values of `--grid name=TEXT`: a list of YAML; of a parameter that is a text, all of them are texts.

    >>> split("0.1,1e-5", 1.0), split("[1,2],[]", [0]), split('a, "b,c", 00123', "x")
    ([0.1, '1e-5'], [[1, 2], []], ['a', 'b,c', '00123'])
    """
    try:
        return yaml.load(f"[{text}]", yaml.BaseLoader if isinstance(default, str) else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RunError(f"--grid: {text!r} are no values that YAML can read as a list: {error}") from None


def combinations(
    notebooks: Sequence[Path],
    grids: Sequence[str] = (),
    file: Path | None = None,
    seeds: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> tuple[list[Row], Row]:
    """Every combination of the `grids`' values ("name=value,value"), the rows of `file` (YAML, a list of mappings) and
    the seeds 0 .. `seeds` - 1; and what is `fixed`, typed. Raises `RunError` for what is unknown, mistyped or twice."""
    known = {path: defaults(path) for path in notebooks}
    everything = {name: value for values in reversed(known.values()) for name, value in values.items()}
    axes: dict[str, list[Any]] = {}
    for grid in [*grids, *([] if seeds is None else [f"seed={','.join(map(str, range(seeds)))}"])]:
        name, _, text = grid.partition("=")
        if not text.strip():
            raise RunError(f"--grid {grid!r} has no values. Expected --grid NAME=VALUE,VALUE, beta=0.1,0.5 say.")
        if name in axes:
            raise RunError(f"{name} is given twice, by --grid or --seeds; put all values into one --grid.")
        axes[name] = [checked({name: value}, known)[name] for value in split(text, everything.get(name))]
    rows = read_yaml(file) if file else [{}]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"--list {file} holds no list of mappings, one a run. Expected:\n- {{beta: 0.1}}")
    if not axes and not file:
        raise RunError("nothing to sweep over. Give --grid NAME=VALUE,VALUE, --list FILE or --seeds N.")
    same = checked(fixed or {}, known)
    rows = [checked({str(name): value for name, value in row.items()}, known) for row in rows]
    for row in rows:
        if twice := (row.keys() & axes.keys()) | ((row.keys() | axes.keys()) & same.keys()):
            raise RunError(f"parameter {min(twice)!r} is set twice, by two of --grid, --list, --seeds and -p.")
    found = [row | dict(zip(axes, each, strict=True)) for row in rows for each in itertools.product(*axes.values())]
    if repeated := [text for text, n in Counter(json.dumps(row, sort_keys=True) for row in found).items() if n > 1]:
        raise RunError(f"the combination {repeated[0]} stands twice in the sweep; leave one out.")
    return found, same


def name_of(row: Mapping[str, Any]) -> str:
    """The name of a combination's folder, with a hash where that would be too long, or can't be read back.

    No "=" and no ",": Snakemake reads them on the way to a cluster as its own.

    >>> name_of({"beta": 0.1, "user_model": "low_rank", "seed": 2}), name_of({"user": "a b"}), name_of({})
    ('beta~0.1_user_model~low_rank_seed~2', 'user~a_b-6e69912f', 'all')
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
    plain = {name: re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII) for name, text in texts.items()}
    full = "_".join(f"{name}~{text}" for name, text in plain.items()) or "all"
    if plain == texts and full == full.casefold() and len(full) <= LONGEST:
        return full
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]
    return f"{full[: LONGEST - 9]}-{digest}"


@dataclass
class Node:
    """A stage of a run. What it needs from other stages lies beside it in `run_dir`, or is linked from there."""

    name: str  # "stage/run"
    notebook: Path
    run_dir: Path
    parameters: dict[str, Any]
    after: list[str] = field(default_factory=list)  # names of nodes that complete before
    status: str = "not run"
    seconds: float | None = None
    cell: int | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        self.stage, _, self.run = self.name.partition("/")
        self.stage_dir, self.log = self.run_dir / self.stage, self.run_dir / f"{self.stage}.log"
        # its name for Snakemake, which reads braces, "=" and "," in a name as its own
        self.job = quote(self.name, safe="/+").replace("%", "~")

    def end(self, status: str, record: Mapping[str, Any], message: str | None = None) -> None:
        """Take over what the stage's record says."""
        self.status, self.message, self.seconds = status, message, record.get("seconds")
        if status == "failed" and (error := record.get("error")):
            cell, self.message = re.match(r"(?:cell (\d+) (?:raised )?)?(.*)", error).groups()  # type: ignore[union-attr]
            self.cell = None if cell is None else int(cell)


def link(place: Path, target: Path) -> None:
    """Make `place` a link to the stage's folder `target`, which need not be there yet."""
    address = os.path.relpath(target, place.parent)
    if place.is_symlink() and os.readlink(place) == address:
        return
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        set_aside(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(address)


def _above(notebooks: Mapping[str, Path]) -> dict[str, list[str]]:
    """Stage -> those of the stages that its notebook reads, in an order in which they can run. Raises `RunError` where
    they need each other in a circle."""
    above = {stem: [stage for stage in earlier(path) if stage in notebooks] for stem, path in notebooks.items()}
    try:
        return {stem: above[stem] for stem in graphlib.TopologicalSorter(above).static_order()}
    except graphlib.CycleError as error:
        circle = " <- ".join(error.args[1])
        raise RunError(f"stages need each other in a circle: {circle}. Fix it in a notebook's metadata.") from None


def look(nodes: Sequence[Node]) -> list[Node]:
    """Mark nodes that completed with the same inputs as unchanged; returns the others. `nodes` are in order."""
    fresh: set[str] = set()
    for node in nodes:
        planned = plan(node.notebook, node.run_dir, node.parameters)
        if planned.done and fresh.issuperset(node.after):
            fresh.add(node.name)
            node.end("unchanged", planned.done)
    return [node for node in nodes if node.name not in fresh]


def plan_sweep(
    notebooks: Sequence[Path],
    rows: Sequence[Mapping[str, Any]],
    same: Mapping[str, Any],
    folder: Path,
    source: Path | None = None,
) -> tuple[dict[str, list[Node]], dict[Path, Path]]:
    """The stages of each run, and which folders are links to which. `rows` are the combinations of parameters, one a
    run, `same` is set in all runs, `source` a finished run whose stages the notebooks need.

    A stage has the parameters that its own notebook has, or one of those that it is made from. Where these are all of
    its run's, it lies in the run's folder; else it is the same in several runs, and lies in `.shared`."""
    paths = {path.stem: path for path in notebooks}
    if len(paths) < len(notebooks):
        raise RunError(
            f"two notebooks have the same name, but a run has a folder for each: {', '.join(paths)}. Rename one."
        )
    taken: dict[str, Path] = {}
    for path in paths.values():
        for stage in set(earlier(path)) - paths.keys():
            record = read_record(source / stage) if source else None
            if source and record and record["status"] == "completed":
                taken[stage] = source / stage
            elif record or stage in earlier(path, "needs"):
                lacks = f"is not completed in --from {source}" if source else "is not among the notebooks"
                ways = "Name its notebook as well, or start from a finished run that has it: --from RUN"
                raise RunError(f"{path.name} needs the stage {stage}, which {lacks}. {ways}.")
    if source and not taken:
        raise RunError(
            f"--from {source}: no notebook needs a stage of it, as its metadata says (docs/runs.md). Leave it out."
        )
    above = _above(paths)
    known = {stem: defaults(path) for stem, path in paths.items()}
    deciding: dict[str, set[str]] = {}  # stage -> parameters
    made_from: dict[str, set[str]] = {}  # stage -> stages
    for stem, others in above.items():
        deciding[stem] = set(known[stem]).union(*(deciding[other] for other in others))
        made_from[stem] = set(others).union(*(made_from[other] for other in others))
    nodes: dict[str, Node] = {}
    runs: dict[str, list[Node]] = {}
    links: dict[Path, Path] = {}
    for row in rows:
        run = name_of(row)
        mine: dict[str, Node] = {}  # stage -> node
        for stem, others in above.items():
            own = {name: value for name, value in row.items() if name in deciding[stem]}
            name = name_of(own)
            place = folder / name if len(own) == len(row) else folder / SHARED / name
            given = {key: value for key, value in {**same, **own}.items() if key in known[stem]}
            node = Node(f"{stem}/{name}", paths[stem], place, given, [mine[other].name for other in others])
            mine[stem] = node = nodes.setdefault(node.name, node)
            links |= {node.run_dir / stage: target for stage, target in taken.items()}
            links |= {node.run_dir / other: mine[other].stage_dir for other in made_from[stem]}
            links[folder / run / stem] = node.stage_dir
        runs[run] = list(mine.values())
    return runs, {place: target for place, target in links.items() if place != target}


def read_pipeline(file: Path, run_dir: Path, given: Sequence[tuple[str, str]] = ()) -> list[Node]:
    """The stages of a pipeline, each after what it needs. `given`: parameters in place of the file's."""
    content = read_yaml(file)
    entries = content.get("stages") if isinstance(content, dict) and content.keys() == {"stages"} else None
    if not isinstance(entries, list) or not entries:
        raise RunError(f"{file} holds no list of stages. Expected:\nstages:\n- notebook: my.ipynb")
    paths: dict[str, Path] = {}
    own: dict[str, Any] = {}  # stage -> its parameters in the file
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "notebook" not in entry or entry.keys() - {"notebook", "parameters"}:
            raise RunError(f"stage {number} of {file} is {entry!r}, expected notebook, and perhaps parameters.")
        path = file.parent / str(entry["notebook"])
        if path.stem in paths:
            raise RunError(f"{file} names the stage {path.stem} twice, but a run has a folder for each. Leave one out.")
        paths[path.stem], own[path.stem] = path, entry.get("parameters") or {}
        if not isinstance(own[path.stem], dict):
            raise RunError(f"{path.stem} of {file}: expected parameters as a mapping, found {own[path.stem]!r}.")
    known = {path: defaults(path) for path in paths.values()}
    everywhere = checked(once(given), known)
    for stem, path in paths.items():
        if unknown := [need for need in earlier(path, "needs") if need not in paths]:
            raise RunError(f"{file}: {stem} needs {unknown[0]!r}, which it has not. Add it to {', '.join(paths)}.")
    nodes = []
    for stem, above in _above(paths).items():
        path, after = paths[stem], [f"{stage}/{run_dir.name}" for stage in above]
        parameters = checked({str(name): value for name, value in own[stem].items()}, {path: known[path]})
        parameters |= {name: value for name, value in everywhere.items() if name in known[path]}
        nodes.append(Node(f"{stem}/{run_dir.name}", path, run_dir, parameters, after))
    return nodes
