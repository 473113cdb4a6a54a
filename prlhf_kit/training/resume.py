"""Training that can be killed: it resumes from the last complete checkpoint, and never passes off another's result."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainerCallback

from prlhf_kit.data import fingerprint
from prlhf_kit.files import write_json
from prlhf_kit.models.conditioning import causal_lm, user_models
from prlhf_kit.models.hub import MADE_FROM, weights_hash

COMPLETE = "checkpoint_complete"
HISTORY = "history.parquet"
# settings that do not change the result (paths, logs, saving), that older versions wrote, or that follow from the code
ELSEWHERE = {"output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "save_total_limit", "save_steps"}
ELSEWHERE |= {"balance_users", "completion_logits_only", "lm_on_prompt", "padding_side", "remove_unused_columns"}
ELSEWHERE |= {"restore_callback_states_from_checkpoint"}


class Checkpoints(TrainerCallback):
    """Marks a checkpoint that was written to its end with the sizes of its files, so that what a kill in mid-write or
    a full disk left does not pass for one. Trainings of few steps are logged at least once."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.logging_steps = min(state.logging_steps, state.max_steps)

    def on_save(self, args, state, control, **kwargs):
        args.distributed_state.wait_for_everyone()  # each process writes files of its own
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            for path in [*folder.rglob("*"), folder]:  # on the disk before the marker is
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            write_json(folder / COMPLETE, sizes(folder))


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint but its marker."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end, and each of its files has the size that it had then."""
    try:
        return json.loads(Path(checkpoint, COMPLETE).read_text()) == sizes(Path(checkpoint))
    except (OSError, ValueError):
        return False


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest whole checkpoint in `output_dir`, for `trainer.train(resume_from_checkpoint=...)`."""
    markers = Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")
    for marker in sorted(markers, key=lambda path: -int(path.parent.name.split("-")[1])):
        if is_whole(marker.parent):
            return str(marker.parent)
        print(f"{marker.parent} is damaged: left out, training goes on from an earlier point")
    return None


def made_from(trainer: Trainer) -> dict[str, Any]:
    """All that decides the result: settings, adapter, starting weights, training pairs; as JSON gives it back."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    users = next(iter(user_models(model)), None)
    held_out = trainer.eval_dataset
    sets = {"pairs": {"train": trainer.train_dataset}}
    if held_out is not None:
        sets["evaluation"] = {"eval": held_out} if isinstance(held_out, Dataset) else dict(held_out)
    decided = trainer.args.to_dict() | {
        "adapters": {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
        "model": model.config._name_or_path,
        "dtype": str(model.dtype),
        "processes": trainer.args.world_size,
        "quantized": getattr(model, "quantization_method", None),
        "user_model": None if users is None else [type(users).__name__, users.options(), weights_hash(users)],
    }
    for name, parts in sets.items():
        # without the reference's log-probs: they follow from model and pairs, if not to the last bit on other threads
        own = {k: v.remove_columns([c for c in v.column_names if c.startswith("ref_")]) for k, v in parts.items()}
        decided[name] = fingerprint(DatasetDict(own))
    for name in ("starts_from", "pooling"):
        if (value := getattr(causal_lm(model), name, None)) is not None:
            decided[name] = value
    kept = {name: value for name, value in decided.items() if name not in ELSEWHERE}
    plain = json.dumps(kept, sort_keys=True, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v))
    return json.loads(plain)


def fit(trainer: Trainer, folder: str | Path) -> pd.DataFrame:
    """Train to the end, save the adapter into `folder` and return the trainer's log; resume where an earlier call was
    killed. `folder` appears only when it is complete; if it is there already, nothing is trained. Raises `ValueError`
    where it, or the checkpoints, were made with other settings, another adapter or other pairs."""
    folder, checkpoints = Path(folder), Path(trainer.args.output_dir)
    wanted = made_from(trainer)
    for path in (folder / MADE_FROM, checkpoints / MADE_FROM):
        # older versions did not write the dtype
        found = {"dtype": wanted["dtype"]} | json.loads(path.read_text()) if path.exists() else wanted
        if different := sorted(k for k in {*found, *wanted} - ELSEWHERE if found.get(k) != wanted.get(k)):
            name = different[0]
            raise ValueError(
                f"{path.parent} holds a training with other settings: {', '.join(different)} ({name} is "
                f"{str(found.get(name))[:80]!r} there, {str(wanted.get(name))[:80]!r} here). Choose other folders, or "
                f"delete {folder} and {checkpoints} to train anew."
            )
    first = trainer.is_world_process_zero()
    trainer.accelerator.wait_for_everyone()  # all processes have looked before one of them writes
    if not folder.exists():
        if first:
            write_json(checkpoints / MADE_FROM, wanted)
        checkpoint = last_checkpoint(checkpoints)
        if checkpoint and first:
            print(f"resuming {folder.name} from {Path(checkpoint).name}")
        trainer.train(resume_from_checkpoint=checkpoint)
        evaluated = {entry["step"] for entry in trainer.state.log_history if any(k.startswith("eval_") for k in entry)}
        if trainer.args.eval_strategy != "no" and trainer.state.global_step not in evaluated:
            trainer.evaluate()  # the end, whatever eval_steps is
        staging = folder.with_name(f".{folder.name}-unfinished")
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        if first:
            write_json(staging / MADE_FROM, wanted)
            pd.DataFrame(trainer.state.log_history).to_parquet(staging / HISTORY)
            staging.rename(folder)
        trainer.accelerator.wait_for_everyone()
    return pd.read_parquet(folder / HISTORY)
