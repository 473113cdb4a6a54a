"""Answers made elsewhere: each format as its own program writes it, and files that are not as they should be."""

import json

import pandas as pd
import pytest
from raw import write

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.load import load
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.evaluation.outside import for_run, read_answers

USER, ASSISTANT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))


def rows_of(path, *args, **options):
    found = read_answers(path, *args, **options)
    assert list(found) == list(ANSWERS)
    return [tuple(row) for row in found.to_numpy().tolist()]


def entry(prompt_id, prompt, input_text, output_text, **more):
    """As P-RLHF writes it."""
    row = {"prompt_id": prompt_id, "our_user_id": 3, "prompt": prompt, **more, "input_text": input_text}
    return {prompt_id: row | {"output_text": output_text, "output_length": 9}}


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
    path = write(tmp_path / "my-lora.json", first | second | empty)
    prompt = "Hello?\n\nHi.\n\nWhy?"
    assert rows_of(path) == [
        ("my-lora", "user7", prompt, "Because."),
        ("my-lora", "user8", prompt, "So.\nIt is."),
        ("my-lora", "user9", prompt, ""),
    ]


def test_p_rlhf_soups_and_tldr(tmp_path):
    post = "SUBREDDIT: r/tifu\nTITLE: A\nPOST: B\nTL;DR: "
    for asked, who, end, prompt in (
        ("<|user|>\nHow do I bake? \n<|assistant|>\n", "USER: 2 </s> </s> || ", "</s>", "How do I bake?"),
        (post, "<|endoftext|>USER: 2<|endoftext|>||", "<|endoftext|>", post.strip()),
    ):
        path = write(tmp_path / "a.json", entry("2_0", asked, who + asked, f"{who}{asked}Mix it.{end}"))
        assert rows_of(path) == [("a", "2", prompt, "Mix it.")]


def test_pad_whole_file(tmp_path):
    first = {"prompt": "Why?", "result": "Yes.", "response": "Why?Yes.", "elapsed": 1.5, "method": "runs/pad_0"}
    second = first | {"prompt": "How?", "result": "", "response": "How?"}
    path = write(tmp_path / "out_0.jsonl", [first, second])
    assert rows_of(path) == [("runs/pad_0", None, "Why?", "Yes."), ("runs/pad_0", None, "How?", "")]


def pad(prompt, response, **more):
    return {"prompt": prompt, "response": response, "method": "PAD", **more}


def community(title, post, domain, response):
    return {"title": title, "post": post, "domain": domain, "response": response}


def alpaca(instruction, given, output):
    return {"instruction": instruction, "input": given, "output": output, "generator": "m", "dataset": "koala"}


KIND = "[Guidelines] Be (very) kind. [Instruction] Why? "
CHAT = f"user\n\n{KIND.strip()}assistant\n\n"  # what PAD's decoding leaves of a chat
AGAIN = "No. Ask the user\n\nor the assistant\n\nagain."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pad("Why?", "Why? Yes.", user_id="ann"), ("PAD", "ann", "Why?", "Yes.")),
        (pad("Who?", "", user_id=7), ("PAD", "7", "Who?", "")),
        (pad("How?", "So.", user_id=None), ("PAD", None, "How?", "So.")),
        (pad(KIND, "-", result=f"{CHAT}Yes."), ("PAD", None, KIND, "Yes.")),
        (pad(KIND, f"{KIND}{CHAT}Yes."), ("PAD", None, KIND, "Yes.")),
        (pad(KIND, f"system\n\nBe good.{CHAT}{AGAIN}"), ("PAD", None, KIND, AGAIN)),
        (community("Why?", " I see. ", "tea_test", {"1": " So.\n"}), ("a", "tea", "Why?\nI see.", "So.")),
        (community("How?", None, "personalfinance", "So."), ("a", "personalfinance", "How?", "So.")),
        (alpaca("Add.", "1, 2", "3"), ("m", None, "Add.\n\n1, 2", "3")),
        (alpaca("Why?", "", " "), ("m", None, "Why?", "")),
    ],
)
def test_answers_of_other_programs(tmp_path, row, expected):
    for path in (write(tmp_path / "a.json", [row]), write(tmp_path / "a.jsonl", [row])):
        assert rows_of(path) == [expected]
        assert set(read_answers(path, system="reference").system) == {"reference"}


