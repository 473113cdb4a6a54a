"""Experiment trackers: what is passed on, what is refused at once, and which of a tracker's runs the record names."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TrackioCallback, WandbCallback

from prlhf_kit.models.logprobs import add_reference_logps
from prlhf_kit.runs.records import validate
from prlhf_kit.runs.stage import begin, read_record
from prlhf_kit.training.persrm import PersRMRecipe
from prlhf_kit.training.recipe import Recipe, build_trainer, train
from prlhf_kit.training.resume import fit
from prlhf_kit.training.reward_stages import RewardRecipe
from prlhf_kit.training.tracking import check_trackers, run_of, tracked

DDP = Path(__file__).parent.parent / "configs" / "ddp.yaml"


@pytest.fixture
def stage(tmp_path):
    return begin("03_pdpo_training", tmp_path / "demo", {"seed": 0, "report_to": "tensorboard"})


@pytest.fixture
def recipe(make_tiny, tokenizer, pairs, stage, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    model, folder = make_tiny(), stage.dir.parent.parent
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    add_reference_logps(pairs, model, tokenizer).save_to_disk(folder / "pairs")
    return Recipe(
        model=str(folder / "base"), pairs=str(folder / "pairs"), out=str(stage.dir / "pdpo"),
        user_model_options={"num_tokens": 3}, adapter={"target_modules": ["q_proj", "v_proj"]},
        settings={
            "use_cpu": True, "report_to": "tensorboard", "per_device_train_batch_size": 4, "max_steps": 3, "seed": 0,
            "logging_steps": 1, "save_steps": 1,
        },
    )  # fmt: skip


def scalars(folder, name="train/loss"):
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_gets_the_losses_and_the_record_names_its_folder(recipe, stage):
    log = train(recipe).dropna(subset="loss")
    stage.artifact("pdpo", "model", "A model")
    stage.finish()
    record = read_record(stage.dir)
    validate(record)
    [run] = record["trackers"]["pdpo"]
    assert run == {"tracker": "tensorboard", "run": str(stage.dir / "pdpo-tensorboard"), "url": None}
    assert scalars(run["run"]) == pytest.approx(dict(zip(log.step, log.loss, strict=True)), rel=1e-5)


def test_a_resumed_training_goes_on_in_the_same_folder(recipe, stage):
    class Killed(Exception):
        pass

    trainer = build_trainer(recipe)
    step, steps = trainer.training_step, []

    def killed(*args, **kwargs):
        steps.append(step(*args, **kwargs))
        if len(steps) == 2:
            raise Killed
        return steps[-1]

    trainer.training_step = killed
    with pytest.raises(Killed):
        fit(trainer, recipe.out)
    note = stage.dir / "pdpo-trackers.json"
    begun = json.loads(note.read_text())  # known of a training that failed, too
    train(recipe)
    assert json.loads(note.read_text()) == begun
    assert set(scalars(begun[0]["run"])) == {1, 2, 3}


def test_several_processes_are_one_run(recipe, stage):
    settings = recipe.settings | {"per_device_train_batch_size": 2}
    train(replace(recipe, settings=settings), ["--config_file", str(DDP), "--num_processes", "2"])
    [run] = json.loads((stage.dir / "pdpo-trackers.json").read_text())
    assert set(scalars(run["run"])) == {1, 2, 3}
    assert len(list(Path(run["run"]).glob("events.*"))) == 1


def test_none_leaves_nothing(recipe, stage):
    train(replace(recipe, settings=recipe.settings | {"report_to": "none"}))
    assert {path.name for path in stage.dir.iterdir()} == {"pdpo", "pdpo-checkpoints", "run.json"}


def test_runs_are_named_by_their_folder_unless_the_settings_name_them(recipe):
    for given, name in {None: "demo/03_pdpo_training/pdpo", "mine": "mine"}.items():
        trainer = build_trainer(replace(recipe, settings=recipe.settings | {"run_name": given}))
        with tracked(trainer, Path(recipe.out)):
            assert trainer.args.run_name == name


def test_bad_and_missing_trackers_are_refused_before_any_work():
    missing = next(name for name in ("wandb", "trackio", "clearml") if importlib.util.find_spec(name) is None)
    for report_to, message in {
        "tensorbord": "there is no tracker 'tensorbord'. Did you mean 'tensorboard'",
        missing: f"can't be used here: .* requires {missing} to be installed",
    }.items():
        settings = {"report_to": report_to}
        for make in (
            lambda s=settings: Recipe("m", "p", "o", settings=s),
            lambda s=settings: RewardRecipe("m", "p", "o", settings=s),
            lambda s=settings: PersRMRecipe("m", "o", backbone=s),
            lambda s=settings: PersRMRecipe("m", "o", head=s),
        ):
            with pytest.raises(ValueError, match=message):
                make()
    for fine in ("none", "all", "tensorboard", ["tensorboard"], [], None):
        check_trackers(fine)
    with pytest.raises(ValueError, match="there is no tracker 'none'"):
        check_trackers(["tensorboard", "none"])


def test_what_wandb_and_trackio_call_their_runs():
    """Neither is installed here: callbacks of transformers with stand-ins for the two libraries behind them."""
    args = SimpleNamespace(project="huggingface", run_name="demo/03/pdpo")
    wandb, trackio = object.__new__(WandbCallback), object.__new__(TrackioCallback)
    wandb._wandb = SimpleNamespace(run=SimpleNamespace(id="a1b2", url="https://wandb.ai/me/p/runs/a1b2"))
    trackio._space_id = None
    assert run_of(wandb, args) == {"tracker": "wandb", "run": "a1b2", "url": "https://wandb.ai/me/p/runs/a1b2"}
    assert run_of(trackio, args) == {"tracker": "trackio", "run": "huggingface/demo/03/pdpo", "url": None}
