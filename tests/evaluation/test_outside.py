"""Answers made elsewhere: each format as its own program writes it, and files that are not as they should be."""

import json

import pandas as pd
import pytest
from raw import write_json, write_lines

from prlhf_kit.data import compred
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.decoding.answers import GuidedAnswer, write_pad
from prlhf_kit.evaluation.outside import for_run, read_answers
from prlhf_kit.evaluation.steering import prompt_text

USER, ASSISTANT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))


def rows_of(path, *args, **options):
    return read_answers(path, *args, **options).to_dict("records")


# P-RLHF --------------------------------------------------------------------------------------------------------------


def entry(prompt_id, prompt, input_text, output_text, **more):
    return {
        prompt_id: {
            "prompt_id": prompt_id, "our_user_id": 3, "prompt": prompt, **more, "input_text": input_text,
            "output_text": output_text, "output_length": 9,
        }
    }  # fmt: skip


def test_p_rlhf_prism(tmp_path):
    history = f"{USER}Hello?<|eot_id|>\n{ASSISTANT}Hi.<|eot_id|>\n{USER}Why?<|eot_id|>\n"
    who = "USER: 3 <|end_of_text|><|end_of_text|>||"
    shown = f"{who}\n{history}{ASSISTANT}"
    # decoded with its special tokens, and a beginning-of-text in front
    first = entry("user7_c12_1", who, shown, f"<|begin_of_text|>{shown}Because.<|eot_id|>", truncated_history=history)
    spaced = shown.replace("Hi.", "Hi .")  # decoding need not give back white space
    runs_on = f"So.\nIt is.<|end_of_text|>{ASSISTANT}More."
    second = entry("user8_c13_1", who, shown, f"<|begin_of_text|>{spaced}{runs_on}", truncated_history=history)
    empty = entry("user9_c14_1", who, shown, f"{shown}<|eot_id|>", truncated_history=history)
    path = write_json(tmp_path / "my-lora.json", first | second | empty)
    prompt = "Hello?\n\nHi.\n\nWhy?"
    assert rows_of(path) == [
        {"system": "my-lora", "user_id": "user7", "prompt": prompt, "answer": "Because."},
        {"system": "my-lora", "user_id": "user8", "prompt": prompt, "answer": "So.\nIt is."},
        {"system": "my-lora", "user_id": "user9", "prompt": prompt, "answer": ""},
    ]
    assert set(read_answers(path, system="P-DPO").system) == {"P-DPO"}


def test_p_rlhf_soups_and_tldr(tmp_path):
    asked = "<|user|>\nHow do I bake? \n<|assistant|>\n"
    shown = f"USER: 2 </s> </s> || {asked}"
    soups = write_json(tmp_path / "soups.json", entry("2_0", asked, shown, f"<s> {shown}Mix it.</s>"))
    assert rows_of(soups) == [{"system": "soups", "user_id": "2", "prompt": "How do I bake?", "answer": "Mix it."}]
    asked = "SUBREDDIT: r/tifu\nTITLE: A\nPOST: B\nTL;DR: "
    shown = f"<|endoftext|>USER: 0<|endoftext|>||{asked}"
    tldr = write_json(tmp_path / "tldr.json", entry("0_5", asked, shown, f"{shown}I fell.<|endoftext|>"))
    assert rows_of(tldr) == [{"system": "tldr", "user_id": "0", "prompt": asked.strip(), "answer": "I fell."}]


# PAD and ARGS --------------------------------------------------------------------------------------------------------


def test_pad_round_trip(tmp_path):
    answers = [GuidedAnswer("Yes.", [1], [1], seconds=1.5), GuidedAnswer("", [], [], seconds=0.5)]
    write_pad(tmp_path / "out_0.jsonl", ["Why?", "How?"], answers, "runs/pad_0")
    assert rows_of(tmp_path / "out_0.jsonl") == [
        {"system": "runs/pad_0", "user_id": None, "prompt": "Why?", "answer": "Yes.", "seconds": 1.5},
        {"system": "runs/pad_0", "user_id": None, "prompt": "How?", "answer": "", "seconds": 0.5},
    ]


@pytest.mark.parametrize("write", [write_json, write_lines])
@pytest.mark.parametrize("before", [True, False])
def test_pad_of_three_fields(tmp_path, write, before):
    said = [("ann", "Why?", " Yes."), (None, "How?", "")]
    rows = [{"prompt": p, "response": p + a if before else a, "method": "PAD", "user_id": user} for user, p, a in said]
    found = rows_of(write(tmp_path / "a.txt", rows))
    assert found == [
        {"system": "PAD", "user_id": "ann", "prompt": "Why?", "answer": "Yes."},
        {"system": "PAD", "user_id": None, "prompt": "How?", "answer": ""},
    ]


