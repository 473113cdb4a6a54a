"""`prlhf runs gc`: what goes, and above all what stays."""

import json
import os
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from filelock import FileLock

from prlhf_kit import cli
from prlhf_kit.files import in_chunks, write_json
from prlhf_kit.models import logprobs
from prlhf_kit.runs import carry_over
from prlhf_kit.runs.cleaning import clean
from runs.test_records import write_run

USERS = [  # files and folders that are not the kit's
    ".env-2024",
    ".notes-2024",
    ".2024-notes",
    f".notes.txt-{2**22 + 1}",
    ".results/mine",
    "results/mine",
    ".hidden/mine",
    "notes.txt",
    "index.tmp",
    ".pdpo/mine",
    "plan-unfinished",
    "thesis-2024-unfinished/mine",
]
OLD_AGE = 2 * 3600
DEAD = 2**22 + 1  # larger than any process number of Linux


@pytest.fixture
def run(tmp_path):
    """A run of two completed stages, with something of every kind in them."""
    folder = write_run(tmp_path / "runs" / "r")
    write_run(tmp_path / "runs" / "r" / ".previous")
    stage = folder / "03_pdpo_training"
    for name in (
        "data/a.txt",
        "data/x-checkpoints/kept",
        "data/.b-unfinished/kept",
        "pdpo/weights",
        "pdpo-checkpoints/c-1/w",
        "persrm-stages/head-checkpoints/c-2/w",
        ".dpo-unfinished/w",
        f".train-{DEAD}-unfinished/w",
        f".run.json-{DEAD}-unfinished",
        f".rows.npy-{DEAD}-unfinished",
        f".log-{os.getpid()}-unfinished",
        f".test-{os.getpid()}-unfinished/w",
        *USERS,
    ):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text("0123456789")
    (folder / f".index.html-{DEAD}-unfinished").write_text("0123456789")
    (folder / "previous").mkdir()  # a user's
    (folder / "previous" / "mine").write_text("0123456789")
    for name in (".03_pdpo_training.lock", ".03_pdpo_training.kernel.lock", ".09_gone.lock"):
        (folder / name).touch()
    age(folder)
    return folder


def age(folder, seconds=OLD_AGE):
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then), follow_symlinks=False)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


GOES = {
    "03_pdpo_training/pdpo-checkpoints",
    "03_pdpo_training/persrm-stages/head-checkpoints",
    "03_pdpo_training/.dpo-unfinished",
    f"03_pdpo_training/.train-{DEAD}-unfinished",
    f"03_pdpo_training/.run.json-{DEAD}-unfinished",
    f"03_pdpo_training/.rows.npy-{DEAD}-unfinished",
    ".previous/01_data_preparation",
    ".previous/03_pdpo_training",
    f".index.html-{DEAD}-unfinished",
    ".03_pdpo_training.lock",
    ".03_pdpo_training.kernel.lock",
    ".09_gone.lock",
}


