"""`prlhf bench` on a file of one's own and on few simulated pairs."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from prlhf_kit import cli
from prlhf_kit.data import registry
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.evaluation import bench, soups
from prlhf_kit.evaluation.outside_scores import BenchError, Scorer

SIMULATED = {"pairs_per_user": 3, "test_pairs_per_user": 1, "adapt_pairs_per_user": 2, "users_per_type": 2}


def pairs_of(user, split, n):
    """`ann` and `new` like many words, `bob` few; all answer questions of their own."""
    short, long = "Yes.", "Yes, and here is why it is so."
    texts = {"chosen": short, "rejected": long} if user == "bob" else {"chosen": long, "rejected": short}
    ids = [f"{user}-{split}-{i}" for i in range(n)]
    return [
        {"pair_id": i, "user_id": user, "user_text": f"I am {user}", "split": split, "prompt": f"Is it {i}?", **texts}
        for i in ids
    ]


@pytest.fixture
def write(tmp_path, base, monkeypatch):
    """`write(**changes)`: path of a configuration of two tiny datasets and an absent one, or of some of them."""
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path / "cache"))
    seen, unseen = {"train": 5, "test_seen": 2}, {"adapt_unseen": 2, "test_unseen": 3}
    users = {"ann": seen, "bob": seen, "new": unseen, "few": dict.fromkeys(unseen, 1)}
    rows = [row for user, splits in users.items() for s, n in splits.items() for row in pairs_of(user, s, n)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def write(*some, **changes):
        sets = {"files": {"path": str(tmp_path / "mine.jsonl"), "cluster": "prompt"}, "dsp": {"path": ""}}
        sets |= {"simulated": {"options": SIMULATED}}
        known = {"datasets": {n: sets[n] for n in some or sets}, "ks": [0, 2], "model": base}
        known |= {"embedder": "attributes", "methods": ["length", "per_user"], **changes}
        (tmp_path / "bench.yaml").write_text(yaml.safe_dump(known))
        return tmp_path / "bench.yaml"

    return write


def accuracies(out):
    table = pd.read_parquet(out / "bench" / "table.parquet")
    return table.set_index(["dataset", "split", "method", "k"]).value.sort_index()


def test_one_table_of_all_and_nothing_is_computed_twice(write, tmp_path, capsys, monkeypatch):
    out, config = tmp_path / "out", write()
    assert cli.main(["bench", str(config), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "dsp: left out, no data at path=''. Get them from https://github.com/Linear95/DSP" in said
    values = pd.read_parquet(out / "bench" / "bench.parquet")
    assert set(values) == {"dataset", *bench.COLUMNS}
    assert set(values[values.dataset == "files"].user_id) == {"ann", "bob", "new"}  # one new user has too few pairs
    found = accuracies(out)
    assert found["files", "test_unseen", "length rule per user", 2.0] == 1
    assert found.loc["files", "test_seen", "per user head"].item() == 1
    assert ("simulated", "test_seen", "oracle") in found.index.droplevel("k")
    page = (out / "index.html").read_text()
    assert all(text in page for text in ("new users, k = 2 (n = 3)", "bench/bench.png", "Configuration", 'id="bench"'))
    assert "notebook.html" not in page
    assert (out / "bench" / "bench.svg").exists()
    assert cli.main(["figures", str(out)]) == 0

    whole, parts = bench._Case.tables, set(out.glob("parts/*"))
    computed = []
    monkeypatch.setattr(bench._Case, "tables", lambda case, method: computed.append(method) or whole(case, method))
    assert cli.main(["bench", str(config), "--out", str(out)]) == 0
    assert not computed
    next(iter(parts)).unlink()  # as if killed before it
    assert cli.main(["bench", str(config), "--out", str(out), "--methods", "length,per_user,untrained"]) == 0
    assert len(computed) == 3
    assert set(out.glob("parts/*")) > parts


def test_language_models_and_trainings(write, base, tmp_path):
    config = Path(base, "config.json")  # its positions have no weights; a persona's prompt is long
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    training = {"preset": "cpu_dpo", "choices": 2, "settings": {"max_steps": 1, "max_length": 128}}
    config = write("files", methods=["untrained", "personas", "choices", *bench.TRAINED], training=training, steps=1)
    assert cli.main(["bench", str(config), "--out", str(tmp_path / "out")]) == 0
    found = accuracies(tmp_path / "out").dropna().reset_index()
    methods = {split: set(rows.method) for split, rows in found.groupby("split")}
    everywhere = {"untrained", "prompt with user text", "vanilla DPO", "P-DPO, generic row", soups.ALIKE}
    everywhere |= {bench.CHOICES, f"{bench.CHOICES}, by likelihood", bench.CHOICES_DPO, bench.PERSONA}
    new = {f"P-DPO, {of}" for of in ("fitted row", "nearest known user", "known users mixed", "placed by a head")}
    seen = {"P-DPO, user", soups.OWN, soups.OTHERS}
    assert methods == {"test_seen": everywhere | seen, "test_unseen": everywhere | new}
    assert set(found.k[found.method.isin(new)]) == {2}


def test_a_persona_is_written_from_known_choices_alone(write, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "generate", lambda *parts, **_: [asked.append(one) for one in parts[2]])
    assert cli.main(["bench", str(write("files", methods=["personas"])), "--out", str(tmp_path / "out")]) == 0
    told = [dialogue[-1]["content"] for dialogue in asked]
    assert [text.count("Asked: ") for text in told] == [3, 3, 1]  # the others check it
    assert not any(user in text for text in told for user in ("I am ann", "I am bob", "I am new"))
    assert set(accuracies(tmp_path / "out")) == {0.5}  # nothing was written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": {"psuops": {}}}, "Did you mean 'psoups'"),
        ({"datasets": {"dsp": {"path": "", "options": {"unsen": "normal"}}}}, "Did you mean 'unseen'"),
        ({"methods": ["pooled", "perhaps"]}, "no method 'perhaps'"),
        ({"modl": "a"}, "Did you mean 'model'"),
        ({"datasets": {"dsp": {"cluster": "promt"}}}, "no cluster 'promt'"),
        ({"ks": [0]}, r"ks: \[0\]: expected numbers of known pairs"),
    ],
)
def test_what_is_misspelt_is_refused_though_its_data_are_absent(changes, message, write):
    with pytest.raises((SchemaError, BenchError), match=message):
        bench.read(write(**changes))


def test_scores_from_outside(write, tmp_path, monkeypatch):
    config = write(methods=[])
    read = bench.load_data(bench.read(config))
    scores = {pair["pair_id"]: [1.0, 0.0] for split in ("test_seen", "test_unseen") for pair in read["files"][split]}
    (file := tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "wrong_module.py").write_text("def wrong(pairs):\n    return [[0, 1]] * len(pairs)\n")
    monkeypatch.syspath_prepend(tmp_path)
    outside = ["--outside", f"right={file}", "--outside", "wrong=wrong_module:wrong"]
    assert cli.main(["bench", str(config), "--out", str(tmp_path / "out"), *outside]) == 0
    found = accuracies(tmp_path / "out")
    assert (found["files", "test_unseen", "right", 0.0], found["files", "test_unseen", "wrong", 0.0]) == (1, 0)
    assert "right" not in found["simulated"].index.get_level_values("method")  # of which it has no pair

    def refused(text, message):
        with pytest.raises(BenchError, match=message):
            Scorer(text, read).ranked(read["files"]["test_seen"])

    first = next(iter(scores))
    for changed, message in (
        ({"nobody": [1, 0]}, "scores 1 pairs of no dataset .'nobody'"),
        ({first: [float("nan"), 0]}, f"no two finite scores of 1 of 4 pairs, the first '{first}'"),
        ({first: [1]}, "Expected NAME=FILE"),
    ):
        Path(tmp_path, "bad.json").write_text(json.dumps(scores | changed))
        refused(f"bad={tmp_path}/bad.json", message)
    file.write_text(json.dumps({first: [1, 0]}))
    refused(f"less={file}", "no two finite scores of 3 of 4 pairs")
    refused("gone=wrong_module:right", "PYTHONPATH")
    refused("none=missing_module:f", "No module named")


def test_published_numbers_have_their_source():
    table = bench.published(registry.DATASETS)
    assert list(table) == ["dataset", "method", "value", "model", "source"]
    assert table.source.str.contains(r"arXiv \d{4}\.\d{5}").all()
    assert table.value.between(0.5, 1).all()
