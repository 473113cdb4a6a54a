"""The small general datasets on rows of their real schema, and what any field of any source may hold."""

import itertools

import pytest
from raw import comparison, dialogue, pairs_of, refused, sizes, write

import prlhf_kit as kit
from prlhf_kit.data import dsp


def webgpt(i, score=0.5):
    scores = {"score_0": score, "score_1": -score}
    return {"question": {"full_text": f"Why {i}?"}, "answer_0": f"Zero {i}.", "answer_1": f"One {i}.", **scores}


def gpt4llm(i):
    answers = [{"response": f"{name} {i}", "score": score} for name, score in (("gpt4", 9), ("text", 7), ("opt", 7))]
    return {"user_input": f"Do {i}.", "responses_and_scores": answers}


def prefeval(i):
    options = [f"right {i}", f"wrong {i}", f"bad {i}", f"no {i}"]
    asked = {"topic": f"topic{i % 3}", "preference": f"I like {i}.", "question": f"Which {i}?"}
    return {**asked, "classification_task_options": options}


def text_score(i):
    return {"text": [dialogue(f"Q{i}", "yes"), dialogue(f"Q{i}", "no")], "score": [1.0, 0.0]}


def relabelled(i, objective="helpful"):
    return {"chosen": dialogue(f"Q{i}", "yes"), "rejected": dialogue(f"Q{i}", "no"), "objective": objective}


def test_webgpt(tmp_path):
    rows = [webgpt(i, score) for i, score in enumerate([0.5, -0.25, 0.0])]
    data, report = kit.data.load_with_report("webgpt", write(tmp_path / "webgpt.jsonl", rows), test_share=0)
    assert [pair[1:3] for pair in pairs_of(data)] == [("Why 0?", "Zero 0."), ("Why 1?", "One 1.")]
    assert report.table.reason.tolist() == ["tie"]
    assert report.counts == {"comparisons": 3}


def test_gpt4llm_and_its_cleaned_files(tmp_path):
    source = write(tmp_path / "comparison_data_v2.json", [gpt4llm(i) for i in range(10)])
    data, report = kit.data.load_with_report("gpt4llm", source)
    assert sum(sizes(data)) == 20
    assert report.table.pairs.sum() == 10  # ties
    assert all(chosen.startswith("gpt4") for split in data for _, _, chosen, _ in pairs_of(data, split))
    write(tmp_path / "d" / "gpt4llm.train.json", [text_score(i) for i in range(3)])
    write(tmp_path / "d" / "gpt4llm.test.json", [text_score(3)])
    assert sizes(kit.data.load("gpt4llm", tmp_path / "d")) == [3, 1, 0, 0]


def test_prefeval(tmp_path):
    data = kit.data.load("prefeval", write(tmp_path / "mcq.json", [prefeval(i) for i in range(30)]))
    assert set(data) == {"train", "test_unseen"}
    assert not set(data["train"]["user_id"]) & set(data["test_unseen"]["user_id"])
    assert sum(sizes(data)) == 90
    row = data["train"][0]
    assert (row["chosen"][0]["content"], row["user_text"], row["group"]) == ("right 0", "I like 0.", "topic0")


def test_hh_original_and_cleaned_files_agree(tmp_path):
    for subset in ("helpful", "harmless"):
        for split, n in (("train", 6), ("test", 3)):
            asked = [f"{subset} {split} {i}?" for i in range(n)]
            rows = [{"chosen": dialogue(question, "Yes."), "rejected": dialogue(question, "No.")} for question in asked]
            rows.append({"chosen": dialogue("A", "x"), "rejected": dialogue("B", "y")})
            write(tmp_path / "hub" / f"{subset}-base" / f"{split}.jsonl.gz", rows)
            scored = [{"text": [r["rejected"], r["chosen"]], "score": [0.0, 1.0]} for r in rows]
            write(tmp_path / "dsp" / f"{subset}.{split}.json", scored)
    found = [kit.data.load_with_report("hh", tmp_path / form) for form in ("hub", "dsp")]
    (data, _), (cleaned, _) = found
    assert sizes(data) == [12, 6, 0, 0]
    assert all(pairs_of(data, split) == pairs_of(cleaned, split) for split in data)
    for _, said in found:
        assert said.counts["helpful, train"] == 7
        assert set(said.table.reason) == {"the dialogues differ before their last answer"}
        assert said.table.pairs.sum() == 4
    only = kit.data.load("hh", tmp_path / "hub", subset="harmless")
    assert all(question.startswith("harmless") for _, question, _, _ in pairs_of(only))


def test_hh_relabelled(tmp_path):
    rows = [relabelled(i, ("helpful", "harmless")[i % 2]) for i in range(40)]
    rows.append({"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"], "objective": "harmless"})
    data, report = kit.data.load_with_report("hh_relabelled", write(tmp_path / "both.jsonl.gz", rows))
    assert report.table.empty  # two users may rank a prompt in opposite ways
    assert {pair[0] for pair in pairs_of(data) if pair[1] == "Q0"} in ({"helpful", "harmless"}, set())
    assert sum(sizes(data)) == 41
    refused("objective of row 0 is 'fun'", "hh_relabelled", write(tmp_path / "x.jsonl", [relabelled(0, "fun")]))


def test_turns_of_one_dialogue_stay_in_one_split(tmp_path):
    rows = []
    for i in range(40):
        for text in (f"\n\nHuman: Start {i}", f"{dialogue(f'Start {i}', 'ok')}\n\nHuman: And then?"):
            rows.append({"chosen": f"{text}\n\nAssistant: yes {i}", "rejected": f"{text}\n\nAssistant: no"})
    data = kit.data.load("hh", write(tmp_path / "helpful.jsonl", rows), test_share=0.3)
    first = {split: {prompt[0]["content"] for prompt in rows["prompt"]} for split, rows in data.items()}
    assert not first["train"] & first["test_seen"]


# Any field may be null or of another type -----------------------------------------------------------------------------

ROWS = {
    "tldr": lambda i: comparison(i, "ann", choice=1),
    "gpt4llm": gpt4llm,
    "prefeval": prefeval,
    "hh": text_score,
    "dsp": lambda i: {"query": f"Q{i}", "responses": {d: f"{d} {i}" for d in dsp.DOMAINS}},
}


def places(value, at=()):
    """Every place in a row that holds a value of its own."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from places(inner, (*at, key))


@pytest.mark.parametrize("name", list(ROWS))
def test_any_field_may_be_null_or_of_another_type(name, tmp_path):
    """Either a SchemaError, or every pair that is left is one of the untouched rows or the changed one with a text."""

    def pairs(rows):
        data = kit.data.load(name, write(tmp_path / "rows.jsonl", rows))
        return {pair for split in data for pair in pairs_of(data, split)}

    untouched = pairs([ROWS[name](i) for i in range(8) if i != 5])
    for at, value in itertools.product(places(ROWS[name](0)), (None, 3)):
        rows = [ROWS[name](i) for i in range(8)]
        changed = rows[5]
        for key in at[:-1]:
            changed = changed[key]
        changed[at[-1]] = value
        try:
            found = pairs(rows)
        except kit.data.SchemaError:
            continue
        extra = [pair for pair in found - untouched if "5" not in pair[1]]
        assert found >= untouched or at[-1] in ("info", "worker", "choice", "split", "topic"), at
        assert all("None" in pair[1] for pair in extra) or at[-1] in ("text", "question", "preference"), at
