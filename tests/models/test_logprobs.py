"""Log-probabilities of responses: in batches as one by one, and kept beside the pairs; their values: tests/authors."""

import copy
import math

import pytest
import torch
from datasets import Dataset, load_from_disk
from training.conftest import make_trainer
from transformers import MambaConfig, MambaForCausalLM

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.models.logprobs import add_reference_logps, response_logps, save_with_reference, sequence_logps


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mistral"])
def test_a_prompt_that_several_share_is_read_once(make_tiny, tokenizer, architecture, monkeypatch):
    """Each completion has the log-prob that it has behind a prompt of its own."""
    model = make_tiny(architecture, users=3, offsets=0.5)
    prompts, completions = [[5, 6, 7], [8] * 20], [[9], [10, 11, 12], [13] * 30, [14, 15]]
    asked = [(prompt, completion) for prompt in prompts for completion in completions] * 2
    rows = [1, 2, 3, 1, 2, 3, 1, 2] + [1] * 8
    read = []
    forward = type(model.base_model).forward
    monkeypatch.setattr(type(model.base_model), "forward", lambda *a, **k: read.append(k) or forward(*a, **k))
    for given in (rows, None):
        with torch.no_grad():
            each = [
                response_logps(model, [pair], 0, given and torch.tensor([row])).item()
                for pair, row in zip(asked, rows, strict=True)
            ]
        for size in (1, 8):
            read.clear()
            assert sequence_logps(model, tokenizer, asked, given, batch_size=size) == pytest.approx(each, abs=1e-4)
    assert len(read) == 2  # both prompts, then what is behind them
    with pytest.raises(kit.ConditioningError, match=r"text of \d+ tokens .* exceeds the model's context of 256"):
        sequence_logps(model, tokenizer, [([1], [2] * 300)])


def test_a_model_that_keeps_no_keys_and_values(tokenizer):
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2)
    model, asked = MambaForCausalLM(config).eval(), [([5, 6], [7, 8]), ([5, 6], [9, 10]), ([11, 12], [7, 8])]
    with torch.no_grad():
        each = [response_logps(model, [pair], 0).item() for pair in asked]
    assert sequence_logps(model, tokenizer, asked) == pytest.approx(each, abs=1e-4)


def test_both_responses_are_cut_from_the_prompt_at_one_place(make_tiny, tokenizer, tmp_path):
    """As TRL's trainer does: "\\n\\n" with which one response begins is one token with the prompt's last."""
    merging = copy.deepcopy(tokenizer)
    merging.add_tokens(["\n\n\n"])
    model = make_tiny()
    model.resize_token_embeddings(len(merging))
    rows = [record("p", "a", "Tea?", "\n\nYes.", "No."), record("q", "b", "Tea?", "No!", "\n\nYes, very.")]
    known = add_reference_logps(Dataset.from_list(rows), model, merging)
    trainer = make_trainer(model, merging, known, tmp_path, personalized=False)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_reference_is_computed_once_and_appears_whole(make_tiny, tokenizer, pairs, tmp_path):
    (tmp_path / ".pairs-1-unfinished").mkdir()  # an earlier attempt was killed
    save_with_reference(pairs, make_tiny(), tokenizer, tmp_path / "pairs")
    assert load_from_disk(tmp_path / "pairs").to_list() == add_reference_logps(pairs, make_tiny(), tokenizer).to_list()
    save_with_reference(pairs, None, tokenizer, tmp_path / "pairs")  # it is there: no model is asked
    assert {path.name for path in tmp_path.iterdir()} == {".pairs-1-unfinished", "pairs"}
