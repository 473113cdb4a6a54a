"""The runs of a sweep: every combination of parameters, checked against the notebooks before any of them starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prlhf_kit.runs.parameters import RunError, defaults, typed, unknown_parameter

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
        raise RunError(f"{path} can't be read: {error}") from error


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
