"""User models: what they compute, where their tokens go, what they cost."""

import pytest
import torch

from prlhf_kit.models.user_models import ClusterUserModel, IndividualUserModel, LowRankUserModel, word_vectors

WORDS = torch.nn.Embedding.from_pretrained(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))


def test_row_0_is_the_generic_user_whatever_it_says():  # all other vectors: tests/authors
    model = IndividualUserModel(3, WORDS, 2)
    with torch.no_grad():
        model.own[0] += 5
    assert torch.equal(model(torch.tensor([0]))[0], model.generic)


def test_low_rank_by_hand_and_a_million_users_in_64_mb():
    model = LowRankUserModel(4, WORDS, 2, rank=3)
    e = model(torch.tensor([0, 3]))
    assert torch.equal(e[0], model.generic)
    by_hand = model.generic + sum(model.own[3, r] * model.basis[r] for r in range(3))
    assert torch.allclose(e[1], by_hand, atol=1e-6)
    many = LowRankUserModel(1_000_001, torch.nn.Embedding(100, 64), 10, rank=16)
    assert sum(p.untyped_storage().nbytes() for p in many.parameters()) < 65e6
    assert many(torch.tensor([1_000_000])).shape == (1, 10, 64)


def test_initial_tokens():
    common = word_vectors(WORDS, 30, 4, vocabulary=5)
    assert all(any(torch.equal(vector, word) for word in WORDS.weight[:5]) for vector in common.flatten(0, 1))
    named = word_vectors(WORDS, 30, 4, vocabulary=[7, 9])
    assert all((WORDS.weight[[7, 9]] == vector).all(-1).any() for vector in named.flatten(0, 1))
    wide = word_vectors(WORDS, 200, 4, "uniform", random_range=0.5)
    assert 0.49 < wide.abs().max() <= 0.5
    for init in ("normal", "uniform"):
        drawn = word_vectors(WORDS, 200, 4, init)
        assert drawn.std() == pytest.approx(WORDS.weight.std().item(), rel=0.05)
        assert torch.equal(drawn, word_vectors(WORDS, 200, 4, init))
        assert not torch.equal(drawn, word_vectors(WORDS, 200, 4, init, seed=1))
    with pytest.raises(ValueError, match="expected 'words', 'normal' or 'uniform'"):
        word_vectors(WORDS, 1, 1, "zeros")
    for known in (51, 0, [], [3, 50]):
        with pytest.raises(ValueError, match="from 1 to 50, token ids below that"):
            word_vectors(WORDS, 1, 1, vocabulary=known)


def test_whose_words_are_read_is_one_of_three():
    with pytest.raises(ValueError, match="user_text='mine': expected False, True or 'authors'"):
        IndividualUserModel(3, WORDS, user_text="mine")


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_soft_tokens_start_as_the_words_that_the_model_sees(make_tiny, architecture):
    """Gemma's embedding layer gives its weights times the root of d_model."""
    words = make_tiny(architecture).get_input_embeddings()
    known = words(torch.arange(words.num_embeddings))
    table = ClusterUserModel(3, words, 2, clusters=4)
    assert all((known == token).all(-1).any() for token in table.centres.flatten(0, 1))
    drawn = word_vectors(words, 200, 4, "normal")
    assert drawn.std() == pytest.approx(known.std().item(), rel=0.05)
