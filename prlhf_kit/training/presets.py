"""The papers' own settings by name. Each is a YAML file in `presets/` that says where every value comes from."""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from prlhf_kit.data.registry import require_known

FOLDER = Path(__file__).with_name("presets")
PRESETS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def preset(name: str, **changes: Any) -> dict[str, Any]:
    """Arguments of the class that the preset's first line names, as plain values.

        Recipe(**preset("prlhf_tldr", settings={"max_length": 400}))

    Args:
        name: one of `PRESETS`; `prlhf presets` prints them. `SchemaError` for others.
        changes: arguments in place of the preset's; dictionaries are merged with its own.
    """
    found = yaml.safe_load(text_of(name))
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = found[key] | value if both else value
    return found


def made_for(name: str) -> str:
    """Name of the class whose arguments a preset has."""
    return re.findall(r"\w+", text_of(name))[0]


def text_of(name: str) -> str:
    """A preset as it is written, with the source of each value."""
    require_known([name], PRESETS, "preset")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def command(args: argparse.Namespace) -> int:
    """`prlhf presets`: every preset with its first line, or one as it is written."""
    if args.name:
        print(text_of(args.name), end="")
    else:
        print("\n".join(f"{name}: {text_of(name).splitlines()[0].lstrip('# ')}" for name in PRESETS))
    return 0
