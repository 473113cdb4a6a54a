"""Rewards on frozen features: against scikit-learn, on data with a known truth, and what they refuse."""

import numpy as np
import pytest
from datasets import DatasetDict
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

import prlhf_kit as kit
from prlhf_kit.data.schema import message
from prlhf_kit.data.simulated import oracle_accuracy
from prlhf_kit.evaluation import heads as head_comparison
from prlhf_kit.models.features import Embedder, load_embedder
from prlhf_kit.models.rewards import best_of_n
from prlhf_kit.training import heads
from prlhf_kit.training.heads import KINDS, FeatureReward, fit_heads

WEIGHTS = {"a": [2.0, 0.0, 0.0], "b": [-2.0, 0.0, 0.0], "c": [2.0, 0.0, 1.0], "d": [-2.0, 0.0, 1.0]}


def simulate(n=400, seed=0, users=tuple(WEIGHTS)):
    """Differences of features, users, prompts, and a chosen one drawn by Bradley-Terry."""
    rng = np.random.default_rng(seed)
    who = [users[i % len(users)] for i in range(n)]
    z = rng.normal(size=(n, 3))
    odds = (z * np.array([WEIGHTS[u] for u in who])).sum(1)
    z[rng.random(n) > expit(odds)] *= -1
    return z, who, [f"prompt {i // 2}" for i in range(n)]


