"""Users who come and go: fitting new rows, adding them, forgetting them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import with_lora
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

import prlhf_kit as kit
from prlhf_kit.data.schema import record
from prlhf_kit.evaluation import heads
from prlhf_kit.evaluation.accuracy import FITTED, GENERIC_ROW, MIXED, NEAREST, ranked_by_pairs
from prlhf_kit.models.conditioning import user_model_of, user_models
from prlhf_kit.models.features import embed, load_embedder
from prlhf_kit.models.logprobs import score_pairs, tokenize_pairs
from prlhf_kit.models.saving import save_personalized
from prlhf_kit.training import new_users
from prlhf_kit.training.new_users import Adapted, Evidence, adapt, add_users, forget_users, placed, user_table, weigh

KINDS = [("individual", {"add_generic_user": False}), ("cluster", {"clusters": 3}), ("low_rank", {"rank": 2})]


def margins(model, tokenizer, pairs, rows):
    """DPO's reward margins without beta: under `rows`, against the reference."""
    with model.disable_adapter():
        reference = score_pairs(model, tokenizer, pairs)
    scores = score_pairs(model, tokenizer, pairs, rows)
    return scores.chosen_logp - scores.rejected_logp - reference.chosen_logp + reference.rejected_logp


@pytest.fixture
def trained(make_tiny):
    """`trained(kind, options)`: a PEFT model with users a, b, c whose LoRA and table are not zero, and its index."""

    def make(kind="individual", options=None):
        model = make_tiny(users=3, offsets=3.0 if kind == "cluster" else 0.5, kind=kind, **(options or {}))
        return with_lora(model), kit.UserIndex(["a", "b", "c"])

    return make


def new_pairs(model, tokenizer, row, users=("x", "y"), n=6, seed=0):
    """Pairs of new users who prefer what the user of `row` prefers: which of two random texts has the higher reward."""
    draw = torch.Generator().manual_seed(seed)
    words = "tea water hot leaf cup time good make drink milk".split()

    def text():
        return " ".join(words[i] for i in torch.randint(len(words), (4,), generator=draw).tolist())

    rows = [record(f"{user}{i}", user, f"Question {i}?", text(), text()) for user in users for i in range(n)]
    for pair, gap in zip(rows, margins(model, tokenizer, Dataset.from_list(rows), [row] * len(rows)), strict=True):
        if gap < 0:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(("kind", "options"), KINDS[:2])
