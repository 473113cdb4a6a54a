"""Parameters of a notebook: their defaults, and given values in the types of these."""

import ast
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf_kit.files import nearest

PACKAGE = Path(__file__).parents[1]  # has `notebooks` and `configs`; in a checkout these are links

PLAIN = "text, a finite number, True, False, None, a list of such, or a dict from texts to such"  # what JSON holds


class RunError(RuntimeError):
    """A notebook can't be run; the message says why and what to do."""


def find_notebook(given: str) -> Path:
    """A notebook by its path, or by number or name ("03", "03_pdpo_training"), which are looked for in `notebooks` of
    the present folder, then in the package. Raises `RunError` where none has this number or name."""
    path = Path(given)
    if path.is_file() or len(path.parts) > 1:
        return path
    name = path.name.removesuffix(".ipynb")
    known = [*sorted(Path("notebooks").glob("*.ipynb")), *sorted((PACKAGE / "notebooks").glob("*.ipynb"))]
    for notebook in known:
        if name in (notebook.stem, notebook.stem.partition("_")[0]):
            return notebook
    names = ", ".join(dict.fromkeys(notebook.stem for notebook in known))
    raise RunError(f"there is no notebook {given}. Expected the path of an .ipynb file, or one of {names}.")


def read(notebook: Path, text: bytes | None = None) -> dict[str, Any]:
    """A notebook, or `text` in its place, as JSON with each cell's source in one piece. nbformat takes a second to
    import. Raises `RunError` where there is no such file, or it is no notebook of format 4."""
    if text is None and not notebook.is_file():
        raise RunError(f"there is no notebook {notebook}. Expected the path of an .ipynb file.")
    try:
        content = json.loads((notebook.read_bytes() if text is None else text).decode("utf-8"))
        for cell in content["cells"]:
            cell["source"] = "".join(cell["source"])
    except (ValueError, TypeError, KeyError) as error:
        said = f"{notebook} is no Jupyter notebook of format 4, as JupyterLab saves it"
        raise RunError(f"{said}: {type(error).__name__}: {error}") from None
    return content


def parameters_cell(notebook: Path, text: bytes | None = None) -> str:
    """The parameters of a notebook (see `read`) as they stand there: names, defaults, and what each means. Raises
    `RunError` where no cell is tagged `parameters`."""
    cells = read(notebook, text)["cells"]
    tagged = [cell["source"] for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if not tagged:
        where = "JupyterLab: property inspector, Cell Tags"
        raise RunError(f"{notebook} has no cell tagged 'parameters'. Tag the one that holds the defaults ({where}).")
    return "\n".join(tagged)


def defaults(notebook: Path, text: bytes | None = None) -> dict[str, Any]:
    """Parameters of a notebook and their default values. Raises `RunError` where it has none (`parameters_cell`), or
    JSON can't hold a default as it is."""
    values: dict[str, Any] = {}
    try:  # papermill's own inspection stumbles over "=" and "#" in a line
        cell = ast.parse(parameters_cell(notebook, text))
    except SyntaxError as error:
        said = f"the cell of parameters of {notebook} is no plain Python: {error}"
        raise RunError(f"{said}. Expected assignments; put magics (%, !) into another cell.") from None
    for node in cell.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        names = [ast.unparse(name) for name in (node.targets if isinstance(node, ast.Assign) else [node.target])]
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            value = ...  # which is not plain
        if not _plain(value):
            found = f"parameter {names[0]!r} of {notebook} has the default {ast.unparse(node.value)}"
            raise RunError(f"{found}; expected {PLAIN}.")
        values |= dict.fromkeys(names, value)
    return values


def _plain(value: Any) -> bool:
    """Whether JSON gives back the same value: what a run's record can hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


def typed(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of the parameter's default; text is read as that type. Text stays text ("00123" too).

    >>> typed("n", "3", 1), typed("user", "00123", "ann"), typed("on", "false", True), typed("x", "1", 0.5)
    (3, '00123', False, 1.0)
    """
    given = value
    if isinstance(value, str) and not isinstance(default, str):
        words = {"true": True, "false": False, "none": None, "null": None}
        with contextlib.suppress(ValueError, SyntaxError):
            value = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
    if not _plain(value):
        raise RunError(f"parameter {name!r} can't be {value!r}, which a run's record can't hold; expected {PLAIN}.")
    if default is None or (value is None and not isinstance(default, str)):
        return value
    kinds = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):  # True is an int, too
        raise RunError(f"parameter {name!r} is {given!r}, expected {type(default).__name__} such as {default!r}.")
    return float(value) if isinstance(default, float) else value


def resolve(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `notebook` with `parameters` in place of defaults, typed. Unknown names raise `RunError`."""
    values = defaults(notebook)
    for name, value in parameters.items():
        if name not in values:
            raise unknown_parameter(name, values, notebook.name)
        values[name] = typed(name, value, values[name])
    return values


def unknown_parameter(name: str, known: Mapping[str, Any], where: str) -> RunError:
    """The error for a parameter that does not exist, with the nearest name that does."""
    return RunError(f"{where} has no parameter {name!r}.{nearest(name, known)} It has: {', '.join(sorted(known))}.")


def earlier(notebook: Path, *kinds: str) -> list[str]:
    """Stages whose artefacts a notebook reads, as its metadata says: "needs", without which it can't run, and "uses",
    where they are there; without `kinds` both."""
    said = read(notebook).get("metadata", {}).get("prlhf_kit", {})
    return list(dict.fromkeys(stage for kind in kinds or ("needs", "uses") for stage in said.get(kind, ())))
