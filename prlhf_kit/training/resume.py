"""Training that can be killed: it resumes from the last complete checkpoint, and never passes off another's result."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer, TrainerCallback

from prlhf_kit.data import fingerprint
from prlhf_kit.files import write_json
from prlhf_kit.models.conditioning import causal_lm, user_models
from prlhf_kit.models.hub import MADE_FROM, load_model, weights_hash as weights_of
from prlhf_kit.models.user_models import UserModel

COMPLETE = "checkpoint_complete"
HISTORY = "history.parquet"
# settings that say where and how visibly to work, not what to learn; the last line's are gone or follow from the code
ELSEWHERE = {"output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "save_total_limit", "save_steps"} | {
    *("balance_users", "completion_logits_only", "padding_side", "remove_unused_columns")
}


class MarkComplete(TrainerCallback):
    """Marks a checkpoint that was written to its end, so that a kill in mid-write leaves nothing to trip over."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).touch()


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest completely written checkpoint in `output_dir`, for `trainer.train(resume_from_checkpoint=...)`."""
    complete = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _made_from(trainer: Trainer) -> dict[str, Any]:
    """All that decides the result: settings, adapter, training pairs."""
    settings = {k: v for k, v in trainer.args.to_dict().items() if k not in ELSEWHERE}
    adapters = {name: config.to_dict() for name, config in getattr(trainer.model, "peft_config", {}).items()}
    pairs = fingerprint(DatasetDict(train=_own_columns(trainer.train_dataset)))
    model = trainer.accelerator.unwrap_model(trainer.model)
    decided = settings | {
        "adapters": adapters,
        "pairs": pairs,
        "model": model.config._name_or_path,
        "processes": trainer.args.world_size,
        "quantized": getattr(model, "quantization_method", None),
        "user_model": _user_model(model),
    }
    held_out = trainer.eval_dataset
    if isinstance(held_out, Dataset):
        held_out = {"eval": held_out}
    if held_out:
        decided["evaluation"] = fingerprint(DatasetDict({k: _own_columns(v) for k, v in held_out.items()}))
    for name in ("starts_from", "pooling"):  # of reward models
        if (value := getattr(causal_lm(model), name, None)) is not None:
            decided[name] = value
    stops = [
        one.state()["args"] for one in trainer.callback_handler.callbacks if hasattr(one, "early_stopping_patience")
    ]
    if stops:
        decided["early_stopping"] = stops
    return json.loads(json.dumps(decided, sort_keys=True, default=_text))


def _own_columns(pairs: Dataset) -> Dataset:
    """Without the reference's log-probs: they follow from model and pairs, if not to the last bit on other threads."""
    return pairs.remove_columns([name for name in pairs.column_names if name.startswith("ref_")])


def _user_model(model) -> list[Any] | None:
    """Class, shape and starting values."""
    table = next(iter(user_models(model)), None)
    if table is None:
        return None
    return [type(table).__name__, table.options() if isinstance(table, UserModel) else None, weights_of(table)]


def _text(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def _refuse_another(path: Path, wanted: dict[str, Any], *folders: Path) -> None:
    found = json.loads(path.read_text())
    different = sorted(k for k in {*found, *wanted} - ELSEWHERE if found.get(k) != wanted.get(k))
    if different:
        name = different[0]
        raise ValueError(
            f"{path.parent} holds a training with other settings: {', '.join(different)} ({name} is "
            f"{str(found.get(name))[:80]!r} there, {str(wanted.get(name))[:80]!r} here). Choose other folders, or "
            f"delete {' and '.join(map(str, folders))} to train anew."
        )


def fit(trainer: Trainer, folder: str | Path) -> pd.DataFrame:
    """Train to the end and save the adapter into `folder`; resume where an earlier call was killed.

    Checkpoints lie in `trainer.args.output_dir`. `folder` appears only when it is complete, with the log beside the
    adapter; if it is there already, nothing is trained.

    Returns:
        The trainer's log, one row a logging step.

    Raises:
        ValueError: `folder` or the checkpoints were made with other settings, another adapter or other pairs.
    """
    folder, checkpoints = Path(folder), Path(trainer.args.output_dir)
    made_from = _made_from(trainer)
    for path in (folder / MADE_FROM, checkpoints / MADE_FROM):
        if path.exists():
            _refuse_another(path, made_from, folder, checkpoints)
    first = trainer.is_world_process_zero()
    trainer.accelerator.wait_for_everyone()  # all processes have looked before one of them writes
    if not folder.exists():
        if first:
            write_json(checkpoints / MADE_FROM, made_from)
        checkpoint = last_checkpoint(checkpoints)
        if checkpoint and first:
            print(f"resuming {folder.name} from {Path(checkpoint).name}")
        trainer.train(resume_from_checkpoint=checkpoint)
        log = trainer.state.log_history
        evaluated = {entry["step"] for entry in log if any(k.startswith("eval_") for k in entry)}
        if trainer.args.eval_strategy != "no" and trainer.state.global_step not in evaluated:
            trainer.evaluate()  # the end, whatever eval_steps is
        staging = folder.with_name(f".{folder.name}-unfinished")
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        if first:
            write_json(staging / MADE_FROM, made_from)
            pd.DataFrame(trainer.state.log_history).to_parquet(staging / HISTORY)
            staging.rename(folder)
        trainer.accelerator.wait_for_everyone()
    return pd.read_parquet(folder / HISTORY)


def check_train_base(train_base: str, known: Sequence[str]) -> None:
    """Raise `ValueError` for a way to train the base that is not known, or can't be gone here."""
    if train_base not in known:
        raise ValueError(f"train_base={train_base!r}: expected one of {', '.join(known)}.")
    ready = torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None
    if train_base == "qlora" and not ready:
        raise ValueError(
            "train_base='qlora' needs a GPU and bitsandbytes (whose 4-bit layers have no gradient on CPUs, version "
            "0.50): pip install bitsandbytes on a GPU machine; 'lora' runs anywhere."
        )


def load_base_model(model: str, train_base: str, device: str | None = None) -> PreTrainedModel:
    """The base model as it is trained, for the reference's log-probs too: bfloat16 on a GPU unless its own weights are
    trained, 4 bits for QLoRA; `device` as in `load_model`."""
    dtype = torch.bfloat16 if torch.cuda.is_available() and train_base != "full" else torch.float32
    if train_base == "qlora":
        return load_model(model, dtype, f"cuda:{os.environ.get('LOCAL_RANK', '0')}", _four_bits())
    return load_model(model, dtype, device)


def _four_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def launch_recipe(recipe: Any, module: str, launch: Sequence[str]) -> None:
    """Write `recipe` to `<out>-launched.json`, and train it by `accelerate launch <launch> -m <module>`.

    Raises:
        RuntimeError: the training failed; the end of its output is in the message.
    """
    file = Path(f"{recipe.out}-launched.json")
    write_json(file, asdict(recipe))
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", module, str(file)]
    last: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():  # a notebook shows what Python prints, not what its children do
            print(line, end="")
            last.append(line)
    if process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}. It said:\n{''.join(last)}")
