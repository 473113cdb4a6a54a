"""Where a training runs and what it starts from: the base model, folders named in a JSON file, several processes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from transformers import BitsAndBytesConfig, PreTrainedModel

from prlhf_kit.files import write_json
from prlhf_kit.models.hub import SFT_FILE, load_model, weights_in
from prlhf_kit.training.presets import made_for, preset


def read_recipe(kind: type, path: str | Path) -> tuple[Any, str, Any, str, Any]:
    """Arguments of `train`, `train_sft` or `train_reward` from a JSON file: the recipe's fields, `model`, `out`, and
    folders of `Dataset.save_to_disk`, `pairs` and (optional) `evaluation`; for reward models also several by name.
    `preset` (`training.presets`) stands for fields that are not there."""
    fields = json.loads(Path(path).read_text())
    model, pairs, out, evaluation = (fields.pop(name, "") for name in ("model", "pairs", "out", "evaluation"))
    if missing := [name for name, value in {"model": model, "pairs": pairs, "out": out}.items() if not value]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, expected a base model and two folders. Write them there.")
    if name := fields.pop("preset", ""):
        if made_for(name) != kind.__name__:
            found = f"the preset {name} is for a {made_for(name)}, but {path} is read as a {kind.__name__}"
            raise ValueError(f"{found}. `prlhf presets` lists the others.")
        fields = preset(name, **fields)

    def loaded(folders):
        if isinstance(folders, dict):
            return {name: load_from_disk(folder) for name, folder in folders.items()}
        return load_from_disk(folders) if folders else None

    return kind(**fields), model, loaded(pairs), out, loaded(evaluation)


def command(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a module that trains a recipe; its `__doc__` is the help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="JSON file with the recipe's fields")
    return parser


def writable(pairs: Dataset) -> Dataset:
    """`pairs`, in memory where `datasets` can't write its caches beside them."""
    if all(os.access(Path(file["filename"]).parent, os.W_OK) for file in pairs.cache_files):
        return pairs
    return Dataset(pairs.with_format("arrow")[:], info=pairs.info, split=pairs.split)


def load_base(model: str, train_base: str = "lora", device: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """The base model as it is trained, and as the reference reads: 4 bits for QLoRA; `device` as in `load_model`. The
    `dtype` "auto" is bfloat16 on a GPU unless the base's own weights are trained, float32 elsewhere."""
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_available() and train_base != "full" else "float32"
    four_bits = None
    if train_base == "qlora":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **nf4)
    loaded: Any = load_model(model, getattr(torch, dtype), device, four_bits)
    if Path(model, SFT_FILE).is_file():  # tells trainings apart (`fit`)
        loaded.starts_from = weights_in(model)
    return loaded


def launch_recipe(
    module: str, launch: Sequence[str], recipe: Any, model: str, out: str | Path, sets: dict[str, Dataset]
) -> None:
    """Train a recipe by `module` in processes of their own. It is written to `<out>-launched.json`, its pairs and
    perhaps its evaluation (`sets`) beside. Raises `RuntimeError` with the end of what they said, if they fail."""
    fields = {**vars(recipe), "model": model, "out": str(out)}
    for name, part in sets.items():
        fields[name] = f"{out}-launched-{name}"
        shutil.rmtree(fields[name], ignore_errors=True)
        part.save_to_disk(fields[name])
    file = Path(f"{out}-launched.json")
    write_json(file, fields)
    line = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", module, str(file)]
    last: deque[str] = deque(maxlen=30)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for said in process.stdout or ():  # a notebook shows what Python prints, not what its children do
            print(said, end="")
            last.append(said)
    if process.returncode:
        raise RuntimeError(f"`{' '.join(line)}` ended with {process.returncode}. It said:\n{''.join(last)}")
