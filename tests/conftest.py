"""Tiny randomly initialised models of four architectures, and a small tokenizer with a chat template."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests load nothing from a hub
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from raw import compred_folder, dsp_file, personalllm_folder, prism_folder, tldr_rows  # noqa: F401  (fixtures)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.models.user_models import USER_MODELS

torch.set_num_threads(1)  # tiny models: threads cost more than they give


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


FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 16}),  # so small that texts don't fit into it
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
    # every other layer has a window; soft-capped logits
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 16, "attn_implementation": "eager"}),
    "mistral_wide": (MistralConfig, MistralForCausalLM, {"sliding_window": 200}),  # texts fit into it
    "gemma2_wide": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 200}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
}
ALL_FAMILIES = [*FAMILIES, "gpt2"]


def build_tiny(architecture: str, vocabulary: int):
    """A two-layer model of d_model 32, the same weights at every call."""
    torch.manual_seed(0)
    size = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2}
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **size)).eval()
    config, model, options = FAMILIES[architecture]
    if architecture != "gpt_neox":
        size["num_key_value_heads"] = 2
    return model(
        config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            **size,
            **options,
        )
    ).eval()


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
    """A model whose LoRA B is not zero."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, scale, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def personal(make_tiny, architecture):
    """A P-DPO model as after training: LoRA B and user offsets are not zero."""
    model = make_tiny(architecture, users=3, offsets=0.8)
    config = LoraConfig(
        target_modules=TARGETS[architecture], modules_to_save=["user_model"], fan_in_fan_out=architecture == "gpt2"
    )
    return as_trained(get_peft_model(model, config).eval())


@pytest.fixture
def pairs():
    """Twelve pairs of three users with short and long texts."""
    rows = [
        record(f"p{i}", "abc"[i % 3], f"Question number {i}?", "Yes, " + "very " * (i % 4) + "much.", "No" + "!" * i)
        for i in range(1, 13)
    ]
    return Dataset.from_list(rows)


@pytest.fixture
def base(tokenizer, tmp_path):
    """Folder of a tiny language model with its tokenizer."""
    folder = tmp_path / "lm"
    build_tiny("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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
