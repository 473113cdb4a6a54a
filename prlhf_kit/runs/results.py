"""`prlhf results`: the tables of a page, docs/results.md, from the records of runs. Its prose stays as it is.

A table stands between two comments, of which the first says what it shows:

    <!-- results: {runs: study-*, stage: 05_evaluation, columns: {seen users: accuracy/test_seen/*}} -->
    <!-- end -->
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.records import Number, how_made, numbers, records_of

TABLE = re.compile(r"^<!-- results: (?P<spec>.*?) -->\n(?P<table>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
FORM = "{runs: study-*, stage: 05_evaluation, columns: {seen users: accuracy/test_seen/*}}"
TOLD = ("date (UTC)", "seed", "commit", "model", "data")  # of how the runs were made


def fill(text: str, runs: Sequence[Path]) -> tuple[str, list[str]]:
    """The page `text` with its tables written anew, and the `runs:` of those that `runs` have nothing for, which stay.
    Raises `RunError` where a comment is not of this form, or a column matches no metric.

    A table has a row for each name that `*` stands for in a column's metrics; behind a mean stand the seeds' values.
    How its runs were made stands below it, once for all tables of the same runs.
    Folds (runs of one seed) and seeds are averaged, weighted by n: values and interval ends alike. Such an interval is
    at least as wide as a joint one."""
    kept, said = [], set()

    def written(found: re.Match[str]) -> str:
        spec = _spec(found["spec"])
        records = {
            run.name: record
            for run in runs
            if fnmatchcase(run.name, spec["runs"]) and (record := records_of(run).get(spec["stage"]))
        }
        records = {name: record for name, record in records.items() if record["status"] == "completed"}
        if not records:
            kept.append(spec["runs"])
            return found[0]
        told = _told(spec, records)
        below = "" if told in said else f"\n\n*{told}*"  # once for all tables of the same runs
        said.add(told)
        return f"<!-- results: {found['spec']} -->\n\n{_table(spec, records)}{below}\n\n<!-- end -->"

    return TABLE.sub(written, text), kept


def _spec(text: str) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(text)
        right = spec.keys() == {"runs", "stage", "columns"} and isinstance(spec["runs"] + spec["stage"], str)
        right = right and all(pattern.count("*") == 1 for pattern in spec["columns"].values())
    except (yaml.YAMLError, AttributeError, TypeError):
        right = False
    if not right:
        raise RunError(f"<!-- results: {text} --> is not as expected, which is for instance {FORM}.")
    return spec


def _table(spec: dict[str, Any], records: Mapping[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    found = []
    for label, pattern in spec["columns"].items():
        named = re.compile(re.escape(pattern).replace(r"\*", "(.*)"))
        for record in records.values():
            here = {"column": label, "seed": record["parameters"].get("seed")}
            matched = ((named.fullmatch(name), number) for name, number in numbers(record["metrics"]).items() if number)
            found += [here | {"row": match[1]} | asdict(number) for match, number in matched if match]
        if label not in {one["column"] for one in found}:
            raise RunError(f"{', '.join(records)}: no metric of {spec['stage']} is like {pattern}; see run.json.")
    by_seed = _averaged(pd.DataFrame(found).sort_values("seed", kind="stable"), ["column", "row", "seed"], "sum")
    overall = _averaged(by_seed, ["column", "row"], "max")
    seeds = list(by_seed.seed.unique()) if by_seed.seed.nunique() > 1 else []
    cells: dict[str, dict[str, str]] = {}  # heading -> row -> text
    for label in spec["columns"]:
        part = overall[overall.column == label]
        texts = {one.row: Number(one.value, one.low, one.high).with_interval() for one in part.itertuples()}
        if seeds:
            own = by_seed[by_seed.column == label].pivot(index="row", columns="seed", values="value")
            for row, values in own.reindex(columns=seeds).iterrows():
                texts[row] += f" ({', '.join('-' if np.isnan(one) else f'{one:.3f}' for one in values)})"
            label += ", mean"
        n = " to ".join(dict.fromkeys(f"{count:.0f}" for count in (part.n.min(), part.n.max()) if count > 0))
        cells[label + f" (n = {n})" * bool(n)] = texts
    lines = [["", *cells]]
    lines += [[row, *(column.get(row, "") for column in cells.values())] for row in overall.row.unique()]
    first, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, "|---" * len(lines[0]) + "|", *rest])


def _averaged(table: pd.DataFrame, by: list[str], count: str) -> pd.DataFrame:
    """Means of values and of intervals' ends for each of `by`, weighted by n, of which `count` is taken."""
    ends = ["value", "low", "high"]

    def mean(part: pd.DataFrame) -> pd.Series:
        means = np.average(part[ends], axis=0, weights=part.n.where(part.n > 0, 1))
        return pd.Series([*means, part.n.agg(count)], index=[*ends, "n"])

    return table.groupby(by, sort=False, dropna=False)[[*ends, "n"]].apply(mean).reset_index()


def _told(spec: dict[str, Any], records: Mapping[str, dict[str, Any]]) -> str:
    """How the runs of a table were made."""
    made = dict(how_made([{spec["stage"]: record} for record in records.values()]))
    made["date (UTC)"] = [time[:10] for time in made["date (UTC)"]]
    made["model"] = [str(record["parameters"].get("model", "")) for record in records.values()]
    known = {name: ", ".join(sorted(set(made.get(name, ())) - {""})) for name in TOLD}
    told = "; ".join(f"{name} {values}" for name, values in known.items() if values)
    return f"`{spec['runs']}`{f', {len(records)} runs' if len(records) > 1 else ''}: {told}"
