"""What is wrong in a source is refused with the row and the way out, or dropped and counted."""

import gzip
import json

import numpy as np
import pytest
from datasets import Dataset
from raw import comparison, conversation, dialogue, pairs_of, participant, post, write_json, write_lines, write_parquet

import prlhf_kit as kit
from prlhf_kit.data import dsp
from prlhf_kit.data.dialogue import write_text_score
from prlhf_kit.data.schema import record


def webgpt(i):
    return {"question": {"full_text": f"Why {i}?"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": -0.5}


def gpt4llm(i):
    return {
        "user_input": f"Do {i}.",
        "responses_and_scores": [{"response": "a", "score": 2}, {"response": "b", "score": 1}],
    }


def prefeval(i):
    return {"topic": "t", "preference": f"I like {i}.", "question": f"Which {i}?",
            "classification_task_options": [f"right {i}", "wrong", "bad"]}  # fmt: skip


def text_score(i):
    return {"text": [dialogue(f"Q{i}", "yes"), dialogue(f"Q{i}", "no")], "score": [1.0, 0.0]}


def relabelled(i):
    return {"chosen": dialogue(f"Q{i}", "yes"), "rejected": dialogue(f"Q{i}", "no"), "objective": "helpful"}


def domains(i):
    return {"query": f"Q{i}", "responses": {d: f"{d} {i}" for d in dsp.DOMAINS}}


ROWS = {
    "tldr": lambda i: comparison(i, "ann", choice=1), "webgpt": webgpt, "gpt4llm": gpt4llm, "prefeval": prefeval,
    "hh": text_score, "hh_relabelled": relabelled, "dsp": domains,
}  # fmt: skip


def paths(value, at=()):
    """Every place in a row that holds a value of its own."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from paths(inner, (*at, key))


CASES = [(name, at) for name, make in ROWS.items() for at in paths(make(0))]


@pytest.mark.parametrize("value", [None, 3, "x", [], float("nan")], ids=str)
@pytest.mark.parametrize(("name", "at"), CASES, ids=lambda v: v if isinstance(v, str) else ".".join(map(str, v)))
def test_any_field_may_be_null_or_of_another_kind(name, at, value, tmp_path):
    """Either a SchemaError, or every pair that is left is one of the untouched rows or the changed one with a text."""
    rows = [ROWS[name](i) for i in range(12)]
    changed = rows[5]
    for key in at[:-1]:
        changed = changed[key]
    changed[at[-1]] = value
    path = write_lines(tmp_path / "rows.jsonl", rows)
    good = [ROWS[name](i) for i in range(12) if i != 5]
    clean = kit.data.load(name, write_lines(tmp_path / "good.jsonl", good))
    known = {pair for split in clean for pair in pairs_of(clean, split)}
    try:
        data = kit.data.load(name, path)
    except kit.data.SchemaError as error:
        assert len(str(error)) > 30  # noqa: PT017
        return
    found = {pair for split in data for pair in pairs_of(data, split)}
    extra = [pair for pair in found - known if value not in pair and "5" not in pair[1] and "None" not in pair[1]]
    assert found >= known or at[-1] in ("info", "worker", "choice", "split", "topic")
    assert not [pair for pair in extra if at[-1] not in ("text", "question", "user_input", "query", "preference")]


@pytest.mark.parametrize("choice", [None, "0", 2, True])
def test_a_choice_that_is_none_is_no_choice(choice, tmp_path):
    rows = [comparison(i, "ann") for i in range(3)]
    rows[1]["choice"] = choice
    with pytest.raises(kit.data.SchemaError, match="choice is"):
        kit.data.load("tldr", write_lines(tmp_path / "batch1.json", rows))


@pytest.mark.parametrize("label", [None, "1", 2])
def test_a_label_that_is_none_is_no_label(label, tmp_path):
    for split in ("train_pref", "test_pref"):
        rows = [post(i if split == "train_pref" else 100 + i, "a", k=i) for i in range(4)]
        rows[1]["labels"] = label
        write_lines(tmp_path / "history" / f"{split}.jsonl", rows)
    with pytest.raises(kit.data.SchemaError, match="labels is"):
        kit.data.load("compred", tmp_path, factors="history")


def test_a_missing_score_is_left_out_of_personalllm(personalllm_folder):
    options = {"users": 5, "pairs_per_user": 59, "test_pairs_per_user": 5}
    file = personalllm_folder / "data" / "train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(file)).to_list()
    rows[7]["response_3_gemma_2b"] = None
    write_parquet(file, rows)
    data, report = kit.data.load_with_report("personalllm", personalllm_folder, **options)
    assert set(data["train"]["p_chosen"]) == {1.0}
    assert not any(pair[1] == "Prompt 7" for pair in pairs_of(data))
    assert report.table.reason.tolist() == ["prompt without all of its scores"]
    with pytest.raises(kit.data.SchemaError, match="at least 0"):
        kit.data.load("personalllm", personalllm_folder, temperature=-1.0)


def test_null_texts_are_dropped_and_counted(tmp_path):
    rows = [domains(i) for i in range(30)]
    rows[3]["responses"]["academy"] = None
    data, report = kit.data.load_with_report("dsp", write_json(tmp_path / "d.json", rows))
    assert report.table.reason.unique().tolist() == ["empty response"]
    assert report.table.pairs.sum() == 8
    assert sum(map(len, data.values())) == 30 * 20 - 8


def test_csv_with_another_number_of_fields_is_refused(tmp_path):
    for line in ("ann,Q1,good,bad,note", "ann,Q1,good"):
        path = tmp_path / "x.csv"
        path.write_text(f"user_id,prompt,chosen,rejected\n{line}\n")
        with pytest.raises(kit.data.SchemaError, match="not as many fields as the header"):
            kit.data.load("files", path)


def test_whole_dialogues_and_wrong_roles(tmp_path):
    asked, yes, no = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "yes"), ("assistant", "no")))
    whole = {
        "user_id": "ann",
        "prompt": "Q?",
        "chosen": [asked, yes],
        "rejected": [asked, no],
    }  # as UltraFeedback has it
    data = kit.data.load("files", write_lines(tmp_path / "w.jsonl", [whole]), test_share=0)
    assert data["train"][0]["prompt"] == [asked]
    assert data["train"][0]["chosen"] == [yes]
    for wrong in ({"chosen": [asked]}, {"prompt": [asked, yes]}, {"chosen": [asked, yes], "rejected": "no"}):
        path = write_lines(
            tmp_path / "x.jsonl", [{"user_id": "a", "prompt": "Q?", "chosen": "y", "rejected": "n", **wrong}]
        )
        with pytest.raises(kit.data.SchemaError, match="has the roles"):
            kit.data.load("files", path, test_share=0)


def test_files_beside_named_splits_are_not_overlooked(tmp_path):
    row = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
    write_lines(tmp_path / "train.jsonl", [row])
    (tmp_path / "train_config.yaml").write_text("x: 1")  # no data
    assert len(kit.data.load("files", tmp_path)["train"]) == 1
    write_lines(tmp_path / "validation.jsonl", [row])
    with pytest.raises(kit.data.SchemaError, match=r"'validation.jsonl', of which the split is unknown"):
        kit.data.load("files", tmp_path)


def test_unseen_users_must_exist_and_may_be_one_name(tmp_path):
    rows = [
        {"user_id": u, "prompt": f"{u}{i}?", "chosen": "a", "rejected": "b"}
        for u in ("a", "an", "ann")
        for i in range(9)
    ]
    path = write_lines(tmp_path / "x.jsonl", rows)
    data = kit.data.load("files", path, unseen="ann", test_share=0.3)
    assert set(data["adapt_unseen"]["user_id"]) == {"ann"}
    assert set(data["train"]["user_id"]) == {"a", "an"}
    with pytest.raises(kit.data.SchemaError, match="no user 'zoe'"):
        kit.data.load("files", path, unseen=["zoe"])
    numbered = write_lines(tmp_path / "n.jsonl", [{**row, "user_id": len(row["user_id"])} for row in rows])
    assert set(kit.data.load("files", numbered, unseen=[2], test_share=0.3)["adapt_unseen"]["user_id"]) == {"2"}


def test_turns_of_one_dialogue_stay_in_one_split(tmp_path):
    rows = []
    for i in range(60):
        first = dialogue(f"Start {i}", "ok")
        for text in (f"\n\nHuman: Start {i}", f"{first}\n\nHuman: And then?"):
            rows.append({"chosen": f"{text}\n\nAssistant: yes {i}", "rejected": f"{text}\n\nAssistant: no"})
    path = write_lines(tmp_path / "helpful.jsonl", rows)
    data = kit.data.load("hh", path, test_share=0.3)
    first = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in data.items()}
    assert not first["train"] & first["test_seen"]
    assert len(data["test_seen"]) > 10


def test_prompts_that_shortening_makes_equal_are_dropped_not_refused(tokenizer):
    talk = [
        {"role": "user", "content": "word " * 50},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "Now?"},
    ]
    other = [{**talk[0], "content": "other " * 50}, *talk[1:]]
    train = [record("p0", "ann", talk, "a", "b"), record("p1", "ann", "Q?", "a", "b")]
    test = [record("t0", "ann", other, "a", "b"), record("t1", "ann", "New?", "a", "b")]
    from datasets import DatasetDict

    data = DatasetDict(train=Dataset.from_list(train), test_seen=Dataset.from_list(test))
    clean, report = kit.data.check(data, tokenizer, 40)
    assert clean["test_seen"]["pair_id"] == ["t1"]
    assert report.shortened == 1
    assert "1 prompts without their oldest turns" in str(report)


def test_prepared_folders_keep_their_datasets_rules(tmp_path):
    from prlhf_kit.cli import main

    rows = [prefeval(i) for i in range(40)]
    rows[4]["question"] = "Which " + "very " * 40 + "one?"
    source = write_json(tmp_path / "src" / "mcq.json", rows)
    assert main(["data", "prepare", "prefeval", "--path", str(source), "--out", str(tmp_path / "out")]) == 0
    data, report = kit.data.load_with_report(
        str(tmp_path / "out"), tokenizer=kit.load_tokenizer(), max_prompt_tokens=60
    )
    assert report.checks.set_index("check").rule["user with too few pairs"] == "drop"
    assert sum(map(len, data.values())) == 39 * 2


def test_prepare_replaces_nothing_but_prepared_folders(tmp_path, capsys):
    from prlhf_kit.cli import main

    row = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
    source = write_lines(tmp_path / "src" / "x.jsonl", [row])
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    line = ["data", "prepare", "files", "--path", str(source.parent), "-o", "test_share", "0", "--force", "--out"]
    for out, why in (
        (victim, "is no prepared dataset"),
        (source.parent, "lie in each other"),
        (tmp_path, "lie in each other"),
    ):
        assert main([*line, str(out)]) == 2
        assert why in capsys.readouterr().err
    assert (victim / "thesis.txt").exists()
    assert source.exists()


def test_psoups_wish_of_few_and_of_wishless_questions(tmp_path):
    from prlhf_kit.data.psoups import PROFILES

    for user in PROFILES:
        rows = [
            {"user_input": f"Is {c} a good capital? Be brief.", "completion_a": "yes", "completion_b": "no"}
            for c in "AB"
        ]
        write_json(tmp_path / f"{user}.json", rows)
    data = kit.data.load("psoups", tmp_path, test_share=0)
    assert {pair[1] for pair in pairs_of(data)} == {"Is A a good capital?", "Is B a good capital?"}
    write_json(
        tmp_path / "P1A.json", [{"user_input": q, "completion_a": "a", "completion_b": "b"} for q in ("What", "Who")]
    )
    with pytest.raises(kit.data.SchemaError, match="do not all end with the same sentence"):
        kit.data.load("psoups", tmp_path)


def test_prism_goes_on_after_a_turn_without_a_choice(tmp_path):
    write_lines(tmp_path / "survey.jsonl", [participant(i) for i in range(20)])
    talks = [conversation(10 * i + k, f"user{i}", turns=3) for i in range(20) for k in range(4)]
    for message in talks[0]["conversation_history"]:
        if message["turn"] == 1:
            message["if_chosen"] = False if message["role"] == "model" else None
    write_lines(tmp_path / "conversations.jsonl", talks)
    data = kit.data.load("prism", tmp_path)
    rows = [row for split in data.values() for row in split if row["pair_id"].startswith("c0-")]
    assert [row["pair_id"] for row in rows] == ["c0-0-0", "c0-0-1", "c0-0-2", "c0-2-0"]
    assert [m["role"] for m in rows[3]["prompt"]] == ["user", "assistant", "user"]
    assert rows[3]["prompt"][2]["content"] == "Hello 0.1?\n\nHello 0.2?"


def test_text_score_ties_in_part_and_texts_it_cannot_hold(tmp_path):
    row = {"text": [dialogue("Q", "a"), dialogue("Q", "b"), dialogue("Q", "c")], "score": [1.0, 1.0, 0.0]}
    data, report = kit.data.load_with_report("gpt4llm", write_json(tmp_path / "g.json", [row]), test_share=0)
    assert len(data["train"]) == 2
    assert report.table[["reason", "pairs"]].to_dict("records") == [{"reason": "tie", "pairs": 1}]
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}]
    for bad in (record("p", "u", "Q", "hello\n\nHuman: hi", "b"), record("p", "u", system, "a", "b")):
        with pytest.raises(kit.data.SchemaError, match="can't hold"):
            write_text_score([bad], tmp_path / "out.json")


def test_tldr_from_save_to_disk_folders_and_news_articles(tmp_path):
    for split, name in (("train", "train"), ("validation", "valid1")):
        rows = [comparison(f"{split}{i}", "ann", name) for i in range(3)]
        rows[1]["info"] |= {"post": None, "article": "News.", "subreddit": None, "title": None}
        rows[2]["info"] |= {"post": None}
        Dataset.from_list(rows).save_to_disk(tmp_path / split)
    data, report = kit.data.load_with_report("tldr", tmp_path)
    assert [pair[1][:15] for pair in pairs_of(data)] == ["SUBREDDIT: r/ti", "ARTICLE: News.\n"]
    assert "empty prompt" in set(report.table.reason)


def test_encodings_and_cut_files(tmp_path):
    row = {"user_id": "ann", "prompt": "Grüße?", "chosen": "a", "rejected": "b"}
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode())
    assert pairs_of(kit.data.load("files", tmp_path / "bom.jsonl", test_share=0))[0][1] == "Grüße?"
    whole = gzip.compress("\n".join(json.dumps(row) for _ in range(500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(kit.data.SchemaError, match="can't read"):
        kit.data.load("files", tmp_path / "cut.jsonl.gz")
    (tmp_path / "half.jsonl").write_text(json.dumps({**row, "chosen": "\ud83d"}))
    with pytest.raises(kit.data.SchemaError, match="surrogates"):
        kit.data.load("files", tmp_path / "half.jsonl")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("files", {"test_share": "abc"}, "from 0 to 1"),
        ("files", {"test_share": 2}, "from 0 to 1"),
        ("files", {"seed": -1}, "whole number, at least 0"),
        ("files", {"columns": "user_id"}, "can't be used as 'files'"),
        ("files", {"test_share": 1.0}, "gave no training pair"),
        ("tldr", {"top": 0}, "whole number, at least 1"),
        ("prism", {"max_characters": "a"}, "whole number"),
        ("dsp", {"domains": "music"}, "no domain 'music'"),
        ("compred", {}, "is a file; 'compred' needs the folder"),
        ("personalllm", {}, "is a file; 'personalllm' needs the folder"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(name, options, reason, tmp_path):
    row = {"user_id": "ann", "prompt": "Q?", "chosen": "a", "rejected": "b"}
    with pytest.raises(kit.data.SchemaError, match=reason):
        kit.data.load(name, write_lines(tmp_path / "x.jsonl", [row]), **options)


def test_many_clusters_have_the_bootstraps_interval():
    from prlhf_kit.evaluation import statistics as intervals

    rng = np.random.default_rng(0)
    values, clusters = rng.random(3000) < 0.6, np.arange(3000) // 2
    boot = intervals.cluster_bootstrap(values, clusters)
    many = intervals.MANY_CLUSTERS
    try:
        intervals.MANY_CLUSTERS = 10
        normal = intervals.cluster_bootstrap(values, clusters)
    finally:
        intervals.MANY_CLUSTERS = many
    assert normal.low == pytest.approx(boot.low, abs=0.003)
    assert normal.high == pytest.approx(boot.high, abs=0.003)
