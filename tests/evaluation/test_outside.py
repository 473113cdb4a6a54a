"""Answers made elsewhere: each format as its own program writes it, and files that are not as they should be."""

import json

import pandas as pd
import pytest
from raw import write_json, write_lines

from prlhf_kit.data import compred
from prlhf_kit.data.schema import ANSWERS
from prlhf_kit.decoding.answers import GuidedAnswer, write_pad
from prlhf_kit.evaluation.judges import judged, longer
from prlhf_kit.evaluation.outside import NEEDED, for_run, read_answers, write_alpaca_eval
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
    lost = write_json(tmp_path / "lost.json", entry("0_5", asked, shown, "I fell."))
    with pytest.raises(ValueError, match=r"row 1 of .*lost.json has an output_text that does not begin with its input"):
        read_answers(lost)
    cut = f"{USER}Why?<|eot_id|>\n{ASSISTANT}"
    nothing = write_json(tmp_path / "nothing.json", entry("u_c_0", "", cut, f"{USER}Why"))
    with pytest.raises(ValueError, match="does not begin with its input_text"):
        read_answers(nothing)


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


def test_pad_of_some_responses_with_their_prompt_is_unclear(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}? Yes.", "method": "PAD"} for i in range(3)]
    rows[1]["response"] = "Yes."
    with pytest.raises(ValueError, match=r"some responses in .* begin with their prompt.* Give the answer alone"):
        read_answers(write_json(tmp_path / "a.json", rows))
    rows[1]["result"] = "Yes."
    assert read_answers(write_json(tmp_path / "a.json", rows)).answer.tolist() == ["Yes."] * 3


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
    rows[1]["response"] = {"1": "a", "5": "b"}
    with pytest.raises(ValueError, match=r"row 2 of .* has 2 responses \(1, 5\), expected one"):
        read_answers(write_lines(tmp_path / "outputs.jsonl", rows))


def test_compred_names_users_and_prompts_as_the_dataset_does(compred_folder, tmp_path):
    prompts = compred.prompts(compred_folder, "finance")
    rows = [{"title": "Why?", "post": "", "domain": "financeA_test", "response": {"1": "x"}}]
    (found,) = rows_of(write_lines(tmp_path / "outputs.jsonl", rows))
    assert [found["user_id"]] == prompts["user_id"]
    assert [found["user_text"]] == prompts["user_text"]
    assert [found["prompt"]] == [prompt_text(prompt) for prompt in prompts["prompt"]]


# AlpacaEval ----------------------------------------------------------------------------------------------------------


def test_alpaca_eval(tmp_path):
    rows = [
        {
            "instruction": "Add.",
            "input": "1, 2",
            "output": "3",
            "generator": "m",
            "dataset": "koala",
            "datasplit": "eval",
        },
        {"instruction": "Why?", "input": "", "output": " ", "generator": "m", "dataset": "koala", "datasplit": "eval"},
    ]
    path = write_json(tmp_path / "model_outputs.json", rows)
    assert rows_of(path) == [
        {"system": "m", "user_id": None, "prompt": "Add.\n\n1, 2", "answer": "3", "dataset": "koala"},
        {"system": "m", "user_id": None, "prompt": "Why?", "answer": "", "dataset": "koala"},
    ]
    reference = write_json(tmp_path / "ref.json", [{"instruction": "Why?", "output": "So."}])
    with pytest.raises(ValueError, match=r"row 1 of .*ref.json lacks generator; .* Or pass `system`"):
        read_answers(reference)
    assert read_answers(reference, system="reference").system.tolist() == ["reference"]


def test_alpaca_eval_round_trip(tmp_path):
    columns = list(ANSWERS)
    answers = pd.DataFrame([("a", "ann", "Why?", "Yes. 😀"), ("b", "bob", "你好?", "")], columns=columns)
    write_alpaca_eval(tmp_path / "out.json", answers.assign(reward=1.0))
    assert read_answers(tmp_path / "out.json").to_dict("records") == answers.to_dict("records")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written[0] == {"generator": "a", "user_id": "ann", "instruction": "Why?", "output": "Yes. 😀"}


def test_what_was_read_can_be_judged(tmp_path):
    """Also answers that are for nobody in particular."""
    rows = [{"instruction": "Why?", "output": o, "generator": g} for o, g in (("one two", "a"), ("one", "b"))]
    found = judged(longer, read_answers(write_json(tmp_path / "a.json", rows)), [("a", "b")], "longer")
    assert found.preference.tolist() == ["a"]


# Files that are not as they should be --------------------------------------------------------------------------------

PAD = {"prompt": "Why?", "response": "Why? Yes.", "method": "PAD"}