def test_pooled_equals_logistic_regression():
    z, _, prompts = simulate(users=("a",))
    found = fit_heads("pooled", z, ["a"] * len(z), prompts, np.ones(3), strengths=(0.5,))
    scaled = z / 3**0.5  # features are divided by the root of their number
    both = np.concatenate([scaled, -scaled]), np.repeat([1, 0], len(z))
    theirs = LogisticRegression(C=1 / (0.5 * 2), fit_intercept=False, tol=1e-8).fit(*both)  # every pair twice
    assert found.pooled == pytest.approx(theirs.coef_[0], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_personal_heads_find_opposite_users_and_pooled_does_not(kind):
    found = fit_heads(kind, *simulate(), np.ones(3))
    z, who, _ = simulate(seed=1)
    right = (found.reward(z, who) > 0).mean()
    truth = ((z * np.array([WEIGHTS[u] for u in who])).sum(1) > 0).mean()
    assert right > truth - 0.03 if kind != "pooled" else right < 0.7
    if kind in ("low_rank", "mixture"):
        assert found.shared.shape == (found.size, 3)
        assert 1 <= found.size < len(WEIGHTS)


@pytest.mark.parametrize("kind", ["per_user", "low_rank", "mixture"])
def test_a_new_user_is_known_after_few_pairs_and_nobody_else_changes(kind):
    found = fit_heads(kind, *simulate(), np.ones(3))
    few = simulate(12, seed=2, users=("b",))[0]
    adapted = found.adapt(few, ["new"] * 12)
    z = simulate(200, seed=3, users=("b",))[0]
    before, after = ((h.reward(z, ["new"] * 200) > 0).mean() for h in (found, adapted))
    best = (z @ np.array(WEIGHTS["b"]) > 0).mean()
    assert after > max(best - 0.08, before)
    assert np.array_equal(adapted.reward(z, ["a"] * 200), found.reward(z, ["a"] * 200))
    assert set(found.users) == set(WEIGHTS)


@pytest.mark.parametrize("kind", ["per_user", "low_rank", "mixture"])
def test_strong_regularisation_leads_to_the_pooled_head(kind):
    z, who, prompts = simulate()
    pooled = fit_heads("pooled", z, who, prompts, np.ones(3), strengths=(1e4,))
    tied = fit_heads(kind, z, who, prompts, np.ones(3), strengths=(1e4,), sizes=(2,))
    assert tied.weights(who[:4]) == pytest.approx(np.tile(pooled.pooled, (4, 1)), abs=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_setting_with_the_least_held_out_loss_is_chosen(kind):
    found = fit_heads(kind, *simulate(), np.ones(3), strengths=(0.1, 1.0, 1e3), sizes=(1, 2))
    tried = found.scores[found.scores.strength.isna() == (kind == "pooled")]
    best = tried.loc[tried.nll.idxmin()]
    assert found.size == best["size"]
    assert found.strength == (best.pooled_strength if kind == "pooled" else best.strength)
    assert len(tried) == {"pooled": 3, "per_user": 3}.get(kind, 6)


def test_many_users_are_computed_otherwise_but_alike(monkeypatch):
    few = fit_heads("per_user", *simulate(), np.ones(3), strengths=(1.0,))
    monkeypatch.setattr(heads, "MANY_USERS", 0)
    many = fit_heads("per_user", *simulate(), np.ones(3), strengths=(1.0,))
    assert few.weights(["a", "d"]) == pytest.approx(many.weights(["a", "d"]), abs=1e-6)


def test_pairs_of_a_prompt_are_in_one_fold(monkeypatch):
    seen = []
    split = heads.GroupKFold.split

    def spy(self, x, y=None, groups=None):
        for train, held in split(self, x, y, groups):
            seen.append((set(groups[train]), set(groups[held])))
            yield train, held

    monkeypatch.setattr(heads.GroupKFold, "split", spy)
    fit_heads("pooled", *simulate(60), np.ones(3))
    assert len(seen) == 5
    assert all(not train & held for train, held in seen)


def test_bad_input_is_refused():
    z, who, prompts = simulate(20)
    with pytest.raises(ValueError, match="expected one of pooled, per_user"):
        fit_heads("best", z, who, prompts, np.ones(3))
    with pytest.raises(ValueError, match="1 of 20 pairs have NaN features"):
        fit_heads("pooled", np.where(np.arange(20)[:, None] == 3, np.nan, z), who, prompts, np.ones(3))
    with pytest.raises(ValueError, match="2 prompts are too few for 5 folds"):
        fit_heads("pooled", z, who, ["x", "y"] * 10, np.ones(3))


@pytest.mark.parametrize("seed", [0, 1])
def test_low_rank_reaches_the_oracle_on_features_that_carry_the_attributes(seed):
    """Issue 5's bar: within 3 points of the oracle for seen users, and within 8 for new ones with 8 pairs."""
    data = kit.data.load("simulated", seed=seed)
    embedded = head_comparison.embed(data, [load_embedder("attributes")])
    found = head_comparison.fit("low_rank", data["train"], embedded["train"])
    seen = head_comparison.held_out(found, data, embedded).groupby("split").value.mean()["test_seen"]
    assert seen > oracle_accuracy(data["test_seen"]["p_chosen"]) - 0.03
    few = head_comparison.ranked_after_few_shot(found, data, embedded, [0, 8, 1000]).groupby("k").value.mean()
    assert few.index.tolist() == [0, 8]
    assert few[8] > oracle_accuracy(data["test_unseen"]["p_chosen"]) - 0.08
    without = DatasetDict({**data, "adapt_unseen": data["adapt_unseen"].filter(lambda r: r["user_id"] != "formal-3")})
    assert set(head_comparison.ranked_after_few_shot(found, without, embedded, [0, 8]).k) == {0}
    assert set(head_comparison.controls(data).method) == {"length rule", "length rule per user"}


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
    hidden = model(input_ids=heads.torch.tensor([ids])).last_hidden_state[0, start:].mean(0)
    assert vectors[1] == pytest.approx(hidden.detach().numpy(), abs=1e-5)
    monkeypatch.setattr(Embedder, "_embed", lambda *_: pytest.fail("embedded again"))
    assert np.array_equal(embedder(prompts, responses, tmp_path), vectors)


def test_of_a_long_prompt_the_response_is_left(make_tiny, tokenizer):
    embedder = Embedder("tiny", make_tiny().model, tokenizer, decoder=True, max_length=24)
    long = message("user", "word " * 60)
    vectors = embedder([long, long], [message("assistant", "Yes."), message("assistant", "No, never.")])
    assert not np.allclose(*vectors)


def test_the_embedded_sentence_model_reads_a_text_as_its_tokenizer_gives_it():
    embedder = load_embedder("all-minilm-l6-v2")
    for text in ("No.", "A longer sentence about tea."):
        ids = embedder.tokenizer(text, return_tensors="pt")
        mean = embedder.model(**ids).last_hidden_state.mean(1)
        expected = heads.torch.nn.functional.normalize(mean).detach().numpy()[0]
        assert embedder([message("user", "x")], [message("assistant", text)])[0] == pytest.approx(expected, abs=1e-5)
    texts = ["A cat sits on the mat.", "A kitten lies on the rug.", "Stock prices fell sharply."]
    vectors = embedder([message("user", "x")] * 3, [message("assistant", t) for t in texts])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_feature_rewards_have_the_interface_of_reward_models():
    data = kit.data.load("simulated")
    embedded = head_comparison.embed(data, [load_embedder("attributes")])
    reward = FeatureReward(
        load_embedder("attributes"), head_comparison.fit("per_user", data["train"], embedded["train"])
    )
    bullets, warm = "- Boil water.\n- Add tea.\n- Wait.", "Oh my dear friend, I love tea! Shall we have a cup together?"
    found = [best_of_n(reward, ["Tea?"], [[bullets, warm]], [user])[0][0] for user in ("structured-1", "companion-1")]
    assert found == [0, 1]
    assert reward.score(["Tea?"], [bullets]).shape == (1,)
