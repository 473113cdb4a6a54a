"""A bundle for a node without a network: what it holds, and that it runs there."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from prlhf_kit.cli import main
from prlhf_kit.runs import bundle

LACKS = ("trl", "papermill")  # what the stand-in for a node does not have, and a package that is too old there
OLD = "peft"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A stand-in for a node: a new virtual environment that sees what is installed here, but for what it lacks."""
    folder = tmp_path_factory.mktemp("node")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    packages = folder / "packages"
    packages.mkdir()
    listed = ["Package    Version", "---------- -------"]
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in (*LACKS, "prlhf-kit", "pip", "setuptools"):
            continue
        listed.append(f"{name}    {'0.1.0' if name == OLD else distribution.version}")
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if name != OLD and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    Path(purelib.stdout.strip(), "node.pth").write_text(str(packages))
    (folder / "list.txt").write_text("\n".join(listed))
    return python, folder / "list.txt"


def unpack(bundle_dir, to, python):
    line = ["bash", str(bundle_dir / "unpack.sh"), str(to)]
    return subprocess.run(line, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "PYTHON": str(python)})


def test_bundle_holds_what_a_node_lacks_and_runs_there(node, tmp_path, capsys):
    python, listed = node
    data = tmp_path / "small"
    assert main(["data", "prepare", "simulated", "-o", "pairs_per_user", "2", "--out", str(data)]) == 0
    out = tmp_path / "bundle"
    options = ["--out", str(out), "--part-size", "1", "--has", str(listed), "--data", str(data)]
    assert main(["bundle", *options]) == 0
    parts = sorted(out.glob("bundle.*"))
    assert len(parts) > 1
    assert all(part.stat().st_size == 10**6 for part in parts[:-1])
    assert f"{len(parts)} parts. Copy" in capsys.readouterr().out

    done = unpack(out, tmp_path / "there", python)
    assert done.returncode == 0, done.stderr
    assert "trl 1.16.0 (the bundle's)" in done.stdout
    assert "torch 2.13.0" in done.stdout
    assert "(the node's)" in done.stdout
    told = json.loads((tmp_path / "there" / "bundle.json").read_text())
    assert set(told["packages"]) == {*LACKS, OLD}  # the node's peft is too old
    assert (tmp_path / "there" / "data" / "small" / "card.json").is_file()
    # the embedded model was converted here already; a node does that once, in a folder of its own
    cache = os.environ.get("PRLHF_KIT_CACHE", Path.home() / ".cache" / "prlhf_kit")
    run = f". there/env.sh && {python} there/benchmarks/gpu.py --tiny --parts decode --json gpu.json --work work"
    done = subprocess.run(
        ["bash", "-c", run.replace("&&", f"&& PRLHF_KIT_CACHE={cache}")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    part = json.loads((tmp_path / "gpu.json").read_text())["parts"]["decode/tiny/1/8"]
    assert part["commit"] == told["commit"]

    damaged = parts[0].read_bytes()
    parts[0].write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    done = unpack(out, tmp_path / "other", python)
    assert done.returncode == 1
    assert "damaged: copy it again" in done.stderr
    assert not (tmp_path / "other").exists()


def test_bundle_refuses_what_it_cannot_pack(tmp_path, capsys):
    def said(*options):
        assert main(["bundle", *options]) == 2
        return capsys.readouterr().err

    (tmp_path / "none.txt").write_text("nothing here\n")
    assert "names no package" in said("--out", str(tmp_path / "a"), "--has", str(tmp_path / "none.txt"))
    assert "exists. Choose a new folder" in said("--out", str(tmp_path))
    assert "not written by `prlhf data prepare`" in said("--out", str(tmp_path / "a"), "--data", str(tmp_path))


def test_packages_of_another_python_are_told_by_its_version():
    """A package that serves is left to the node with all that it needs; one that is too old is replaced."""
    here = {canonicalize_name(d.metadata["Name"]): Version(d.version) for d in importlib.metadata.distributions()}
    assert bundle.lacking(here, "3.12") == {}
    without = {name: version for name, version in here.items() if name not in ("pandas", "python-dateutil")}
    assert bundle.lacking(without, "3.12") == {name: str(here[name]) for name in ("pandas", "python-dateutil")}
    assert set(bundle.lacking(here | {"torch": Version("1.0")}, "3.12")) == {"torch"}