def test_pad_with_what_the_chat_template_leaves(tmp_path):
    """PAD's program decodes the whole chat without its special tokens, and looks for the prompt in front in vain."""
    prompt = "[Guidelines] Be (very) kind. [Instruction] Why? "
    chat = f"user\n\n{prompt.strip()}assistant\n\n"
    results = [f"{chat}Yes.", f"system\n\nBe good.{chat}No. Ask the user\n\nor the assistant\n\nagain."]
    rows = [
        {"prompt": prompt, "result": r, "response": prompt + r, "elapsed": 1, "method": f"PAD_{i}"}
        for i, r in enumerate(results)
    ]
    expected = ["Yes.", "No. Ask the user\n\nor the assistant\n\nagain."]
    assert read_answers(write_json(tmp_path / "a.json", rows)).answer.tolist() == expected
    for row in rows:
        del row["result"]
    assert read_answers(write_json(tmp_path / "b.json", rows)).answer.tolist() == expected


# ComPreD -------------------------------------------------------------------------------------------------------------


def test_compred(tmp_path):
    rows = [
        {"title": "Why?", "post": " I wonder. ", "domain": "askscience_test", "response": {"1": " Because.\n"}},
        {"title": "How?", "post": "", "domain": "personalfinance", "response": "So."},
        {"title": "Who?", "post": None, "domain": "personalfinance", "response": {"1": ""}},
    ]
    assert rows_of(write_lines(tmp_path / "outputs.jsonl", rows), system="ComPO") == [
        {"system": "ComPO", "user_id": "askscience", "prompt": "Why?\n\nI wonder.", "answer": "Because.",
         "user_text": "r/askscience"},
        {"system": "ComPO", "user_id": "personalfinance", "prompt": "How?", "answer": "So.",
         "user_text": "r/personalfinance"},
        {"system": "ComPO", "user_id": "personalfinance", "prompt": "Who?", "answer": "",
         "user_text": "r/personalfinance"},
    ]  # fmt: skip
    assert read_answers(write_lines(tmp_path / "base.jsonl", rows[:1])).system.tolist() == ["base"]


def test_compred_names_users_and_prompts_as_the_dataset_does(compred_folder, tmp_path):
    prompts = compred.prompts(compred_folder, "finance")
    rows = [{"title": "Why?", "post": "", "domain": "financeA_test", "response": {"1": "x"}}]
    (found,) = rows_of(write_lines(tmp_path / "outputs.jsonl", rows))
    assert [found["user_id"]] == prompts["user_id"]
    assert [found["user_text"]] == prompts["user_text"]
    assert [found["prompt"]] == [prompt_text(prompt) for prompt in prompts["prompt"]]


# AlpacaEval ----------------------------------------------------------------------------------------------------------


def test_alpaca_eval(tmp_path):
    both = {"generator": "m", "dataset": "koala", "datasplit": "eval"}
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3", **both},
        {"instruction": "Why?", "input": "", "output": " ", **both},
    ]
    path = write_json(tmp_path / "model_outputs.json", rows)
    assert rows_of(path) == [
        {"system": "m", "user_id": None, "prompt": "Add.\n\n1, 2", "answer": "3", "dataset": "koala"},
        {"system": "m", "user_id": None, "prompt": "Why?", "answer": "", "dataset": "koala"},
    ]
    unnamed = write_json(tmp_path / "ref.json", [{"instruction": "Why?", "output": "So."}])
    assert read_answers(unnamed, system="reference").system.tolist() == ["reference"]


# Files that are not as they should be --------------------------------------------------------------------------------

PAD = {"prompt": "Why?", "response": "Why? Yes.", "method": "PAD"}
ALPACA = {"instruction": "Add.", "output": "3", "generator": "m"}


def test_the_format_is_found_out_or_named(tmp_path):
    path = write_json(tmp_path / "a.json", [PAD | ALPACA])
    with pytest.raises(ValueError, match=r"could be pad or alpaca_eval: its first row has prompt, .* Pass `format`"):
        read_answers(path)
    assert read_answers(path, "pad").answer.tolist() == ["Yes."]
    assert read_answers(path, "alpaca_eval").answer.tolist() == ["3"]
    wrong = {"compred": "row 1 of .* has no 'domain', expected text", "csv": "format='csv'"}
    for format, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            read_answers(path, format)


def test_beginnings_and_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps([PAD]), encoding="utf-8")
    assert read_answers(path).answer.tolist() == ["Yes."]
    one, two = (
        json.dumps(PAD),
        json.dumps(PAD | {"prompt": "A\u2028B", "response": "A\u2028B\u2028C"}, ensure_ascii=False),
    )
    path.write_text(f"\n{one}\r\n\n{two}\n", encoding="utf-8")  # a line separator within a text ends no line
    assert read_answers(path).answer.tolist() == ["Yes.", "C"]
    path.write_text(one)
    assert read_answers(path).answer.tolist() == ["Yes."]


