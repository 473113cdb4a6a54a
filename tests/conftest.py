"""Tiny randomly initialised models, a small tokenizer with a chat template, and a run of notebooks 01 and 03."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests load nothing from a hub
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from raw import compred_folder, dsp_file, personalllm_folder, prism_folder, tldr_folder  # noqa: F401  (fixtures)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerFast,
)

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.files import unfinished
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.runs import notebook as runs

torch.set_num_threads(1)  # tiny models: threads cost more than they give

# their files take minutes each: first, so that no worker is left alone with one at the end
LONG = ("test_notebooks", "test_tutorials", "test_slurm", "test_engine", "test_compare_page", "test_gpu")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of 600 tokens with a ChatML template: a large vocabulary would dominate the time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(kit.data.simulated.responses()["response"].head(200), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[1], eos_token=special[2], pad_token=special[2], chat_template=CHATML
    )


GROUPED = {"num_key_value_heads": 2}
FAMILIES = {  # options of the configurations; "_wide" is no part of a family's name
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},  # so small that texts don't fit into it
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    # every other layer has a window; soft-capped logits
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 16, "attn_implementation": "eager"},
    "mistral_wide": GROUPED | {"sliding_window": 200},  # texts fit into it
    "gemma2_wide": GROUPED | {"head_dim": 8, "sliding_window": 200},
    "gpt_neox": {},
    "gpt2": {},
}
ALL_FAMILIES = [*FAMILIES]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}


def build_tiny(architecture: str, vocabulary: int):
    """A two-layer model of d_model 32, the same weights at every call."""
    torch.manual_seed(0)
    size = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2}
    if architecture != "gpt2":
        size["intermediate_size"] = 64
    config = AutoConfig.for_model(architecture.removesuffix("_wide"), **SIZE, **size, **FAMILIES[architecture])
    return AutoModelForCausalLM.from_config(config).eval()


TARGETS = {name: ["q_proj", "v_proj"] for name in FAMILIES} | {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def architecture(request):
    return request.param


@pytest.fixture
def make_tiny(tokenizer):
    """`make_tiny(architecture, users=3)`: a tiny model, conditioned on `users` users if there are any."""

    def make(architecture="llama", users=0, num_tokens=3, offsets=0.0, kind="individual", **options):
        model = build_tiny(architecture, len(tokenizer))
        if users:
            table = USER_MODELS[kind](users + 1, model.get_input_embeddings(), num_tokens, **options)
            with torch.no_grad():  # as if trained: users differ
                table.own += offsets * torch.randn(table.own.shape, generator=torch.Generator().manual_seed(7))
            kit.condition(model, table)
        return model

    return make


def as_trained(model, scale=0.4, seed=5):
    """A model whose LoRA B is not zero, and whose preference head is not the identity."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or ("preference_head" in name and "modules_to_save" in name):
                p += scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return model


def with_lora(model, architecture="llama", seed=5, **options):
    """LoRA on a tiny model, whose user model or preference head it saves, as after training: B is not zero."""
    kept = [name for name in ("user_model", "preference_head") if hasattr(model, name)]
    config = LoraConfig(**{"target_modules": TARGETS[architecture], "modules_to_save": kept or None, **options})
    config.fan_in_fan_out = architecture == "gpt2"
    return as_trained(get_peft_model(model, config).eval(), seed=seed)


@pytest.fixture
def personal(make_tiny, architecture):
    """A P-DPO model as after training: users differ, too."""
    return with_lora(make_tiny(architecture, users=3, offsets=0.8), architecture)


@pytest.fixture
def pairs():
    """Twelve pairs of three users with short and long texts."""
    rows = [
        record(f"p{i}", "abc"[i % 3], f"Question number {i}?", "Yes, " + "very " * (i % 4) + "much.", "No" + "!" * i)
        for i in range(1, 13)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def for_all_workers(tmp_path_factory):
    """A folder that pytest-xdist's workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, for_all_workers):
    """Folder of a tiny language model with its tokenizer; it stays as it is."""
    folder = for_all_workers / "tiny"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            build_tiny("llama", len(tokenizer)).save_pretrained(unfinished(folder))
            tokenizer.save_pretrained(unfinished(folder))
            unfinished(folder).rename(folder)
    return folder


TRAINED = {  # parameters of notebooks 01 and 03
    "01_data_preparation": {
        "dataset_options": {"pairs_per_user": 4, "test_pairs_per_user": 3, "adapt_pairs_per_user": 1},
        "max_prompt_tokens": 128,
    },
    "03_pdpo_training": {"settings": {"save_steps": 2}, "epochs": 4.0},
}


@pytest.fixture(scope="session")
def trained_run(tiny_folder, for_all_workers):
    """Folder of a run of notebooks 01 and 03 on the tiny model: to be copied, it stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, parameters in TRAINED.items():  # the second worker waits, and finds them done
            notebook = Path(__file__).parent.parent / "notebooks" / f"{name}.ipynb"
            given = parameters | {"model": str(tiny_folder)}
            record = runs.run_notebook(notebook, for_all_workers / "trained", given, wait=True)
            assert record["status"] == "completed", record.get("error")
    return for_all_workers / "trained"


@pytest.fixture
def base(tiny_folder, tmp_path):
    """A copy of it, as text."""
    return str(shutil.copytree(tiny_folder, tmp_path / "lm"))


@pytest.fixture
def adapters(base, tmp_path):
    """Folders of three LoRA adapters of `base`, "a" to "c", that differ as after training."""
    for seed, name in enumerate("abc"):
        model = get_peft_model(kit.load_model(base), LoraConfig(r=4, target_modules=TARGETS["llama"]))
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in "abc"}


@pytest.fixture
def bert(tmp_path):
    words = "how do i make tea ? what is rain boil water first , then pour it over the leaves . no".split()
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer
