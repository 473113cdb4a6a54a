"""Experiment trackers: `report_to` of TRL passes through to them, and what they call the run is noted.

One training is one run of a tracker, named like its folder (`demo/03_pdpo_training/pdpo`), and the note
`<folder>-trackers.json` beside the trained model says which; `run.json` takes it up (`record.trackers`).
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from prlhf_kit.files import TRACKERS, write_json

NAMES = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}


def check_trackers(report_to: str | list[str] | None) -> None:
    """Refuse, before any work, trackers that transformers does not know or that are not installed.

    Args:
        report_to: as in TRL's configs: a name, several, "none" or "all" (all that are installed).

    Raises:
        ValueError: with the nearest name, or how to install it.
    """
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("none", "all") and len(names) == 1:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(str(name), INTEGRATION_TO_CALLBACK, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"report_to={report_to!r}: there is no tracker {name!r}.{hint} Expected 'none', or any of "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()  # as the trainer will, but that would be after the reference's passes
        except (RuntimeError, ImportError) as error:
            raise ValueError(
                f"report_to={report_to!r} can't be used here: {error} Or set report_to to 'none'."
            ) from None


@contextlib.contextmanager
def tracked(trainer: Trainer, folder: Path) -> Iterator[None]:
    """While it lasts, `trainer`'s trackers log a training that ends in `folder`; their runs end with it.

    The run's name, where the settings give none, is the last three parts of `folder`. TensorBoard's event files go to
    `<folder>-tensorboard` (or `TENSORBOARD_LOGGING_DIR`), so that a resumed training goes on there.
    """
    args: Any = trainer.args
    args.run_name = args.run_name or "/".join(folder.resolve().parts[-3:])
    trackers = [one for one in trainer.callback_handler.callbacks if type(one) in NAMES]
    for one in trackers:
        if isinstance(one, TensorBoardCallback):
            one.logging_dir = one.logging_dir or str(folder.resolve().with_name(f"{folder.name}-tensorboard"))
    note = _Note(trackers, folder.with_name(folder.name + TRACKERS))
    trainer.add_callback(note)
    try:
        yield
    finally:
        trainer.remove_callback(note)
        for one in trackers:  # what transformers leaves open: a second training would go on in the first one's run
            if isinstance(one, TensorBoardCallback) and one.tb_writer is not None:
                one.tb_writer.close()
            elif isinstance(one, WandbCallback) and one._wandb.run is not None and trainer.is_world_process_zero():
                one._wandb.finish()
            elif isinstance(one, TrackioCallback) and one._initialized and trainer.is_world_process_zero():
                one._trackio.finish()


class _Note(TrainerCallback):
    """Notes the trackers' runs once they have begun (it is the last of the callbacks)."""

    def __init__(self, trackers: list[TrainerCallback], path: Path):
        self.trackers, self.path = trackers, path

    def on_train_begin(self, args, state, control, **kwargs):
        if not (self.trackers and state.is_world_process_zero):
            return
        found = json.loads(self.path.read_text()) if self.path.exists() else []
        now = [run_of(one, args) for one in self.trackers]
        write_json(self.path, found + [run for run in now if run not in found])


def run_of(tracker: Any, args: Any) -> dict[str, str | None]:
    """What `tracker`, a callback of transformers whose run has begun, calls that run: `tracker`, `run` and `url`."""
    run, url = args.run_name, None
    if isinstance(tracker, TensorBoardCallback):
        run = str(Path(tracker.tb_writer.log_dir).resolve())
    elif isinstance(tracker, WandbCallback):
        run, url = tracker._wandb.run.id, tracker._wandb.run.url
    elif isinstance(tracker, TrackioCallback):
        run, url = f"{args.project}/{args.run_name}", tracker._space_id
    return {"tracker": NAMES[type(tracker)], "run": run, "url": url}