def test_what_goes_and_what_stays(run, capsys):
    before = files(run)
    found = list(clean(run.parent))
    assert {str(one.path.relative_to(run)) for one in found} == GOES
    assert cli.main(["runs", "gc", str(run.parent), "--dry-run"]) == 0
    assert "MB and 3 lock files that nobody holds can go; --delete does it" in capsys.readouterr().out
    assert files(run) == before  # nothing was deleted, and no lock file made
    size = sum(one.size for one in found)
    assert size == 70 + sum(p.stat().st_size for p in run.glob(".previous/*/*"))
    assert cli.main(["runs", "gc", str(run.parent), "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{size / 1e6:.1f} MB and 3 lock files that nobody holds: freed"
    assert before - files(run) == {name for name in before if any(f"{name}/".startswith(f"{top}/") for top in GOES)}
    assert not (run / ".previous").exists()
    assert all((run / "03_pdpo_training" / name).is_file() for name in USERS)
    assert (run / "previous" / "mine").is_file()
    assert list(clean(run)) == []


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_what_the_kit_leaves_half_written_is_found(run, monkeypatch):
    """The names that the writers themselves give, at the moment when they are killed."""
    stage = run / "03_pdpo_training"
    monkeypatch.setattr(os, "getpid", lambda: DEAD)
    monkeypatch.setattr(logprobs, "add_reference_logps", lambda pairs, *args: pairs)
    rows = datasets.Dataset.from_dict({"a": [1]})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        patch.setattr(Path, "rename", stop)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed, not interrupted
        for write in (
            lambda: write_json(stage / "votes.json", {}),
            lambda: in_chunks(np.asarray, [1.0], stage / "chunks"),
            lambda: logprobs.save_with_reference(rows, None, None, stage / "pairs"),
            lambda: carry_over._copy(stage, run / "05_evaluation", shutil.copy2),
        ):
            with pytest.raises(KeyboardInterrupt):
                write()
    age(run)
    found = {str(one.path.relative_to(run)) for one in clean(run, delete=True)} - GOES
    names = "03_pdpo_training/.votes.json", "03_pdpo_training/chunks/.000000000.npy", "03_pdpo_training/.pairs"
    assert found == {f"{name}-{DEAD}-unfinished" for name in (*names, ".05_evaluation")}


def test_a_killed_sweeps_copies_go_and_the_copies_that_it_needs_stay(run):
    sweep = run.parent
    (sweep / "seed1").mkdir()  # no run yet
    keeps = [".from/01_data/run.json", ".from/.mine-2024/x"]
    goes = [f".from/.02_reward-{DEAD}-unfinished/w", f"seed1/.01_data-{DEAD}-unfinished/w", f"r/.x-{DEAD}-unfinished/w"]
    for name in [*keeps, *goes, f".from/.03-{os.getpid()}-unfinished/w"]:
        (sweep / name).parent.mkdir(parents=True, exist_ok=True)
        (sweep / name).write_text("0123456789")
    age(sweep)
    others = {str((run / name).relative_to(sweep)) for name in GOES}
    for root in (sweep, sweep.parent):
        found = [str(one.path.relative_to(sweep)) for one in clean(root)]
        assert set(found) - others == {str(Path(name).parent) for name in goes}
        assert len(found) == len(set(found))
    list(clean(sweep.parent, delete=True))
    assert {name for name in files(sweep) if name.startswith(".from")} == {
        *keeps,
        f".from/.03-{os.getpid()}-unfinished/w",
    }
    assert not list((sweep / "seed1").iterdir())


def test_nothing_in_use_goes(run):
    others = {str(one.path.relative_to(run)) for one in clean(run) if "03_pdpo" not in str(one.path)}
    for lock in (".03_pdpo_training.lock", ".03_pdpo_training.kernel.lock"):
        with FileLock(run / lock):
            before = files(run)
            found = list(clean(run, delete=True))
            assert [one.path.name for one in found if one.left] == ["03_pdpo_training"]
            assert {name for name in files(run) if "03_pdpo" in name} >= {n for n in before if "03_pdpo" in n}
        taken = {str(one.path.relative_to(run)) for one in found if not one.left}
        assert taken == others
        others = set()  # they are gone now


@pytest.mark.parametrize("status", ["failed", "interrupted", "running", "unreadable"])
def test_a_stage_that_did_not_complete_keeps_what_it_resumes_from(run, status):
    path = run / "03_pdpo_training" / "run.json"
    more = {"error": "why"} if status in ("failed", "interrupted") else {"pid": DEAD}
    path.write_text(
        "{" if status == "unreadable" else json.dumps(json.loads(path.read_text()) | more | {"status": status})
    )
    list(clean(run, delete=True))
    assert (run / "03_pdpo_training" / "pdpo-checkpoints" / "c-1" / "w").exists()
    assert (run / ".previous" / "03_pdpo_training" / "run.json").exists()  # the last one that completed
    assert not (run / ".previous" / "01_data_preparation").exists()
    assert (run / "03_pdpo_training" / ".dpo-unfinished").exists() == (status == "unreadable")


def test_age(run):
    for wrong in ("-1", "nan"):
        assert cli.main(["runs", "gc", str(run), "--older-than", wrong, "--delete"]) == 2
    assert (run / "03_pdpo_training" / "pdpo-checkpoints").exists()
    assert {one.path.name for one in clean(run, older_than=1)} == {name for name in map(str, GOES) if ".lock" in name}
    (run / "03_pdpo_training" / ".dpo-unfinished" / "new").touch()  # somebody writes there
    left = {one.path.name for one in clean(run)}
    assert "pdpo-checkpoints" in left
    assert ".dpo-unfinished" not in left


def test_no_link_is_followed(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    stage = run / "03_pdpo_training"
    (stage / "linked-checkpoints").symlink_to(outside)
    (stage / "pdpo-checkpoints" / "link").symlink_to(outside)
    (stage / ".x-unfinished").symlink_to(outside)
    (run / ".previous" / "07_link").symlink_to(outside)
    other = write_run(outside / "r2")
    (other / "03_pdpo_training" / "pdpo-checkpoints").mkdir()
    (run.parent / "r2").symlink_to(other)
    (run / "08_stage").symlink_to(other / "03_pdpo_training")
    age(outside)
    age(run)
    (run / ".locked.lock").symlink_to(outside / "precious")
    found = list(clean(run.parent, delete=True))
    assert [one.path.name for one in found if one.left] == ["r2"]
    assert (outside / "precious").read_text() == "x"
    assert (other / "03_pdpo_training" / "pdpo-checkpoints").exists()
    assert not (stage / "pdpo-checkpoints").exists()
    assert (stage / "linked-checkpoints").is_symlink()


def test_what_cannot_be_deleted_is_told(run, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    assert cli.main(["runs", "gc", str(run), "--delete"]) == 74
    out, err = capsys.readouterr()
    assert "left " in err
    assert "pdpo-checkpoints" in err
    assert "Permission denied" in err
    assert (run / "03_pdpo_training" / "pdpo-checkpoints").exists()
    assert out.splitlines()[-1] == "0.0 MB and 3 lock files that nobody holds: freed"
