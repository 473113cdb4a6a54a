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


@pytest.fixture
def uneven():
    """Prompts and responses of very different lengths, so that every kind of padding is there."""
    says = ["Yes.", "No, " + "really " * 9 + "not!", "Why? " * 4, "Good " * 15]
    rows = [
        record(f"p{i}", "abc"[i % 3], "Tell me. " * (1 + 3 * (i % 3)), says[i % 4], says[(i + 1 + i % 2) % 4])
        for i in range(6)
    ]
    return Dataset.from_list(rows)


def same_in_both_forms(make_tiny, tokenizer, pairs, folder, architecture="llama", users=3, after_bos=None, **options):
    """Check that loss and gradients of all pairs are the same with shared prompts and in TRL's form; their batch."""
    found = []
    for share_prompt in (True, False):
        model = make_tiny(architecture, users=users, offsets=0.5, after_bos=after_bos)
        trainer = make_trainer(model, tokenizer, pairs, folder, architecture, share_prompt=share_prompt, **options)
        model = as_trained(trainer.model.eval(), 0.3)  # policy and reference differ
        batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
        loss = trainer.compute_loss(model, dict(batch))
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append((loss, torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True), batch))
    (loss, gradients, batch), (wanted, theirs, _) = found
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    torch.testing.assert_close(gradients, theirs, atol=1e-5, rtol=1e-4)
    assert sum(bool((g.abs() > 1e-4).any()) for g in theirs) > 2
    return batch


@pytest.mark.parametrize("architecture", ALL_FAMILIES)
def test_same_loss_and_gradients(make_tiny, tokenizer, uneven, tmp_path, architecture):
    batch = same_in_both_forms(make_tiny, tokenizer, uneven, tmp_path, architecture, alpha=0.3)
    # where texts are longer than the window a 4-D mask would be wrong
    assert ("prompt_ids" in batch) == (architecture not in ("mistral", "gemma2"))


def test_pairs_of_one_user_and_prompt_share_a_row(make_tiny, tokenizer, uneven, tmp_path):
    rows = [{**uneven[i % 4], "user_id": "ab"[i % 2], "prompt": uneven[i % 2]["prompt"]} for i in range(8)]
    options = {"alpha": 0.3, "pairs_per_row": 4, "per_device_train_batch_size": 4, "users": 2}
    batch = same_in_both_forms(make_tiny, tokenizer, in_blocks(Dataset.from_list(rows), 4), tmp_path, **options)
    assert len(batch["prompt_ids"]) == 2


@pytest.mark.filterwarnings("ignore:.* pairs of the train set are longer")
@pytest.mark.parametrize(
    "options",
    [  # losses that look at masks and single tokens, cut texts, the reference, user tokens after BOS
        {"loss_type": "ipo", "use_weighting": True},
        {"loss_type": ["sigmoid_norm", "sft"], "ld_alpha": 0.5},
        {"loss_type": "sigmoid_norm", "personalized": False, "users": 0},
        {"max_length": 75},
        {"precompute_ref_log_probs": False},
        {"alpha": 0.5, "after_bos": True},
    ],
)
def test_what_else_looks_at_tokens(make_tiny, tokenizer, uneven, tmp_path, options):
    same_in_both_forms(make_tiny, tokenizer, uneven, tmp_path, **options)


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
