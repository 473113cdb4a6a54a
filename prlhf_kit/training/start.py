"""What all recipes share: the base model as it is trained, and a training in processes of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from prlhf_kit.files import write_json
from prlhf_kit.models.hub import load_model


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