def test_adapt_lowers_the_loss_and_changes_nothing_else(trained, tokenizer, kind, options):
    model, _ = trained(kind, options)
    pairs = new_pairs(model, tokenizer, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    known = weigh(model, tokenizer, pairs)
    at_generic = Evidence(known.rows[:1], known.margins[:, :1], known.reference)  # where everybody starts
    found = adapt(model, tokenizer, pairs, steps=8, learning_rate=0.05, beta=0.1, evidence=at_generic)
    assert found.start == [0, 0]
    own = found.own[[found.user_ids.index(user) for user in pairs["user_id"]]]
    with torch.no_grad():
        after = new_users.log_ratios(model, tokenize_pairs(tokenizer, pairs), own, tokenizer.pad_token_id).numpy()
    at_start = margins(model, tokenizer, pairs, [0] * len(pairs))
    gained = np.logaddexp(0, -0.1 * at_start) - np.logaddexp(0, 0.1 * (known.reference - after))  # of DPO's loss
    assert gained.groupby(pairs["user_id"][:]).mean().min() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert asked == {name: p.requires_grad for name, p in model.named_parameters()}
    nearest = adapt(model, tokenizer, pairs, steps=0, beta=1.0, evidence=known)
    mine = np.array(pairs["user_id"]) == "x"  # under each row, by hand
    losses = [np.log1p(np.exp(-margins(model, tokenizer, pairs, [row] * len(pairs))[mine])).mean() for row in range(4)]
    assert nearest.start[0] == np.argmin(losses)
    table = user_model_of(model).modules_to_save["default"]
    assert torch.equal(nearest.own, table.user_offsets(torch.tensor(nearest.start)))


def test_of_many_known_users_those_who_stand_for_the_rest_are_tried(trained, tokenizer):
    model, _ = trained()
    places = torch.randn(16, *user_models(model)[-1].own.shape[1:], generator=torch.Generator().manual_seed(0))
    for table in user_models(model):  # 70 users in 16 places
        table.own = torch.nn.Parameter(torch.cat([table.own.detach()[:1], places.repeat(5, 1, 1)[:70]]))
    pairs = Dataset.from_list([record("p", "x", "Which?", "This.", "That one.")])
    rows = weigh(model, tokenizer, pairs).rows
    assert rows[0] == 0
    assert sorted((row - 1) % 16 for row in rows[1:]) == list(range(16))


def test_heads_put_new_users_where_those_like_them_are(trained, tokenizer):
    model, index = trained()
    texts = ["Yes.", "Yes, and here is at length why it is so, with all of the reasons that there are."]

    def pairs_of(user, longer, n):
        chosen, rejected = texts[::-1] if longer else texts
        return [record(f"{user}{i}", user, f"Is it {i}?", f"{chosen} {i}", f"{rejected} {i}") for i in range(n)]

    known = [pair for user in index.user_ids for pair in pairs_of(user, user == "b", 8)]
    new = Dataset.from_list(pairs_of("y", False, 2) + pairs_of("x", True, 2))
    embedder, known = load_embedder("attributes"), Dataset.from_list(known)
    encoder = heads.fit("encoder", known, embed({"known": known}, [embedder])["known"])
    found = placed(model, index, encoder, embedder, new)
    assert found.user_ids == ["x", "y"]
    assert found.start[0] == index.row("b") != found.start[1]
    assert torch.equal(found.own, user_table(model).user_offsets(torch.tensor(found.start)))
    nothing_personal = replace(encoder, shared=0 * encoder.shared)
    assert placed(model, index, nothing_personal, embedder, new).start == [0, 0]
    test = new_pairs(model, tokenizer, 2, ["x", "y"], n=6)
    data = DatasetDict(train=known, adapt_unseen=new, test_unseen=test)
    ranked, last = heads.ranked_when_placed(model, tokenizer, index, data, [2, 1], embedder)
    assert last.start[0] == index.row("b") != last.start[1]
    start = dict(zip(last.user_ids, last.start, strict=True))
    for k, rows in ((0, [0] * len(test)), (2, [start[user] for user in test["user_id"]])):
        wanted = margins(model, tokenizer, test, rows) > 0
        assert ranked[ranked.k == k].value.tolist() == wanted.astype(float).tolist()
    assert ranked.groupby("k").size().to_dict() == dict.fromkeys([0, 1, 2], len(test))


def test_users_are_fitted_together_as_alone(trained, tokenizer):
    model, _ = trained()
    pairs = new_pairs(model, tokenizer, 1, n=4)
    with pytest.raises(ValueError, match="no pairs to adapt to"):
        adapt(model, tokenizer, pairs.select([]))
    options = {"steps": 3, "learning_rate": 0.02, "beta": 0.5}
    both = adapt(model, tokenizer, pairs, batch_size=3, **options)
    for i, user in enumerate(both.user_ids):
        alone = adapt(model, tokenizer, pairs.filter(lambda row, user=user: row["user_id"] == user), **options)
        assert torch.allclose(both.own[i], alone.own[0], atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_added_saved_loaded_and_forgotten(trained, tokenizer, kind, options, base, tmp_path):
    model, index = trained(kind, options)
    pairs = new_pairs(model, tokenizer, 2)
    found = adapt(model, tokenizer, pairs, steps=2, learning_rate=0.05, beta=1.0)
    longer = add_users(model, index, found)
    assert longer.user_ids == ["a", "b", "c", "x", "y"]
    with pytest.raises(ValueError, match="user 'x' has row 4 already"):
        add_users(model, longer, found)
    scores = score_pairs(model, tokenizer, pairs, longer.rows(pairs["user_id"]))
    save_personalized(model, longer, tmp_path / "out")
    loaded, back = kit.load_personalized(tmp_path / "out", base)
    assert back.user_ids == longer.user_ids
    again = score_pairs(loaded, tokenizer, pairs, back.rows(pairs["user_id"]))
    assert again.chosen_logp.to_numpy() == pytest.approx(scores.chosen_logp.to_numpy(), abs=1e-4)
    file = tmp_path / "out" / "adapter_model.safetensors"
    gone = user_model_of(model).modules_to_save["default"].own[2].detach().clone()
    assert _holds(file, gone)
    shorter = forget_users(loaded, back, ["b"])
    assert shorter.user_ids == ["a", "c", "x", "y"]
    save_personalized(loaded, shorter, tmp_path / "out")
    assert not _holds(file, gone)
    assert "b" not in kit.UserIndex.load(tmp_path / "out")[0]
    fewer, index = kit.load_personalized(tmp_path / "out", base)
    after = score_pairs(fewer, tokenizer, pairs, index.rows(pairs["user_id"]))
    assert after.chosen_logp.to_numpy() == pytest.approx(scores.chosen_logp.to_numpy(), abs=1e-4)
    with pytest.raises(KeyError, match="'b' has no row"):
        forget_users(fewer, index, ["b"])


def test_the_generic_user_stays_the_mean_of_those_in_training(trained):
    model, index = trained("cluster", {"clusters": 3, "generic_is_mean": True})
    before = user_table(model)(torch.tensor([0]))
    add_users(model, index, Adapted(["x"], 9 * torch.ones(1, 3)))
    assert torch.allclose(user_table(model)(torch.tensor([0])), before)
    assert user_table(model).num_rows == 5


def _holds(file, values):
    """Whether any row of any tensor in a file is `values`."""
    return any(torch.equal(row, values) for tensor in load_file(file).values() for row in tensor)


def test_the_curve_is_what_adapt_gives(trained, tokenizer):
    model, _ = trained()
    known, test = new_pairs(model, tokenizer, 2, ["x"], n=4), new_pairs(model, tokenizer, 2, ["x"], n=6, seed=1)
    data = DatasetDict(adapt_unseen=known, test_unseen=test)
    ranked, largest = ranked_by_pairs(model, tokenizer, data, [2, 4], steps=2, learning_rate=0.05, beta=1.0)
    fitted = [(k, method) for k in (2, 4) for method in (NEAREST, MIXED, FITTED)]
    assert ranked.groupby(["k", "method"]).size().to_dict() == dict.fromkeys([(0, GENERIC_ROW), *fitted], 6)
    found, tested = weigh(model, tokenizer, known), weigh(model, tokenizer, test)
    likely = np.exp(-np.logaddexp(0, -found.margins).sum(0))  # of the known pairs under each row
    index = add_users(model, kit.UserIndex(["a", "b", "c"]), largest)
    for method, k, wanted in (
        (GENERIC_ROW, 0, margins(model, tokenizer, test, [0] * 6)),
        (NEAREST, 4, margins(model, tokenizer, test, largest.start * 6)),
        (MIXED, 4, (tested.margins * likely).sum(1)),
        (FITTED, 4, margins(model, tokenizer, test, index.rows(test["user_id"]))),
    ):
        right = ranked[(ranked.method == method) & (ranked.k == k)].value
        assert right.tolist() == [float(margin > 0) for margin in wanted]