def test_compred_names_users_and_prompts_as_the_dataset_does(compred_folder, tmp_path):
    row = community("Title 1", "Text 1.", "financeA_test", {"1": "x"})
    [(_, user, prompt, _)] = rows_of(write(tmp_path / "outputs.jsonl", [row]))
    pair = load("compred", compred_folder, factors="finance")["train"][0]
    assert (user, prompt) == (pair["user_id"], prompt_text(pair["prompt"]))


# Files that are not as they should be --------------------------------------------------------------------------------

PAD, ALPACA, COMPRED = pad("Why?", "Why? Yes."), alpaca("Add.", "", "3"), community("Why?", "", "x", "a")
P_RLHF = {"prompt_id": "1_1", "input_text": "a", "output_text": "ab"}


def test_the_format_is_found_out_or_named(tmp_path):
    path = write(tmp_path / "a.json", [PAD | ALPACA])
    with pytest.raises(ValueError, match=r"could be pad or alpaca_eval: its first row has prompt, .* Pass `format`"):
        read_answers(path)
    assert read_answers(path, "alpaca_eval").answer.tolist() == ["3"]
    with pytest.raises(ValueError, match="format='csv'"):
        read_answers(path, "csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAD | {"response": None}], "row 1 of .*a.json has response = null, expected text; an empty answer is"),
        ([PAD, {"prompt": "Why?", "method": "PAD"}], "row 2 of .* has response = null"),
        ([PAD | {"method": 3}], "method = 3"),
        ([COMPRED | {"response": {"1": "a", "5": "b"}}], "row 1 of .* has 2 responses, expected one"),
        ([ALPACA | {"input": ["a"]}], "input = "),
        ([P_RLHF | {"output_text": "b"}], "does not begin with its input_text"),
        ([{"question": "Why?", "answer": "So."}], "none of the known formats: its first row has question, answer"),
        ([PAD, PAD | {"response": "cut \ud83d"}], "row 2 of .*field 'response': .*cut ' stands half a character"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_answers(write(tmp_path / "a.json", rows))


@pytest.mark.parametrize("text", ["[]", "3", "[{]", f"{json.dumps(PAD)}\n{json.dumps(PAD)[:20]}"])
def test_files_without_answers(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json (is no JSON|has no answers)"):
        read_answers(path)


def test_lines_and_byte_order_marks(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(PAD), encoding="utf-8")
    assert read_answers(path).answer.tolist() == ["Yes."]
    lines = [json.dumps(PAD | {"response": text}, ensure_ascii=False) for text in ("A\u2028B", "C")]
    path.write_text("\r\n\n".join(lines), encoding="utf-8")  # a line separator within a text ends no line
    assert read_answers(path).answer.tolist() == ["A\u2028B", "C"]


def test_answers_for_a_run():
    rows = [("ann", "p", "1"), ("bob", "p", "2"), ("ann", "other", "3"), (None, "q", "4")]
    answers = pd.DataFrame([("s", *row) for row in rows], columns=list(ANSWERS))
    found = for_run(answers, ["ann", "eve"], ["p", "q"])
    assert found[["user_id", "prompt", "answer"]].to_numpy().tolist() == [
        ["ann", "p", "1"],
        ["ann", "q", "4"],
        ["eve", "q", "4"],
    ]
    spaced = for_run(answers, ["ann"], ["p\nTL;DR: ", "q "])  # TL;DR's prompts end so, and read ones don't
    assert spaced.prompt.tolist() == ["q "]
    with pytest.raises(ValueError, match="none of 4 answers is to one of the 1 users and 1 prompts of this run"):
        for_run(answers, ["eve"], ["p"])
