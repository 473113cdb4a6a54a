"""The LLM judge against a server that fails in every way, and against a real one."""

import importlib.util
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from dataclasses import replace

import pandas as pd
import pytest
from datasets import Dataset
from faults import ALWAYS_A, FaultServer
from hypothesis import given, strategies as st

from prlhf_kit.data.psoups import PROFILES
from prlhf_kit.data.schema import message, record
from prlhf_kit.evaluation.judge_templates import CRITERIA, SCHEMA, TEMPLATES, earlier_choices, parse_verdict
from prlhf_kit.evaluation.judges import PREFERENCES, UNREADABLE, Verdict, judged
from prlhf_kit.evaluation.llm_judge import LLMJudge
from prlhf_kit.evaluation.paid_answers import JudgeError, PaidAnswers
from prlhf_kit.models.embedded import ModelError, embedded_folder

KEY = "sk-verysecret-0123456789abcdef"
A, B, TIE = Verdict("a", 0.9), Verdict("b", 0.25), Verdict("tie", 0.5)


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    """No settings from outside, and little waiting: the client's first back-off is 10 ms instead of half a second."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def make(tmp_path):
    """`make(server, **settings)`: a judge by criterion P2A with its cache in `tmp_path`."""

    def make(server, **settings):
        about, url = {"u": {"criterion": CRITERIA["P2A"]}}, server.url if isinstance(server, FaultServer) else server
        own = {"template": "criterion", "cache": tmp_path / "c.sqlite", "about": about, "base_url": url, "timeout": 30}
        return LLMJudge("m", **own | settings)

    return make


def questions(n):
    """Arguments of a call with `n` comparisons, marked Q0, Q1, ..."""
    return [f"Q{i}?" for i in range(n)], ["left"] * n, ["right"] * n, ["u"] * n


def by_question(body):
    """A for even questions, B for odd ones."""
    even = int(re.search(r"Q(\d)", body["messages"][-1]["content"])[1]) % 2 == 0
    return ALWAYS_A if even else '{"preference": "B", "confidence": 0.75}'


# ---- reading answers


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"preference": "A", "confidence": 0.9}', A),
        ('{"preference": "B", "confidence": 0.75}', B),
        ('{"preference": "tie", "confidence": 0.8}', TIE),
        ('{"preference": "A"}', Verdict("a", 1.0)),
        ('{"preference": "B"}', Verdict("b", 0.0)),
        ('{"preference": "B", "confidence": 0.5}', Verdict("b", 0.5)),
        ('{"why": {"preference": "B"}, "preference": "A"}', Verdict("a", 1.0)),
        ('\n  {"confidence": 0.9,\n "preference": "A"}  \n', A),
        ('```json\n{"preference": "A", "confidence": 0.9}\n```', A),
        (' \n```json\n\n{"preference": "A",\n"confidence": 0.9}```\n ', A),
    ],
)
def test_readable(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "A",
        "I prefer A.",
        "[]",
        "{}",
        "NaN",
        '{"preference": "a"}',
        '{"preference": null}',
        '{"preference": ["A"]}',
        '{"Preference": "A"}',
        '[{"preference": "A"}]',
        '{"preference": "A", "confidence": 0.49}',
        '{"preference": "A", "confidence": 90}',
        '{"preference": "A", "confidence": "0.9"}',
        '{"preference": "A", "confidence": true}',
        '{"preference": "A", "confidence": NaN}',
        '{"preference": "A", "confidence": 1e999}',
        '{"preference": "tie", "confidence": 0.2}',
        '{"preference": "A", "confidence": 0.9',
        '{"preference": "A"}\n{"preference": "B"}',
        '{"preference": "A", "preference": "B"}',
        'Sure! {"preference": "A"}',
        '```json\n{"preference": "A"}',
        "[" * 100_000,
        "\ud800",
        '{"preference": ' + "9" * 5000 + "}",
    ],
)
def test_unreadable(text):
    assert parse_verdict(text) is UNREADABLE


@given(st.text(), st.sampled_from([ALWAYS_A, "```json\n" + ALWAYS_A + "\n```"]), st.booleans())
def test_nothing_may_stand_beside_the_object(text, answer, before):
    verdict = parse_verdict(text + answer if before else answer + text)
    assert verdict is UNREADABLE if text.strip() else verdict in (A, UNREADABLE)


# ---- templates


def test_shipped_templates_say_what_they_are_given(make, tmp_path):
    for name in TEMPLATES:
        about = {"u": {name: "XX"} | ({"history": "YY"} if name == "profile" else {})}
        judge = make("http://127.0.0.1:1/v1", template=name, about=about)
        system, user = judge.estimate(["PP"], ["LL"], ["RR"], ["u"]).example
        assert (system["role"], user["role"]) == ("system", "user")
        places = [user["content"].index(text) for text in ("XX", "PP", "LL", "RR")]
        assert places == sorted(places)
        assert '{"preference": "A", "confidence": 0.8}' in user["content"]
        assert ("YY" in user["content"]) == (name == "profile")
    assert set(PROFILES) < set(CRITERIA)
    assert {"helpful", "harmless", "humour"} < set(CRITERIA)


def test_values_are_inserted_verbatim(make):
    odd = ["{answer_b} {0} {{}} }", "{criterion!r}", "\\1 %s {x:>9}\n---\n${y}"]
    judge = make("http://127.0.0.1:1/v1", about=lambda user, prompt: {"criterion": f"{{prompt}} {user}"})
    content = judge.estimate([odd[0]], [odd[1]], [odd[2]], ["u"]).example[1]["content"]
    assert all(text in content for text in [*odd, "{prompt} u"])


def test_own_template(make, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{prompt}|{answer_a}|{answer_b}|{{}}|{tone}|{prompt}\n")
    judge = make("http://127.0.0.1:1/v1", template=path, about=lambda user, prompt: {"tone": f"{user}, {prompt}"})
    dialogue = [*message("system", "S"), *message("user", "hi"), *message("assistant", "ho"), *message("user", "hm")]
    texts = [judge.estimate([p], ["l"], ["r"], [None]).example for p in ("q", message("user", "q"))]
    assert texts[0] == message("user", "q|l|r|{}|None, q|q")
    assert texts[1][0]["content"].startswith("q|l|r|{}|None, [{'role'")
    told = judge.estimate([dialogue], ["l"], ["r"], [None]).example[0]["content"]
    assert told.startswith("System: S\n\nUser: hi\n\nAssistant: ho\n\nUser: hm|l|r")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{prompt} {answer_a}", "lacks answer_b"),
        ("{prompt} {answer_a} {answer_b} {}", "field ''"),
        ("{prompt!r} {answer_a} {answer_b}", "field 'prompt'"),
        ("{prompt:>{answer_a}} {answer_a} {answer_b}", "field 'prompt'"),
        ('{prompt} {answer_a} {answer_b} {"preference": "A"}', "field"),
        ("{prompt} {answer_a} {answer_b} }", "written twice"),
        (None, "can't be read"),
    ],
)
def test_bad_templates_are_refused(make, tmp_path, text, words):
    path = tmp_path / "t.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JudgeError, match=re.escape(words)):
        make("http://127.0.0.1:1/v1", template=path)


def test_unfilled_and_unknown_fields_are_refused_before_anything_is_sent(make):
    with FaultServer() as server:
        with pytest.raises(JudgeError, match="fields criterion; about="):
            make(server, about=None)
        good = {"criterion": "short"}
        for bad in ({}, good | {"tone": "y"}, {"tone": "y"}, {"criterion": None}, good | {"prompt": ""}):
            with pytest.raises(JudgeError, match="texts for \\['criterion'\\]"):
                make(server, about={"u": good, "v": bad})(["p", "p"], "ab", "cd", ["u", "v"])
        with pytest.raises(JudgeError, match="nothing on the user None"):
            make(server, about={"u": good})(["p", "p"], "ab", "cd", ["u", None])
        with pytest.raises(ValueError, match="zip"):
            make(server)(["p", "p"], ["a"], ["b"], ["u"])
        assert server.seen == []


# ---- earlier choices


def dialogue(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def turns_of(name, turns, user="u"):
    """One pair a turn of a dialogue; every text is found nowhere else."""
    rows, texts = [], []
    for turn in range(turns):
        texts.append(f"<{name}{turn}-asked>")
        chosen, rejected = f"<{name}{turn}-chosen>", f"<{name}{turn}-rejected>"
        rows.append(record(f"{name}{turn}", user, dialogue(*texts), chosen, rejected))
        texts.append(chosen)
    return rows


@pytest.mark.parametrize("form", [list, Dataset.from_list])
@pytest.mark.parametrize("system", [False, True])
def test_no_choice_of_the_judged_turn_or_a_later_one_is_told(form, system):
    rows = turns_of("k", 4) + turns_of("m", 2) + turns_of("n", 1, user="v")
    if system:  # the same for all dialogues
        rows = [row | {"prompt": message("system", "Be good.") + row["prompt"]} for row in rows]
    for turn in range(4):
        told = earlier_choices(form(rows), "u", rows[turn]["prompt"], limit=99)
        for other in range(4):
            marks = [f"<k{other}-asked>", f"<k{other}-rejected>"]
            assert [mark in told for mark in marks] == [other < turn] * 2
        assert f"<k{turn}-chosen>" not in told
        assert all(f"<m{i}-{what}>" in told for i in range(2) for what in ("asked", "chosen", "rejected"))
        assert "<n0" not in told
        assert "Be good." not in told


def test_no_choice_leaks_by_a_text_prompt_a_cut_dialogue_or_a_branch():
    rows = turns_of("k", 4)
    last = rows[2]["prompt"][-1]["content"]
    for judged_prompt in (last, f" {last}\n", rows[2]["prompt"][-3:], rows[2]["prompt"][-1:]):
        told = earlier_choices(rows, "u", judged_prompt, limit=99)
        assert "<k2" not in told
        assert "<k3" not in told
    cut = [row | {"prompt": row["prompt"][-3:]} for row in rows]  # histories may be cut to their last turns
    told = earlier_choices(cut, "u", rows[2]["prompt"], limit=99)
    assert "<k2" not in told
    assert "<k3" not in told
    branch = record("b", "u", dialogue("<k0-asked>", "<k0-rejected>", "<b-asked>"), "<b-chosen>", "<b-rejected>")
    shorter = record("s", "u", dialogue("<k0-asked>"), "<s-chosen>", "<s-rejected>")
    told = earlier_choices([branch, shorter], "u", rows[2]["prompt"], limit=99)
    assert "<b-" not in told  # begins alike, but is no part of the judged one
    assert "<s-chosen>" in told
    assert earlier_choices([shorter, branch], "u", dialogue("<k0-asked>")) == "none known"


@given(st.lists(st.lists(st.sampled_from("xyz"), min_size=1, max_size=4), min_size=1, max_size=6), st.data())
def test_no_leak_in_random_dialogues(texts, data):
    """Dialogues of three texts, so that many begin alike: what is told began otherwise, or ended before."""
    rows = [record(f"{i}", "u", dialogue_of(t), f"<{i}-chosen>", f"<{i}-rejected>") for i, t in enumerate(texts)]
    judged_prompt = dialogue_of(data.draw(st.sampled_from(texts)))
    told = earlier_choices(rows, "u", judged_prompt, limit=99)
    for i, row in enumerate(rows):
        if f"<{i}-chosen>" in told:
            theirs = row["prompt"]
            assert theirs[: len(judged_prompt)] != judged_prompt
            assert theirs[0] != judged_prompt[0] or theirs == judged_prompt[: len(theirs)]
            assert judged_prompt[-1] not in theirs


def dialogue_of(asked):
    return dialogue(*[text for question in asked for text in (question, f"re {question}")][:-1])


def test_earlier_choices_are_few_short_and_of_different_questions():
    assert earlier_choices([], "u", "hi") == "none known"
    assert earlier_choices(turns_of("k", 2), None, "hi") == "none known"
    assert earlier_choices(turns_of("k", 2), "v", "hi") == "none known"
    rows = [record(f"p{i}", "u", f"ask {i // 2}", f"yes {i} " + "x" * 1000, f"no\n\n{i}") for i in range(10)]
    told = earlier_choices(rows, "u", "hi", limit=3)
    assert re.findall(r"Asked: (.*)\n", told) == ["ask 0", "ask 1", "ask 2"]
    assert re.findall(r"Chose: (yes \d)", told) == ["yes 0", "yes 2", "yes 4"]
    assert re.findall(r"Rather than: (.*)", told) == ["no 0", "no 2", "no 4"]
    assert len(told) < 3 * 450


# ---- faults

FAULTS = ["429", "503", "broken", "null", "no choices", "no message", "cut", "closed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_answer_is_right(make, fault):
    with FaultServer({"Q1": [fault, fault], "Q2": [fault]}, by_question) as server:
        judge = make(server, concurrency=2)
        assert judge(*questions(4)) == [A, B, A, B]
        assert server.count() == {"Q0": 1, "Q1": 3, "Q2": 2, "Q3": 1}
        assert (judge.spent.requests, judge.spent.retries, judge.spent.answers) == (4, 3, 4)
        assert judge(*questions(4)) == [A, B, A, B]
        assert len(server.seen) == 7


@pytest.mark.parametrize("fault", ["429", "no choices", "cut"])
def test_a_persistent_fault_loses_no_other_answer(make, fault, tmp_path):
    with FaultServer({"Q1": [fault] * 99, "Q3": [fault] * 4}, by_question) as server:
        judge = make(server, retries=3)  # the client's own number is 2
        words = re.escape(f"2 of 5 requests to {server.url} got no answer")
        with pytest.raises(JudgeError, match=words) as error:
            judge(*questions(5))
        assert f"3 answers are kept in {tmp_path / 'c.sqlite'}" in str(error.value)
        assert {"no choices": "choices[0]", "cut": "RemoteProtocolError"}.get(fault, "") in str(error.value)
        assert server.count() == {"Q0": 1, "Q1": 4, "Q2": 1, "Q3": 4, "Q4": 1}
        assert (judge.spent.requests, judge.spent.retries, judge.spent.answers) == (5, 6, 3)
        server.script["Q1"].clear()
        assert judge(*questions(5)) == [A, B, A, B, A]
        assert server.count() == {"Q0": 1, "Q1": 5, "Q2": 1, "Q3": 5, "Q4": 1}


def test_a_server_that_is_gone_is_not_asked_for_ever(make):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        judge = make(f"http://127.0.0.1:{free.getsockname()[1]}/v1", retries=1, concurrency=2)
        with pytest.raises(JudgeError, match=r"300 of 300 requests .* got no answer .*Connect"):
            judge(*questions(300))
        assert judge.spent.requests < 40


@pytest.mark.parametrize("status", ["400", "401", "404"])
def test_a_refusal_stops_at_once_and_no_key_is_told(make, monkeypatch, caplog, tmp_path, status):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    with FaultServer({"Q2": [status] * 99}) as server:
        judge = make(server, concurrency=1, api_key_env="JUDGE_KEY")
        with pytest.raises(JudgeError, match=f"refused a request with status {status}.*Bearer \\*\\*\\*") as error:
            judge(*questions(9))
        assert server.count() == {"Q0": 1, "Q1": 1, "Q2": 1}  # the first two are kept
        assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
        way_out = {"401": "the key in JUDGE_KEY", "403": "the key in JUDGE_KEY", "404": "base_url"}
        assert way_out.get(status, "structured=False") in str(error.value)
        assert server.url in str(error.value)
        assert "2 answers are kept" in str(error.value)
        told = "".join(traceback.format_exception(error.value)) + repr(error.value.__context__) + caplog.text
        told += repr(judge) + json.dumps(judge.config) + repr(judge.spent) + "".join(map(repr, caplog.records))
        assert "openai" in caplog.text  # so something was logged
        assert KEY not in told
        assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        server.script["Q2"].clear()
        assert judge(*questions(9)) == [A] * 9
        assert server.count()["Q0"] == server.count()["Q1"] == 1


def test_what_is_under_way_at_a_refusal_is_kept(make):
    with FaultServer({"Q0": ["hang"], "Q1": ["401"]}) as server:
        judge = make(server, concurrency=2)
        threading.Timer(0.5, server.release.set).start()
        with pytest.raises(JudgeError, match="1 answers are kept"):
            judge(*questions(9))
        assert server.count() == {"Q0": 1, "Q1": 1}
        judge(*questions(1))
        assert len(server.seen) == 2


def test_interrupt_keeps_what_came(make):
    with FaultServer({"Q2": ["interrupt"]}) as server:
        judge, start = make(server, concurrency=1), time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judge(*questions(6))
        assert time.monotonic() - start < 10  # the server has not answered yet
        assert server.count() == {"Q0": 1, "Q1": 1, "Q2": 1}
        server.release.set()
        while judge.spent.answers < 3:  # what was under way is kept, too
            assert time.monotonic() - start < 30
            time.sleep(0.05)
        assert judge(*questions(6)) == [A] * 6
        assert server.count() == {f"Q{i}": 1 for i in range(6)}


CRASHING = """
import sys
from prlhf_kit.evaluation.llm_judge import LLMJudge
about = {"u": {"criterion": sys.argv[3]}}
judge = LLMJudge("m", "criterion", sys.argv[2], about, base_url=sys.argv[1], concurrency=2)
judge([f"Q{i}?" for i in range(6)], ["left"] * 6, ["right"] * 6, ["u"] * 6)
"""


def test_a_killed_process_loses_no_answer(make, tmp_path):
    with FaultServer({"Q3": ["hang"], "Q4": ["hang"]}, by_question) as server:
        command = [sys.executable, "-c", CRASHING, server.url, str(tmp_path / "c.sqlite"), CRITERIA["P2A"]]
        process = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 120
            while server.count() != {f"Q{i}": 1 for i in range(5)}:  # two at a time, so the first three are kept
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert make(server)(*questions(6)) == [A, B, A, B, A, B]
        assert server.count() == {"Q0": 1, "Q1": 1, "Q2": 1, "Q3": 2, "Q4": 2, "Q5": 1}


# ---- keys and endpoints


def test_no_key_goes_to_other_endpoints_than_the_one_named(make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", f"org-{KEY}")
    monkeypatch.setenv("OPENAI_PROJECT_ID", f"project-{KEY}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with FaultServer() as server:
        make(server)(*questions(1))
        assert KEY not in str(server.headers)
        assert "max_completion_tokens" not in server.seen[0]


def test_openai_is_the_default_and_wants_its_key(make, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    judge = LLMJudge("m", "criterion", tmp_path / "c", {"u": {"criterion": "short"}})
    assert judge.config["base_url"] == "https://api.openai.com/v1"
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set; expected the key of https://api"):
        judge(*questions(1))
    assert judge._requests(*questions(1))[1].popitem()[1]["max_completion_tokens"] == 100
    for key in ("a b", "schlüssel"):
        monkeypatch.setenv("JUDGE_KEY", key)
        with pytest.raises(JudgeError, match="JUDGE_KEY is no key") as error:
            make("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")(*questions(1))
        assert key not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        "host/v1",
        "ftp://host/v1",
        "",
    ],
)
def test_addresses_with_secrets_are_refused(make, url):
    with pytest.raises(JudgeError, match="base_url") as error:
        make(url)
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_a_key_in_place_of_its_name_is_refused(make):
    with pytest.raises(JudgeError, match="api_key_env is no name") as error:
        make("http://127.0.0.1:1/v1", api_key_env=KEY)
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_tokens", 0),
        ("concurrency", 0),
        ("max_requests", -1),
        ("retries", -1),
        ("timeout", 0),
        ("requests_per_minute", 0),
    ],
)
def test_impossible_settings_are_refused(make, name, bad):
    with pytest.raises(JudgeError, match=f"{name} is {bad}"):
        make("http://127.0.0.1:1/v1", **{name: bad})


# ---- what is sent, kept and paid


def test_what_is_sent(make):
    with FaultServer() as server:
        make(server)(*questions(1))
        make(server, structured=False, seed=None, temperature=None, max_tokens=7)(*questions(1))
    first, second = server.seen
    assert (first["model"], first["temperature"], first["seed"], first["max_tokens"]) == ("m", 0.0, 0, 100)
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert first["response_format"]["json_schema"]["strict"] is True
    assert set(second) == {"model", "messages", "max_tokens"}
    assert second["max_tokens"] == 7


def test_every_deciding_setting_is_part_of_the_key(make, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("{prompt}{answer_a}{answer_b}{criterion}")
    with FaultServer() as server, FaultServer() as other:
        judge = make(server)
        changes = [
            {},
            {"model": "n"},
            {"temperature": 0.5},
            {"temperature": None},
            {"seed": 1},
            {"max_tokens": 99},
            {"structured": False},
            {"template": own},
            {"about": {"u": {"criterion": "long"}}},
            {"base_url": other.url},
        ]
        for change in changes:
            changed = replace(judge, **change)
            assert changed(*questions(1)) == [A]
            assert changed.spent.answers == 1, change
        same = [{"concurrency": 1}, {"retries": 0}, {"timeout": 9}, {"prices": (1, 1)}, {"base_url": server.url + "/"}]
        for change in same:
            again = replace(judge, **change)
            assert again(*questions(1)) == [A]
            assert again.spent.requests == 0, change
        assert len(server.seen) + len(other.seen) == len(changes)
        configs = [json.dumps(replace(judge, **change).config) for change in changes if "about" not in change]
        assert len(set(configs)) == len(configs)


def test_equal_requests_are_asked_once_and_both_orders_are_two(make):
    with FaultServer() as server:
        judge = make(server)
        assert judge(["Q0?"] * 5, list("aaaba"), list("bbbab"), ["u"] * 5) == [A] * 5
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"role": "assistant", "content": None, "refusal": "I can't."}, "finish_reason": "stop"},
        {"message": {"role": "assistant"}},
        {"message": {"role": "assistant", "content": '{"preference": "A", "conf'}, "finish_reason": "length"},
        {"message": {"role": "assistant", "content": "A \ud800"}, "finish_reason": 3},
        {"message": {"role": "assistant", "content": [{"type": "text", "text": ALWAYS_A}]}, "finish_reason": "stop"},
    ],
)
def test_what_can_not_be_read_is_paid_once_counted_and_no_win(make, choice):
    with FaultServer(answer={"choices": [choice], "usage": "many"}) as server:
        judge = make(server)
        for _ in range(2):
            assert judge(*questions(2)) == [UNREADABLE] * 2
        assert len(server.seen) == 2
        assert (judge.spent.unreadable, judge.spent.answers, judge.spent.uncounted) == (2, 2, 2)


def test_the_cache_holds_what_the_server_said(make, tmp_path):
    with FaultServer(answer="\nno verdict ") as server:
        make(server)(*questions(1))
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        text, reason, model, name, usage, when = db.execute(
            "SELECT text, finish_reason, model, id, usage, time FROM judge_answers"
        ).fetchone()
    db.close()
    assert (text, reason, model, name) == ("\nno verdict ", "stop", "served-name", "chat-1")
    assert json.loads(usage)["completion_tokens"] == 10
    assert pd.Timestamp(when) > pd.Timestamp("2024", tz="UTC")


def test_a_file_that_is_no_cache_is_refused(make, tmp_path):
    (tmp_path / "c.sqlite").write_text("these are my notes, not a database\n" * 99)
    with pytest.raises(JudgeError, match="can't be used as a judge's cache"):
        make("http://127.0.0.1:1/v1")
    assert (tmp_path / "c.sqlite").read_text().startswith("these are my notes")


def test_max_requests_is_a_limit_over_all_calls(make):
    with FaultServer() as server:
        judge = make(server, max_requests=4)
        with pytest.raises(JudgeError, match="needs 5 new requests, and 0 of max_requests=4"):
            judge(*questions(5))
        assert server.seen == []
        assert judge(*questions(3)) == [A] * 3
        assert judge(*questions(4)) == [A] * 4  # one new one
        assert judge(*questions(4)) == [A] * 4
        with pytest.raises(JudgeError, match="needs 1 new requests, and 4 of max_requests=4"):
            judge(*questions(5))
        assert len(server.seen) == 4


def test_estimate_and_costs_by_hand(make, tmp_path, capsys):
    own = tmp_path / "own.txt"
    own.write_text("sys\n---\n{prompt}{answer_a}{answer_b}")  # 3 characters, and the values'
    with FaultServer() as server:
        judge = make(server, template=own, about=None, prices=(2.0, 8.0), max_tokens=50)
        rows = [["p" * 10, "p" * 20, "p" * 10], ["a"] * 3, ["b"] * 3, [None] * 3]  # the first and last are the same
        found = judge.estimate(*rows)
        assert (found.requests, found.cached, found.to_send) == (2, 0, 2)
        assert (found.input_tokens, found.output_tokens) == (10, 100)  # (3 + 12 + 3 + 22) / 4
        assert found.cost == pytest.approx((10 * 2 + 100 * 8) / 1e6)
        assert found.example == [*message("system", "sys"), *message("user", "p" * 10 + "ab")]
        assert judge.spent.cost == 0
        judge(*[column[:1] for column in rows])
        found = judge.estimate(*rows)
        assert (found.requests, found.cached, found.to_send, found.input_tokens) == (2, 1, 1, 7)  # 25 / 4, rounded up
        assert str(found) == (
            "2 requests: 1 answered already, 1 to send with about 7 input tokens (4 characters a token), at most 50 "
            "output tokens, cost about 0.0004"
        )
        assert judge.spent.cost == pytest.approx((100 * 2 + 10 * 8) / 1e6)
        assert replace(judge, prices=None).estimate(*rows).cost is replace(judge, prices=None).spent.cost is None
        assert len(server.seen) == 1
        dry = replace(judge, dry_run=True)
        answers = pd.DataFrame(
            [{"system": s, "user_id": "u", "prompt": f"Q{i}?", "answer": s * 3} for s in "xy" for i in range(3)]
        )
        table = judged(dry, answers, [("x", "y")], "dry")
        assert table.preference.isna().all()
        assert capsys.readouterr().out.startswith("6 requests: 0 answered already, 6 to send")
        assert len(server.seen) == 1


def test_throttle(make):
    with FaultServer() as server:
        judge = make(server, requests_per_minute=300, concurrency=8)
        assert judge(*questions(4)) == [A] * 4
        assert judge(*questions(6)) == [A] * 6  # the pace holds over calls
        assert server.times[5] - server.times[0] >= 0.9  # five gaps of 0.2 s


@pytest.mark.parametrize("same", [True, False])
def test_threads_share_a_cache(make, same):
    with FaultServer(answer=by_question) as server:
        judge = make(server, concurrency=2)
        found = {}

        def work(i):
            found[i] = (judge if same else replace(judge))(*questions(8))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == {i: [A, B] * 4 for i in range(3)}
        assert len(server.seen) == 8 if same else 8 <= len(server.seen) <= 24
        fresh = replace(judge)
        assert fresh(*questions(8)) == [A, B] * 4
        assert fresh.spent.requests == 0


def test_a_judge_that_always_names_the_first_has_no_say(make):
    answers = pd.DataFrame(
        [{"system": s, "user_id": "u", "prompt": f"Q{i}?", "answer": f"{s} {i}"} for s in "xy" for i in range(4)]
    )
    with FaultServer() as server:
        table = judged(make(server), answers, [("x", "y")], "llm")
        assert (table.preference == "tie").all()
        assert table.probability.to_numpy() == pytest.approx(0.5)
        assert (table["first"] == "a").all()
        assert (table["second"] == "b").all()
        assert len(server.seen) == 8
    half = lambda body: ALWAYS_A if "<answer_a>\nx" in body["messages"][-1]["content"] else "?"  # noqa: E731
    with FaultServer(answer=half) as server:
        table = judged(make(server), answers, [("x", "y")], "llm")
        assert table.preference.isna().all()  # one order can't be read: no verdict


def test_a_judge_that_knows_is_right_in_both_orders(make):
    answers = pd.DataFrame(
        [{"system": s, "user_id": "u", "prompt": f"Q{i}?", "answer": f"{s} {i}"} for s in "xy" for i in range(4)]
    )

    def x_wins(body):
        first = "<answer_a>\nx" in body["messages"][-1]["content"]
        return json.dumps({"preference": "A" if first else "B", "confidence": 0.7})

    dialogues = {f"Q{i}?": dialogue("hello", "hi", f"Q{i}?") for i in range(4)}
    with FaultServer(answer=x_wins) as server:
        table = judged(make(server), answers, [("x", "y")], "llm", dialogues)
        assert (table.preference == "a").all()
        assert table.probability.to_numpy() == pytest.approx(0.7)
        assert all("Assistant: hi\n\nUser: Q" in body["messages"][-1]["content"] for body in server.seen)


# ---- a real model behind a real server


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model) of `transformers serve` with the embedded model on a free port, one thread; ended afterwards."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'prlhf_kit[test]'")
    try:
        folder = str(embedded_folder())
    except ModelError as error:
        pytest.skip(f"no embedded model: {error}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", code, "serve", folder, "--host", "127.0.0.1", "--port", f"{port}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert json.load(answer) == {"status": "ok"}
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_real_model_on_a_real_server(served, tmp_path):
    url, model = served
    judge = LLMJudge(
        model,
        "criterion",
        tmp_path / "real.sqlite",
        lambda user, prompt: {"criterion": CRITERIA[user]},
        base_url=url,
        max_tokens=10,
        timeout=120,
        concurrency=2,
    )
    answers = pd.DataFrame(
        [
            ("short", "P2A", "What is rain?", "Water that falls from clouds."),
            (
                "long",
                "P2A",
                "What is rain?",
                "Rain is water. It falls from clouds. It is wet. It wets the ground.",
            ),
            ("short", "P2B", "Why sleep?", "To rest."),
            ("long", "P2B", "Why sleep?", "Sleep lets the body mend itself and the mind sort what it has learnt."),
        ],
        columns=["system", "user_id", "prompt", "answer"],
    )
    table = judged(judge, answers, [("short", "long")], "smollm2")
    spent = judge.spent
    assert (spent.requests, spent.answers, spent.retries, spent.uncounted) == (4, 4, 0, 0)
    assert spent.prompt_tokens > 4 * 100
    assert 0 < spent.completion_tokens <= 4 * 10
    seen = [*table["first"], *table["second"]]
    assert set(seen) <= {*PREFERENCES, None}
    assert spent.unreadable == sum(verdict is None for verdict in seen)
    kept = PaidAnswers(tmp_path / "real.sqlite").get(judge._requests(*columns(answers))[1])
    assert len(kept) == 2
    assert all(answer.text and answer.text.strip() and answer.model.startswith(model) for answer in kept.values())
    pd.testing.assert_frame_equal(judged(judge, answers, [("short", "long")], "smollm2"), table)
    assert judge.spent == spent  # nothing was sent again


def columns(answers):
    """The two comparisons of the real server's test in the first order."""
    a, b = (answers[answers.system == system] for system in ("short", "long"))
    return a.prompt.tolist(), a.answer.tolist(), b.answer.tolist(), a.user_id.tolist()
