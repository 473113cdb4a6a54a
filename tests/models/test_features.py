import numpy as np
import pytest
import torch

from prlhf_kit.data.schema import message
from prlhf_kit.models.features import Embedder, load_embedder
from prlhf_kit.models.reward_model import new_reward_model, save_beside
from prlhf_kit.models.rewards import load_reward


def test_embedding_reads_responses_only_once_and_is_kept(make_tiny, tokenizer, tmp_path, monkeypatch):
    model = make_tiny().model
    embedder = Embedder("tiny", model, tokenizer, decoder=True, batch_size=2)
    prompts = [message("user", "Why?")] * 3
    responses = [message("assistant", text) for text in ("Because of the rain.", "No.", "Because of the rain.")]
    vectors = embedder(prompts, responses, tmp_path)
    assert vectors.shape == (3, 32)
    assert np.array_equal(vectors[0], vectors[2])
    ids = tokenizer.apply_chat_template(prompts[1] + responses[1], return_dict=True)["input_ids"]
    start = len(tokenizer.apply_chat_template(prompts[1], add_generation_prompt=True, return_dict=True)["input_ids"])
    hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0, start:].mean(0)
    assert vectors[1] == pytest.approx(hidden.detach().numpy(), abs=1e-5)
    monkeypatch.setattr(Embedder, "_embed", lambda *_: pytest.fail("embedded again"))
    assert np.array_equal(embedder(prompts, responses, tmp_path), vectors)


def test_of_a_long_prompt_the_response_is_left(make_tiny, tokenizer):
    embedder = Embedder("tiny", make_tiny().model, tokenizer, decoder=True, max_length=24)
    long = message("user", "word " * 60)
    vectors = embedder([long, long], [message("assistant", "Yes."), message("assistant", "No, never.")])
    assert not np.allclose(*vectors)


def test_a_reward_models_features_are_what_its_head_reads(base, tokenizer, tmp_path):
    prompts = [message("user", "Why?")] * 2
    responses = [message("assistant", text) for text in ("Because of the rain.", "No.")]
    ours, published = new_reward_model(base, "mean"), new_reward_model(base, "own", seed=1)
    for name, model in (("ours", ours), ("published", published)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_beside(ours, tmp_path / "ours", None)
    for name in ("ours", "published"):
        embedder = load_embedder(str(tmp_path / name))
        expected = load_reward(str(tmp_path / name)).score(prompts, responses).numpy()
        assert embedder(prompts, responses) @ embedder.head == pytest.approx(expected, abs=1e-5)
    assert load_embedder(base).head is None


def test_the_embedded_sentence_model_reads_a_text_as_its_tokenizer_gives_it():
    embedder = load_embedder("all-minilm-l6-v2")
    for text in ("No.", "A longer sentence about tea."):
        ids = embedder.tokenizer(text, return_tensors="pt")
        mean = embedder.model(**ids).last_hidden_state.mean(1)
        expected = torch.nn.functional.normalize(mean).detach().numpy()[0]
        assert embedder([message("user", "x")], [message("assistant", text)])[0] == pytest.approx(expected, abs=1e-5)
    texts = ["A cat sits on the mat.", "A kitten lies on the rug.", "Stock prices fell sharply."]
    vectors = embedder([message("user", "x")] * 3, [message("assistant", t) for t in texts])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
