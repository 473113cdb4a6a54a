"""`benchmarks/gpu.py` in miniature on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_every_part_runs_in_miniature_after_one_that_failed_and_a_kill(tmp_path):
    """The first attempt has a model without weights, and is killed when an answer is measured."""
    file, decode = tmp_path / "gpu.json", "decode/tiny/1/8"
    (tmp_path / "work" / "tiny_model").mkdir(parents=True)
    with gpu(tmp_path, "--parts", "reference", "decode", "learn", start_new_session=True) as process:
        while not (file.exists() and {PARTS[0], decode} <= set(json.loads(file.read_text())["parts"])):
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    first = json.loads(file.read_text())["parts"]
    assert first[PARTS[0]]["status"] == "failed"
    assert "can't load" in first[PARTS[0]]["error"]

    (tmp_path / "work" / "tiny_model").rmdir()
    with gpu(tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    found = json.loads(file.read_text())
    assert sorted(found["parts"]) == sorted(PARTS)
    assert {part["status"] for part in found["parts"].values()} == {"done"}
    assert found["parts"][decode] == first[decode]  # what was done is not measured again
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
    file.write_text(json.dumps(found))
    with gpu(tmp_path, stderr=subprocess.PIPE) as process:
        assert "other versions. Choose another --json" in process.communicate()[1]
    assert process.returncode == 2
