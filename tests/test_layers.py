"""The order of the package's folders: what stands further down imports nothing from further up."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "prlhf_kit"
BELOW = {
    "files": set(),
    "data": {"files"},
    "models": {"files", "data"},
    "training": {"files", "data", "models"},
    "decoding": {"files", "data", "models"},
    "evaluation": {"files", "data", "models", "training", "decoding"},
    "figures": {"files", "data"},  # names of columns and labels
    "runs": {"files", "figures"},  # how a figure is saved
    "compare": {"files", "data", "models", "training", "decoding", "evaluation", "runs"},
    "commands": {"files", "data", "models", "evaluation", "figures", "runs"},
    "cli": {"files", "compare", "runs"},
}


def imports():
    """(module, what it imports of the package), lazily or not."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        types = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
        unused = {inner for node in types for inner in ast.walk(node)}  # at run time
        for node in set(ast.walk(tree)) - unused:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prlhf_kit"):
                for alias in node.names:
                    inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                    whole = inner.is_dir() or inner.with_suffix(".py").is_file()
                    assert whole or not alias.name.startswith("_"), f"{module} imports the private {alias.name}"
                    yield module, f"{node.module}.{alias.name}" if whole else node.module


def test_folders_import_downwards_only():
    for module, imported in imports():
        here, there = (name.split(".")[1] for name in (module, imported))
        assert here == there or there in BELOW[here], f"{module} imports {imported}"


def test_no_circles():
    graph = {}
    for module, imported in imports():
        if (PACKAGE.parent / Path(*imported.split("."))).with_suffix(".py").is_file():  # not a folder
            graph.setdefault(module, set()).add(imported)
    TopologicalSorter(graph).prepare()


def test_figures_and_runs_without_torch():
    paths = [path for folder in ("figures", "runs") for path in sorted((PACKAGE / folder).glob("[!_]*.py"))]
    modules = [f"prlhf_kit.{path.parent.name}.{path.stem}" for path in paths]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
