"""The runs of a sweep: every combination of parameters, checked against the notebooks before any of them starts."""

from __future__ import annotations

import ast
import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prlhf_kit.runs import parameters as runs

LONGEST = 80  # characters of a run's name; file systems take 255, a terminal's table fewer


@dataclass(frozen=True)
class Run:
    """A combination: a name that tells it apart, its parameters, and the same as `prlhf run -p` takes them."""

    name: str
    parameters: dict[str, Any]
    arguments: dict[str, str]


def checked(name: str, given: Any, known: Mapping[Path, Mapping[str, Any]]) -> tuple[Any, str]:
    """`given` in the type of the parameter's default, and the text that gives just that as `prlhf run -p NAME TEXT`.

    Args:
        known: the notebooks' parameters with their defaults.

    Raises:
        RunError: no notebook has the parameter, the value has the wrong type for one that has it, or no text gives it.
    """
    defaults = [(path, values[name]) for path, values in known.items() if name in values]
    if not defaults or name == "run_dir":
        names = {each: None for values in known.values() for each in values if each != "run_dir"}
        hint = " The run's folder is set with --run and --out." if name == "run_dir" else ""
        raise runs.RunError(str(runs.unknown_parameter(name, names, " / ".join(path.name for path in known))) + hint)
    value = runs.typed(name, given, defaults[0][1])
    try:
        kept = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        kept = False
    if not kept:
        raise runs.RunError(
            f"parameter {name!r} can't be {value!r}: a run's record could not hold it. Expected text, a finite number, "
            "True, False, None, a list of such, or a dict from texts to such."
        )
    plain = isinstance(value, str) and isinstance(defaults[0][1], str)
    text = value if plain else repr(value)
    if text.startswith("-"):
        if plain:
            raise runs.RunError(f"parameter {name!r} is {value!r}, but a text can't begin with '-' on a command line.")
        text = f" {text}"  # else argparse takes a number such as -1e-05 for an option
    for path, default in defaults:
        if repr(runs.typed(name, text, default)) != repr(value):
            raise runs.RunError(
                f"parameter {name!r} can't be {value!r} in {path.name}, where its default is {default!r}. "
                "Expected text, a number, True, False, None, a list or a dict that all notebooks read alike."
            )
    return value, text


def split(text: str, default: Any) -> list[str]:
    """The values of `--grid name=TEXT`, parted at commas outside brackets and quotes; of texts, outside double quotes.

    >>> split("0.1,0.5", 1.0), split("[1,2],[]", [0]), split('a, "b,c"', "x"), split("'a,b',c", None)
    (['0.1', '0.5'], ['[1,2]', '[]'], ['a', 'b,c'], ["'a,b'", 'c'])
    """
    if isinstance(default, str):
        return next(csv.reader([text], skipinitialspace=True))
    parts, part = [], ""
    for piece in text.split(","):
        part = f"{part},{piece}" if part else piece.strip()
        if not part.startswith(tuple("[{('\"")) or _whole(part):
            parts.append(part)
            part = ""
    return parts + ([part] if part else [])


def _whole(literal: str) -> bool:
    try:
        ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return False
    return True


def once(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parameters of `-p NAME VALUE ...`. Raises `RunError` where one is given twice."""
    if twice := [name for name, n in Counter(name for name, _ in given).items() if n > 1]:
        raise runs.RunError(
            f"parameter {twice[0]!r} is given twice by -p. Leave one out; several values are for `prlhf sweep --grid`."
        )
    return dict(given)


def read_list(path: Path) -> list[dict[str, Any]]:
    """The rows of `--list`: a YAML file that holds a list of mappings from parameters to values."""
    try:
        rows = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise runs.RunError(f"--list {path} can't be read: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise runs.RunError(
            f"--list {path} holds {type(rows).__name__}, expected a list of mappings, one a run:\n- {{beta: 0.1}}"
        )
    return rows


def combinations(
    notebooks: Sequence[Path],
    grids: Sequence[str] = (),
    rows: Sequence[Mapping[str, Any]] = (),
    seeds: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Every combination of the grids' values, the rows and the seeds 0 .. `seeds` - 1.

    Args:
        grids: "name=value,value,...", each read in the type of the parameter's default.
        rows: parameters that are set together.
        fixed: parameters of all runs.

    Raises:
        RunError: an unknown or doubly given parameter, a value of the wrong type, no or twice the same combination.
    """
    known = {path: runs.defaults(path) for path in notebooks}
    everything = {name: value for values in reversed(known.values()) for name, value in values.items()}
    axes: dict[str, list[Any]] = {}
    for grid in grids:
        name, sign, text = grid.partition("=")
        if not name or not sign or not text.strip():
            raise runs.RunError(f"--grid {grid!r} has no values. Expected --grid NAME=VALUE,VALUE, beta=0.1,0.5 say.")
        if name in axes:
            raise runs.RunError(f"--grid {name} is given twice; put all values into one: --grid {name}=VALUE,VALUE.")
        axes[name] = list(split(text, everything.get(name)))
    if seeds is not None:
        if "seed" not in everything:
            raise runs.RunError(f"--seeds: no parameter 'seed' in {' / '.join(path.name for path in notebooks)}.")
        axes["seed"] = [*axes.get("seed", []), *range(seeds)]
        if len(axes["seed"]) > seeds:
            raise runs.RunError("--seeds and --grid seed=... are both given; leave one out.")
    if not axes and not rows:
        raise runs.RunError("nothing to sweep over. Give --grid NAME=VALUE,VALUE, --list FILE or --seeds N.")
    constant = {name: checked(name, given, known) for name, given in (fixed or {}).items()}
    values = {name: [checked(name, given, known) for given in axis] for name, axis in axes.items()}
    listed = [{name: checked(str(name), given, known) for name, given in row.items()} for row in rows or [{}]]
    for row in listed:
        if twice := (row.keys() & axes.keys()) | ((row.keys() | axes.keys()) & constant.keys()):
            raise runs.RunError(f"parameter {min(twice)!r} is set twice, by two of --grid, --list, --seeds and -p.")
    chosen = [
        row | dict(zip(values, each, strict=True)) for row in listed for each in itertools.product(*values.values())
    ]
    exact = [json.dumps({name: value for name, (value, _) in row.items()}, sort_keys=True) for row in chosen]
    if repeated := [text for text, n in Counter(exact).items() if n > 1]:
        raise runs.RunError(f"the combination {repeated[0]} stands twice in the sweep; leave one out.")
    return [
        Run(
            name,
            {key: value for key, (value, _) in (row | constant).items()},
            {key: text for key, (_, text) in (constant | row).items()},
        )
        for name, row in zip(_names(chosen, exact), chosen, strict=True)
    ]


def _names(chosen: Sequence[Mapping[str, tuple[Any, str]]], exact: Sequence[str]) -> list[str]:
    """Names of folders, "beta=0.1,seed=2"; with a hash where that would be too long, ambiguous, or no file's name."""
    full = [",".join(f"{name}={_shown(value)}" for name, (value, _) in row.items()) or "defaults" for row in chosen]
    plain = [re.sub(r"[^\w.,=+-]+", "_", name, flags=re.ASCII) for name in full]
    often = Counter(name.casefold() for name in plain)
    return [
        safe
        if safe == name and len(safe) <= LONGEST and often[safe.casefold()] == 1
        else f"{safe[: LONGEST - 9].rstrip('_,=')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        for name, safe, text in zip(full, plain, exact, strict=True)
    ]


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, (list, dict)) else str(value)
