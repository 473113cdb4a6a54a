"""A bundle for a node without a network: what it holds, and that it runs there."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from prlhf_kit.cli import main

LACKS = ("trl", "papermill", "tenacity")  # what the stand-in for a node does not have
OLD = "peft"  # too old there


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A stand-in for a node: a new virtual environment that sees what is installed here, but for what it lacks."""
    folder = tmp_path_factory.mktemp("node")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    packages = folder / "packages"
    packages.mkdir()
    listed = ["Package    Version", "---------- -------"]
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in (*LACKS, "prlhf-kit"):
            continue
        listed.append(f"{name}    {'0.1.0' if name == OLD else distribution.version}")
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if name != OLD and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "node.pth").write_text(str(packages))
    (folder / "list.txt").write_text("\n".join(listed))
    return python, folder / "list.txt"


def test_bundle_holds_what_a_node_lacks_and_runs_there(node, tmp_path, capsys):
    python, listed = node
    data = tmp_path / "small"
    assert main(["data", "prepare", "simulated", "-o", "pairs_per_user", "2", "--out", str(data)]) == 0
    options = ["--out", str(tmp_path / "bundle"), "--part-size", "1", "--has", str(listed), "--data", str(data)]
    assert main(["bundle", *options]) == 0
    parts = sorted((tmp_path / "bundle").glob("bundle.*"))
    assert len(parts) > 1
    assert f"{len(parts)} parts. Copy" in capsys.readouterr().out

    def bash(line):
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHON": str(python)}
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=env)

    done = bash("bash bundle/unpack.sh there")
    assert done.returncode == 0, done.stderr
    assert "trl 1.16.0 (the bundle's)\npeft " in done.stdout
    assert re.search(r"^torch 2\.13\.0\S* \(the node's\)$", done.stdout, re.MULTILINE)
    told = json.loads((tmp_path / "there" / "bundle.json").read_text())
    assert set(told["packages"]) == {*LACKS, OLD}  # the node's peft is too old
    assert (tmp_path / "there" / "data" / "small" / "card.json").is_file()
    done = bash(". there/env.sh && test -f there/benchmarks/gpu.py && $PYTHON -c 'import prlhf_kit.training.pdpo'")
    assert done.returncode == 0, done.stdout + done.stderr

    damaged = parts[0].read_bytes()
    parts[0].write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    done = bash("bash bundle/unpack.sh other")
    assert (done.returncode, (tmp_path / "other").exists()) == (1, False)
    assert "damaged: copy it again" in done.stderr


def test_bundle_refuses_what_it_cannot_pack(tmp_path, capsys):
    (tmp_path / "none.txt").write_text("nothing here\n")
    for out, options, message in (
        ("a", ["--has", str(tmp_path / "none.txt")], "names no package"),
        ("", [], "exists. Choose a new folder"),
        ("a", ["--data", str(tmp_path)], "not written by `prlhf data prepare`"),
    ):
        assert main(["bundle", "--out", str(tmp_path / out), *options]) == 2
        assert message in capsys.readouterr().err
