"""Prompts computed once and kept out of the LM head: the same loss and gradients as in TRL's form, to 1e-5."""

import pytest
import torch
from conftest import ALL_FAMILIES, as_trained
from datasets import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.data.select import in_blocks
from prlhf_kit.training.prompt_once import DataCollatorForPersonalizedPreference, compute_prompts_once, shares_prompts
from training.conftest import make_trainer

PLAIN = {"share_prompt": False}


@pytest.fixture
def uneven():
    """Prompts and responses of very different lengths, so that every kind of padding is there."""
    says = ["Yes.", "No, " + "really " * 9 + "not!", "Why? " * 4, "Good " * 15]
    rows = [
        record(f"p{i}", "abc"[i % 3], "Tell me. " * (1 + 3 * (i % 3)), says[i % 4], says[(i + 1 + i % 2) % 4])
        for i in range(6)
    ]
    return Dataset.from_list(rows)


def loss_and_gradients(model, tokenizer, pairs, folder, architecture="llama", **options):
    """Of one batch that holds all pairs, from the same weights each time."""
    trainer = make_trainer(model, tokenizer, pairs, folder, architecture, **options)
    model = as_trained(trainer.model.eval(), 0.3)  # policy and reference differ
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    loss = trainer.compute_loss(model, batch)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return loss, {n: torch.zeros(()) if g is None else g for (n, _), g in zip(named, gradients, strict=True)}, batch


def same(found, expected):
    assert found[0].item() == pytest.approx(expected[0].item(), abs=1e-5)
    for name, wanted in expected[1].items():
        torch.testing.assert_close(found[1][name], wanted, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(bool((g.abs() > 1e-4).any()) for g in expected[1].values()) > 2


@pytest.mark.parametrize("architecture", ALL_FAMILIES)
def test_same_loss_and_gradients(make_tiny, tokenizer, uneven, tmp_path, architecture):
    plain, shared = (
        loss_and_gradients(
            make_tiny(architecture, users=3, offsets=0.5), tokenizer, uneven, tmp_path, architecture, alpha=0.3, **way
        )
        for way in (PLAIN, {})
    )
    same(shared, plain)
    if architecture in ("mistral", "gemma2"):  # longer than the window: a 4-D mask would be wrong there
        assert "prompt_ids" not in shared[2]
    else:
        assert len(shared[2]["prompt_ids"]) == 6


def test_pairs_of_one_user_and_prompt_share_a_row(make_tiny, tokenizer, uneven, tmp_path):
    rows = [{**uneven[i % 4], "user_id": "ab"[i % 2], "prompt": uneven[i % 2]["prompt"]} for i in range(8)]
    pairs = in_blocks(Dataset.from_list(rows), 4)
    options = {"alpha": 0.3, "pairs_per_row": 4, "per_device_train_batch_size": 4}
    plain, shared = (
        loss_and_gradients(make_tiny(users=2, offsets=0.5), tokenizer, pairs, tmp_path, **options, **way)
        for way in (PLAIN, {})
    )
    same(shared, plain)
    assert len(shared[2]["prompt_ids"]) == 2


@pytest.mark.filterwarnings("ignore:.* pairs of the train set are longer")
@pytest.mark.parametrize(
    "options",
    [  # losses that look at masks and single tokens, cut texts, the reference, user tokens after BOS
        {"loss_type": "ipo", "use_weighting": True},
        {"loss_type": ["sigmoid_norm", "sft"], "ld_alpha": 0.5},
        {"loss_type": "sigmoid_norm", "personalized": False},
        {"max_length": 75},
        {"precompute_ref_log_probs": False},
        {"alpha": 0.5, "after_bos": True},
    ],
)
def test_what_else_looks_at_tokens(make_tiny, tokenizer, uneven, tmp_path, options):
    found, config = [], {name: value for name, value in options.items() if name != "after_bos"}
    for way in ({}, PLAIN):
        users = {"users": 3, "after_bos": options.get("after_bos")} if config.get("personalized", True) else {}
        found.append(loss_and_gradients(make_tiny(**users, offsets=0.5), tokenizer, uneven, tmp_path, **config, **way))
    same(*found)


def test_recurrent_layers_are_noticed(make_tiny, tokenizer):
    assert shares_prompts(make_tiny())
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2)).eval()
    assert not shares_prompts(mamba)


def test_mixtures_of_experts_are_refused(tokenizer, uneven, tmp_path):
    """Their router loss is computed from the mask that TRL passed, which is not the one that the model sees."""

    def build():
        size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MixtralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=2, **size)
        model = MixtralForCausalLM(config)
        return kit.condition(model, kit.IndividualUserModel(4, model.get_input_embeddings(), 2))

    with pytest.raises(ValueError, match=r"Set router_aux_loss_coef=0\.0"):
        make_trainer(build(), tokenizer, uneven, tmp_path)
    make_trainer(build(), tokenizer, uneven, tmp_path, router_aux_loss_coef=0.0, max_steps=1).train()


def test_padding_stays_within_the_context(tokenizer):
    """A short prompt's padded positions would lie behind GPT-2's table of positions."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=12)).eval()
    compute_prompts_once(model)
    collate = DataCollatorForPersonalizedPreference(pad_token_id=0, longest=12)
    examples = [
        {"prompt_ids": [1] * 10, "chosen_ids": [2], "rejected_ids": [3, 4], "user_row": 1},
        {"prompt_ids": [1], "chosen_ids": [5] * 11, "rejected_ids": [6], "user_row": 2},
    ]
    batch = collate(examples)
    assert batch["user_rows"].tolist() == [1, 2, 1, 2]
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "prompt_ids")}
    hidden = model.base_model(**inputs).last_hidden_state
    for row, (example, side) in enumerate((e, s) for s in ("chosen_ids", "rejected_ids") for e in examples):
        text = torch.tensor([example["prompt_ids"] + example[side]])
        alone = model.base_model(input_ids=text).last_hidden_state[0, len(example["prompt_ids"]) - 1 :]
        torch.testing.assert_close(hidden[row, : len(alone)], alone, atol=1e-5, rtol=1e-4)
