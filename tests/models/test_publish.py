"""A personalised model on a hub that is a folder: what is there, what is not, and that it loads."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from training.conftest import make_trainer

import prlhf_kit as kit
from prlhf_kit.models import hub, publish


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A folder with one folder a repository."""
    place = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            name = repo_id if "/" in repo_id else f"me/{repo_id}"
            (place / name).mkdir(parents=True, exist_ok=exist_ok)
            (place / f"{name}.private").write_text(str(private))
            return SimpleNamespace(repo_id=name)

        def create_commit(self, repo_id, operations, commit_message):
            for added in operations:
                with added.as_file() as content:
                    (place / repo_id / added.path_in_repo).write_bytes(content.read())

    monkeypatch.setattr(publish, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", lambda name: str(place / name))
    monkeypatch.chdir(tmp_path)
    return place


def card_of(repository: Path) -> tuple[dict, str]:
    _, head, text = (repository / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_model_comes_back_without_its_users_ids(fake_hub, base, make_tiny, tokenizer, pairs, tmp_path):
    named = pairs.map(lambda row: {"user_id": row["user_id"].replace("a", "ann-a").replace("b", "ann-b")})
    trainer = make_trainer(make_tiny(users=3, offsets=0.5), tokenizer, named, "out")
    trainer.save_model()
    record = tmp_path / "run.json"
    metrics = {"accuracy/test_seen/P-DPO": 0.775, "worst_user/ann-b": 0.5, "of/zoe": 0.4, "unknown": None}
    record.write_text(json.dumps({"metrics": metrics, "provenance": {"data": {"fingerprint": "0f1e"}}}))
    about = {"base": "org/base", "dataset_name": "org/pairs", "licence": "cc-by-4.0", "record": record}
    kit.push_to_hub("out", "me/mine", **about)
    assert not any("ann-" in file.read_text("latin-1") for file in (fake_hub / "me" / "mine").iterdir())
    assert "zoe" not in card_of(fake_hub / "me" / "mine")[1]  # a user who was not in training
    assert not list(fake_hub.rglob("*.parquet")) + list(fake_hub.rglob("*.bin"))
    assert (fake_hub / "me" / "mine.private").read_text() == "True"
    head, text = card_of(fake_hub / "me" / "mine")
    assert (head["base_model"], head["license"], head["datasets"]) == ("org/base", "cc-by-4.0", ["org/pairs"])
    assert "org/pairs, fingerprint 0f1e" in text
    assert "| accuracy/test_seen/P-DPO | 0.775 |" in text
    model, users = kit.load_personalized("me/mine", base)
    assert users.user_ids == ["user-1", "user-2", "user-3"]
    question = {"input_ids": torch.tensor([[5, 6, 7]]), "user_rows": torch.tensor([2])}
    with torch.no_grad():
        assert torch.equal(model(**question).logits, trainer.model.eval()(**question).logits)
    Path("out", hub.MADE_FROM).write_text(json.dumps({"alpha": 0.3, "beta": 0.1}))
    kit.push_to_hub("out", "named", users=True, private=False, **about)
    assert "alpha=0.3, beta=0.1" in card_of(fake_hub / "me" / "named")[1]
    assert 'load_personalized("me/named")' in card_of(fake_hub / "me" / "named")[1]
    assert (fake_hub / "me" / "named.private").read_text() == "False"
    assert kit.load_personalized("me/named", base)[1].user_ids == ["ann-a", "ann-b", "c"]
    assert "worst_user/ann-b" in card_of(fake_hub / "me" / "named")[1]


def test_the_trainers_own_way_is_refused(fake_hub, make_tiny, tokenizer, pairs):
    trainer = make_trainer(make_tiny(users=3), tokenizer, pairs, "out")
    with pytest.raises(NotImplementedError, match="leaves user ids out"):
        trainer.push_to_hub()
    with pytest.raises(ValueError, match="would upload user ids, which are personal data"):
        make_trainer(make_tiny(users=3), tokenizer, pairs, "mine", push_to_hub=True, hub_model_id="me/mine")


def test_what_others_cant_load_is_refused(fake_hub, base, make_tiny, tokenizer, pairs):
    make_trainer(make_tiny(users=3), tokenizer, pairs, "out").save_model()
    (adapter := Path("out/adapter_config.json")).rename("whole.json")
    adapter.write_text("{")
    with pytest.raises(ValueError, match="property name"):
        kit.push_to_hub("out", "me/mine", base="org/base")
    Path("whole.json").rename(adapter)
    saved = json.loads(Path("out/users.json").read_text())
    Path("out/users.json").write_text(json.dumps(saved | {"base_model": base}))
    with pytest.raises(kit.ModelError, match=r"local folder .*pass its hub id as base"):
        kit.push_to_hub("out", "me/mine")
    Path("out/users.json").write_text(json.dumps(saved | {"user_model": None}))
    with pytest.raises(kit.ModelError, match="no personalised language model"):
        kit.push_to_hub("out", "me/mine")
    Path("out/reward.json").touch()
    with pytest.raises(kit.ModelError, match=r"--exclude users.json --exclude '\*.parquet'"):
        kit.push_to_hub("out", "me/mine")
    assert not fake_hub.exists()


def test_a_whole_model_too(fake_hub, base):
    model = kit.load_model(base)
    kit.condition(model, kit.ClusterUserModel(3, model.get_input_embeddings(), 2))
    kit.save_personalized(model, kit.UserIndex(["ann", "bob"]), "out")
    kit.push_to_hub("out", "me/whole", base="org/base")
    loaded, users = kit.load_personalized("me/whole")
    assert (type(loaded), type(loaded.user_model), len(users)) == (type(model), kit.ClusterUserModel, 3)
    assert loaded.reference_name == "org/base"
    assert 'load_tokenizer("org/base")' in card_of(fake_hub / "me" / "whole")[1]  # no tokenizer was saved beside it
