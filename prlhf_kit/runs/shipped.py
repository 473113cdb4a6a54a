"""Notebooks and configurations that come with the package: found by number or name, and copied to be changed."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from prlhf_kit.runs.parameters import RunError

PACKAGE = Path(__file__).parents[1]
FOLDERS = ("notebooks", "configs")  # in a checkout these are links to the folders at the top


def find_notebook(given: str) -> Path:
    """A notebook by its path, or by number or name ("03", "03_pdpo_training").

    Numbers and names are looked for in `notebooks` of the present folder, then in the package.

    Raises:
        RunError: no notebook has this number or name.
    """
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


def add_parser(commands: Any) -> None:
    """Register `prlhf notebooks`."""
    p = commands.add_parser(
        "notebooks",
        help="copy the kit's notebooks, to read and to change them",
        description="Copy the kit's notebooks and configurations into DIR/notebooks and DIR/configs. In DIR, "
        "`prlhf run 03` takes the copy then, elsewhere the kit's own.",
        epilog="examples:\n  prlhf notebooks\n  prlhf notebooks my_study",
    )
    p.add_argument("dir", nargs="?", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    p.set_defaults(action=copy_all)


def copy_all(args: argparse.Namespace) -> int:
    """`prlhf notebooks`: copy the kit's notebooks and configurations into a folder."""
    for name in FOLDERS:
        if (args.dir / name).exists():
            raise RunError(
                f"{args.dir / name} exists, and nothing was copied. Name another folder: prlhf notebooks DIR"
            )
    for name in FOLDERS:
        shutil.copytree(PACKAGE / name, args.dir / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        print(args.dir / name)
    return 0
