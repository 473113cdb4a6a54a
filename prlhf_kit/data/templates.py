"""Texts with named fields in files of their own: what judges are asked, and what a model is told of its reader."""

import hashlib
import re
import string
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from prlhf_kit.data.schema import SchemaError


class Template(NamedTuple):
    name: str
    sha256: str
    parts: list[tuple[str, str]]  # (role, text with fields as {name}), the system message first
    fields: set[str]


def read_template(template: str | Path, folder: str, known: Collection[str], alone: str = "user") -> Template:
    """A template of the kit (one of `known`, in the package's `folder`), or a text file of one's own.

    A line `---` parts a system message from a user message; a text without that line is one message, of the role
    `alone`. Raises `SchemaError`: no such file, or a field that is not just a name.
    """
    file = files("prlhf_kit") / folder / f"{template}.txt" if template in known else Path(template)
    try:
        text = file.read_text(encoding="utf-8")
        *system, last = re.split(r"^---[ \t]*\n", text, maxsplit=1, flags=re.MULTILINE)
        found = [f for f in string.Formatter().parse(text) if f[1] is not None]
    except (OSError, ValueError) as error:
        raise SchemaError(
            f"the template {str(template)!r} can't be read ({error}); expected {', '.join(known)}, or a text file "
            "with fields as {name}, in which a brace that is meant as such is written twice."
        ) from error
    for _, name, form, conversion in found:
        if form or conversion or not str(name).isidentifier():
            raise SchemaError(f"template {str(template)!r}, field {name!r}: expected names alone, as {{name}}.")
    parts = [("system", part.strip()) for part in system if part.strip()]
    parts.append(("user" if system else alone, last.strip()))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Template(Path(template).name, sha256, parts, {str(name) for _, name, _, _ in found})
