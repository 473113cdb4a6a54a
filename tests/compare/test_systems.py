import shutil

import pytest
import torch

import prlhf_kit as kit
from prlhf_kit.compare import systems
from prlhf_kit.data import simulated
from prlhf_kit.data.schema import message
from prlhf_kit.decoding.guides import ImplicitReward
from prlhf_kit.runs.stage import StageError
from prlhf_kit.training.controls import load_control

PROMPT = message("user", "How do I make tea?")


def test_a_runs_systems_share_one_base(offered):
    names = ["base model", "vanilla DPO", "P-DPO", "PAD", "prompt with user text"]
    assert [system.name for system in offered.systems] == names
    assert [system.reads for system in offered.systems] == [None, None, "user_id", "user_id", "words"]
    wanted = {p.data_ptr() for p in offered.systems[0].guide.model.parameters()}
    for system in offered.systems[1:]:
        assert wanted <= {p.data_ptr() for p in system.guide.model.parameters()}, system.name
    assert set(offered.fingerprints) == {"base model", "P-DPO", "vanilla DPO"}


def test_people_are_users_a_new_one_and_anybody(offered, run):
    ids = ["structured-1", "companion-1", "formal-1", "casual-1", "casual-2", None]
    assert [user.user_id for user in offered.users] == ids
    new = offered.users[-2]
    assert (new.words, new.name, new.fitted) == ("I am casual-2.", "casual-2 (new, 2 pairs known)", 2)
    assert offered.systems[2].guide.users.row("casual-2") == 5  # behind those of the saved model
    again = systems.of_run(*run, k=2, steps=1, users=["formal-1", "formal-1"])  # from the cache
    assert [user.user_id for user in again.users] == ["formal-1", "casual-2", None]
    rows = [one.systems[2].guide.model.state_dict() for one in (offered, again)]
    own = next(name for name in rows[0] if name.endswith("default.own"))
    assert torch.equal(rows[0][own][5], rows[1][own][5])
    assert again.fingerprints == offered.fingerprints
    few = systems.of_run(*run, k=5, steps=0)  # the same user, fitted to another number of pairs
    assert few.users[-2].fitted == 3  # all that there are
    assert {name for name, f in few.fingerprints.items() if f != offered.fingerprints[name]} == {"P-DPO"}


@pytest.mark.parametrize(("system", "row"), [("vanilla DPO", None), ("P-DPO", 2), ("P-DPO", 0)])
def test_at_full_vocabulary_and_w_1_a_system_is_its_policy(offered, run, tokenizer, system, row):
    one = next(s for s in offered.systems if s.name == system)
    user = systems.ANYONE if row == 0 else offered.users[1]
    *_, last = one.stream(PROMPT, user, weight=7.0, max_new_tokens=8)  # its own weight counts
    if row is None:
        model = load_control(run[0] / "03_pdpo_training" / "dpo", run[1]).model
    else:
        model, _ = kit.load_personalized(run[0] / "03_pdpo_training" / "pdpo", run[1])
    [wanted] = kit.generate(model, tokenizer, [PROMPT], None if row is None else [row], max_new_tokens=8)
    assert last.text == wanted
    assert one.ended(last, 8) == (last.tokens[-1] == tokenizer.eos_token_id)
    assert one.ended(last, 9)


def test_rewards_are_the_policys_and_the_simulated_users_own(offered, run, tokenizer):
    model, index = kit.load_personalized(run[0] / "03_pdpo_training" / "pdpo", run[1])
    reward = ImplicitReward(kit.PAD(model, index), tokenizer, unfinished=True)
    utility = simulated.population(users_per_type=2).utility
    for user in (offered.users[0], systems.ANYONE):
        found = {name: of(user, PROMPT, "Boil it.") for name, of in offered.rewards.items()}
        wanted = reward.score([PROMPT], ["Boil it."], [user.user_id]).item()
        assert found["personal reward, nats"] == pytest.approx(wanted, abs=1e-4)
        known = user.user_id and pytest.approx(utility([user.user_id], ["Boil it."])[0])
        assert found["true utility, SD"] == known


def test_what_can_not_be_offered_is_said(run, tmp_path):
    with pytest.raises(StageError, match="written by notebook 01_data_preparation"):
        systems.of_run(tmp_path / "none", run[1])
    with pytest.raises(ValueError, match="has no system 'PAD, PersRM'"):
        systems.of_run(*run, systems=["PAD, PersRM"], k=0)
    with pytest.raises(KeyError, match="'zoe' has no row"):
        systems.of_run(*run, users=["zoe"])
    some = systems.of_run(*run, systems=["PAD"], prompts=["Why?"], k=0)
    assert ([s.name for s in some.systems], some.prompts) == (["PAD"], [message("user", "Why?")])
    assert len(some.users) == 5


def test_prompts_that_tell_most_come_first(run, monkeypatch):
    monkeypatch.setattr(systems.heads, "fit", lambda *_: None)
    monkeypatch.setattr(systems.heads, "most_informative", lambda *_: [7, 2])
    offered = systems.of_run(*run, systems=["base model"], informative=True, n_prompts=2, k=0)
    assert offered.prompts == [offered.data["test_seen"][i]["prompt"] for i in (7, 2)]


def test_models_all_of_whose_weights_were_trained(run, tmp_path):
    folder, base = run
    shutil.copytree(folder / "01_data_preparation", tmp_path / "01_data_preparation")
    for name in ("pdpo", "dpo"):
        model = kit.load_model(base)
        with torch.no_grad():
            model.lm_head.weight += torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        if name == "pdpo":
            kit.condition(model, kit.IndividualUserModel(2, model.get_input_embeddings(), 3))
        kit.save_personalized(model, kit.UserIndex(["formal-1"]), tmp_path / "03_pdpo_training" / name)
    offered = systems.of_run(tmp_path, base, k=0)
    changed = {}
    for system in offered.systems[:3]:
        *_, last = system.stream(PROMPT, offered.users[0], max_new_tokens=8)
        changed[system.name] = any(last.changed)
    assert changed == {"base model": False, "vanilla DPO": True, "P-DPO": True}  # against the base, not themselves
