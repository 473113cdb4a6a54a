"""prlhf_kit: train, steer and measure language models that answer each person as that person prefers."""

import ast
import importlib
from pathlib import Path

# The names stand in `__init__.pyi`, where type checkers and editors look for them. They are imported on first use:
# torch and TRL take seconds, which `prlhf --help` should not.
_WHERE = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'prlhf_kit' has no attribute {name!r}")
    if _WHERE[name] == __name__:  # a folder of the package
        return importlib.import_module(f"prlhf_kit.{name}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