COMPRED = {"title": "Why?", "post": "", "domain": "x", "response": "a"}
P_RLHF = {"prompt_id": "1_1", "input_text": "a", "output_text": "ab"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAD | {"response": None}], "row 1 of .*a.json has response = null, expected text; .* an empty answer is"),
        ([PAD | {"result": None}], "result = null"),
        ([PAD | {"prompt": ["Why?"]}], r'prompt = \["Why\?"\]'),
        ([PAD | {"method": 3}], "method = 3"),
        ([PAD, PAD | {"prompt": "How?", "response": "So."}], "some responses in .* begin with their prompt"),
        (
            [PAD, {"prompt": "Why?", "method": "PAD"}],
            "row 2 of .* has no 'response', expected text; its fields are prompt, method",
        ),
        ([COMPRED | {"response": {"1": None}}], "1 = null"),
        ([COMPRED | {"response": {"1": "a", "5": "b"}}], r"row 1 of .* has 2 responses \(1, 5\), expected one"),
        ([COMPRED | {"post": 4}], "post = 4"),
        ([COMPRED, {"title": "How?", "domain": "x", "response": "a"}], "row 2 of .* has no 'post'"),
        ([ALPACA | {"output": None}], "output = null"),
        ([ALPACA | {"input": ["a"]}], "input = "),
        ([{"instruction": "Why?", "output": "So."}], "row 1 of .* has no 'generator', .* Or pass `system`"),
        ([P_RLHF | {"output_text": None}], "output_text = null"),
        ([P_RLHF | {"output_text": "b"}], "does not begin with its input_text"),
        ([P_RLHF | {"input_text": f"{USER}Why?<|eot_id|>\n{ASSISTANT}"}], "does not begin with its input_text"),
        (
            [PAD, PAD | {"prompt": "How?", "response": "How? So."}, PAD],
            r"1 of 3 answers .*, first row 3 \('PAD', None, 'W",
        ),
        ([{"question": "Why?", "answer": "So."}], "none of the known formats: its first row has question, answer"),
        ([PAD, 7], "row 2 of .* is '7', expected a JSON object"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_answers(write_json(tmp_path / "a.json", rows))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[3]", "3", '"x"', "{", "[{]", "\n", '["a"]'])
def test_files_without_answers(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json (is not JSON|has no answers|is '(3|a)', expected a JSON object)"):
        read_answers(path)


def test_files_that_were_cut_off_or_are_not_utf_8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAD) + "\n\n" + json.dumps(PAD)[:20])
    with pytest.raises(ValueError, match=r"line 3 of .*a\.jsonl is not JSON .* may have been cut off"):
        read_answers(path)
    path.write_bytes(json.dumps([PAD | {"method": "é"}], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not UTF-8 .* Save it as UTF-8"):
        read_answers(path)


def test_users_and_systems_keep_answers_apart(tmp_path):
    apart = [PAD | {"user_id": 1}, PAD | {"user_id": 2}, PAD | {"method": "ARGS"}]
    assert read_answers(write_json(tmp_path / "a.json", apart)).user_id.tolist() == ["1", "2", None]


def test_answers_for_a_run():
    rows = [("ann", "p", "1"), ("bob", "p", "2"), ("ann", "other", "3"), (None, "q", "4")]
    answers = pd.DataFrame([("s", *row) for row in rows], columns=list(ANSWERS)).assign(seconds=1.0)
    found = for_run(answers, ["ann", "eve"], ["p", "q"])
    assert found.columns.tolist() == list(ANSWERS)
    assert found[["user_id", "prompt", "answer"]].to_numpy().tolist() == [
        ["ann", "p", "1"], ["ann", "q", "4"], ["eve", "q", "4"]]  # fmt: skip
    spaced = for_run(answers, ["ann"], ["p\nTL;DR: ", "q "])  # TL;DR's prompts end so, and read ones don't
    assert spaced.prompt.tolist() == ["q "]
    with pytest.raises(ValueError, match="none of 4 answers is to one of the 1 users and 1 prompts of this run"):
        for_run(answers, ["eve"], ["p"])


def test_half_a_character_is_refused_with_its_row(tmp_path):
    rows = [{"instruction": f"Q{i}", "output": "cut \ud83d" if i == 3 else "fine", "generator": "g"} for i in range(6)]
    with pytest.raises(ValueError, match=r"row 4 of .*field 'output': .*cut ' stands half a character"):
        read_answers(write_json(tmp_path / "a.json", rows))