def test_the_format_is_found_out_or_named(tmp_path):
    both = PAD | {"instruction": "Add.", "output": "3", "generator": "m"}
    path = write_json(tmp_path / "a.json", [both])
    with pytest.raises(ValueError, match=r"could be pad or alpaca_eval: its first row has prompt, .* Pass `format`"):
        read_answers(path)
    assert read_answers(path, "pad").answer.tolist() == ["Yes."]
    assert read_answers(path, "alpaca_eval").answer.tolist() == ["3"]
    with pytest.raises(
        ValueError, match=r"row 1 of .* lacks title, post, domain; it has prompt, .*'compred' needs title"
    ):
        read_answers(path, "compred")
    with pytest.raises(ValueError, match="format='csv': expected one of p-rlhf, pad, compred, alpaca_eval, or None"):
        read_answers(path, "csv")
    unknown = write_json(tmp_path / "b.json", [{"question": "Why?", "answer": "So."}])
    with pytest.raises(ValueError, match="none of the known formats: its first row has question, answer") as error:
        read_answers(unknown)
    assert all(f"{name}: {', '.join(fields)}" in str(error.value) for name, fields in NEEDED.items())


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


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[3]", "3", '"x"', "{", "[{]", "\n", '["a"]'])
def test_files_without_answers(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json (is not JSON|has no answers|is '(3|a)', expected a JSON object)"):
        read_answers(path)


def test_malformed_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAD) + "\n\n" + json.dumps(PAD)[:20])
    with pytest.raises(ValueError, match=r"line 3 of .*a\.jsonl is not JSON .* may have been cut off"):
        read_answers(path)
    path.write_text("[" + json.dumps(PAD) + ",\n{")
    with pytest.raises(ValueError, match=r"is not JSON .* expected a JSON array or object, or JSON lines"):
        read_answers(path)
    path.write_bytes(json.dumps([PAD | {"method": "é"}], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not UTF-8 .* Save it as UTF-8"):
        read_answers(path)
    path.write_text(json.dumps(PAD) + "\n7\n")
    with pytest.raises(ValueError, match=r"row 2 of .* is '7', expected a JSON object"):
        read_answers(path)
    with pytest.raises(FileNotFoundError):
        read_answers(tmp_path / "none.json")


def test_rows_lack_nothing(tmp_path):
    short = {k: v for k, v in PAD.items() if k != "response"}
    with pytest.raises(
        ValueError, match=r"row 2 of .* lacks response; it has prompt, method. 'pad' needs prompt, resp"
    ):
        read_answers(write_json(tmp_path / "a.json", [PAD, short]))
    no_method = {k: v for k, v in PAD.items() if k != "method"}
    assert read_answers(write_json(tmp_path / "a.json", [no_method]), system="x").system.tolist() == ["x"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (PAD | {"response": None}, "response = null"),
        (PAD | {"result": None}, "result = null"),
        (PAD | {"prompt": ["Why?"]}, r'prompt = \["Why\?"\]'),
        (PAD | {"method": 3}, "method = 3"),
        ({"title": "Why?", "post": "", "domain": "x", "response": {"1": None}}, "1 = null"),
        ({"title": "Why?", "post": 4, "domain": "x", "response": "a"}, "post = 4"),
        ({"instruction": "Why?", "output": None, "generator": "m"}, "output = null"),
        ({"instruction": "Why?", "input": ["a"], "output": "b", "generator": "m"}, r'input = \["a"\]'),
        ({"prompt_id": "1_1", "input_text": "a", "output_text": None}, "output_text = null"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(tmp_path, row, field):
    with pytest.raises(ValueError, match=f"row 1 of .*a.json has {field}, expected text. .* an empty answer is"):
        read_answers(write_json(tmp_path / "a.json", [row]))


def test_the_row_of_a_null_answer(tmp_path):
    rows = [{"instruction": f"{i}?", "output": "x", "generator": "m"} for i in range(5)]
    rows[3]["output"] = None
    with pytest.raises(ValueError, match="row 4 of"):
        read_answers(write_lines(tmp_path / "a.jsonl", rows))


def test_two_answers_to_one_prompt_are_refused(tmp_path):
    rows = [PAD, PAD | {"prompt": "How?", "response": "How? So."}, PAD, PAD]
    with pytest.raises(
        ValueError, match=r"2 of 4 answers in .*, first row 3 \('PAD', None, 'Why\?'\); expected one each"
    ):
        read_answers(write_json(tmp_path / "a.json", rows))
    apart = [PAD | {"user_id": 1}, PAD | {"user_id": 2}, PAD | {"method": "ARGS"}]
    assert read_answers(write_json(tmp_path / "a.json", apart)).user_id.tolist() == ["1", "2", None]


def test_answers_for_a_run():
    rows = [("ann", "p", "1"), ("bob", "p", "2"), ("ann", "other", "3"), (None, "q", "4")]
    answers = pd.DataFrame([("s", *row) for row in rows], columns=list(ANSWERS)).assign(seconds=1.0)
    found = for_run(answers, ["ann", "eve"], ["p", "q"])
    assert found.columns.tolist() == list(ANSWERS)
    assert found[["user_id", "prompt", "answer"]].to_numpy().tolist() == [
        ["ann", "p", "1"], ["ann", "q", "4"], ["eve", "q", "4"]]  # fmt: skip
    with pytest.raises(ValueError, match="none of 4 answers is to one of the 1 users and 1 prompts of this run"):
        for_run(answers, ["eve"], ["p"])
