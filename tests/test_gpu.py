"""`benchmarks/gpu.py` in miniature on the CPU, and the bundle that takes it to a node without a network."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from prlhf_kit.cli import main
from prlhf_kit.runs import bundle

ROOT = Path(__file__).parent.parent
PARTS = [
    "reference/simulated/0",
    "learn/simulated/individual/0",
    "decode/tiny/1/8",
    "train/tiny/lora/32",
    "learn/simulated/dpo/0",
    "notebooks",
]


def gpu(folder, *options, **kwargs):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--minutes", "20", *options]
    where = ["--json", str(folder / "gpu.json"), "--work", str(folder / "work")]
    return subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True, **kwargs)


def test_every_part_runs_in_miniature(tmp_path):
    with gpu(tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert sorted(found["parts"]) == sorted(PARTS)
    assert {part["status"] for part in found["parts"].values()} == {"done"}
    for ratio in ("decode/tiny/1/8/pad_shared_vs_plain", "train/tiny/lora/32/alpha_1_vs_vanilla"):
        assert found["ratios"][ratio] > 0
    by_method = {row["method"]: row for row in found["learning"]}
    assert set(by_method) == {"length rule per user", "individual", "dpo"}
    personal, vanilla = by_method["individual"], by_method["dpo"]
    right = found["parts"]["learn/simulated/individual/0"]["right"]
    assert len(right) == personal["n"] == 8
    assert personal["mean"] == sum({"0": 0, "h": 0.5, "1": 1}[c] for c in right) / 8
    assert personal["over_dpo"] == pytest.approx(personal["mean"] - vanilla["mean"])
    # what was measured by other versions is not mixed with these
    found["machine"]["versions"]["torch"] = "1.0"
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    with gpu(tmp_path, stderr=subprocess.PIPE) as process:
        assert "other versions. Choose another --json" in process.communicate()[1]
    assert process.returncode == 2


def test_a_part_that_fails_ends_no_other_and_a_killed_run_goes_on(tmp_path):
    """The first attempt has a model without weights, and is killed after its third part."""
    file, parts = tmp_path / "gpu.json", ("--parts", "reference", "learn", "decode")
    (tmp_path / "work" / "tiny_model").mkdir(parents=True)
    decode = "decode/tiny/1/8"
    with gpu(tmp_path, *parts, start_new_session=True) as process:
        while not file.exists() or decode not in json.loads(file.read_text())["parts"]:
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    first = json.loads(file.read_text())["parts"]
    assert first["reference/simulated/0"]["status"] == "failed"
    assert "can't load" in first["reference/simulated/0"]["error"]
    assert first[decode]["status"] == "done"

    (tmp_path / "work" / "tiny_model").rmdir()
    with gpu(tmp_path, *parts) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    last = json.loads(file.read_text())["parts"]
    assert last[decode] == first[decode]  # what was done is not measured again
    assert {part["status"] for part in last.values()} == {"done"}


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
    options = ["--out", str(out), "--part-size", "1MB", "--has", str(listed), "--data", str(data)]
    assert main(["bundle", *options]) == 0
    parts = sorted(out.glob("bundle.*"))
    assert len(parts) > 1
    assert all(part.stat().st_size == 10**6 for part in parts[:-1])
    assert f"{len(parts)} parts in" in capsys.readouterr().out

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
    assert "expected megabytes" in said("--out", str(tmp_path / "a"), "--part-size", "huge")


def test_packages_of_another_python_are_told_by_its_version():
    """A package that serves is left to the node with all that it needs; one that is too old is replaced."""
    here = {canonicalize_name(d.metadata["Name"]): Version(d.version) for d in importlib.metadata.distributions()}
    assert bundle.lacking(here, "3.12") == {}
    without = {name: version for name, version in here.items() if name not in ("pandas", "python-dateutil")}
    assert bundle.lacking(without, "3.12") == {name: str(here[name]) for name in ("pandas", "python-dateutil")}
    assert set(bundle.lacking(here | {"torch": Version("1.0")}, "3.12")) == {"torch"}
