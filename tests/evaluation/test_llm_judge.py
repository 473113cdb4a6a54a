"""What the LLM judge sends, keeps and costs."""

from dataclasses import replace

import pytest
from faults import ALWAYS_A, FaultServer, questions

from prlhf_kit.data.schema import message
from prlhf_kit.evaluation.endpoint import JudgeError
from prlhf_kit.evaluation.judge_templates import SCHEMA, TEMPLATES, about

ASKED_FOR = {"prlhf_psoups": "Output (a)", "prlhf_prism": "Output (a)", "compo": "m", "args": "9 2"}  # else JSON


@pytest.mark.parametrize("name", TEMPLATES)
def test_shipped_templates_say_what_they_are_given_and_read_what_they_ask_for(make_judge, name):
    server = FaultServer(answer=ASKED_FOR.get(name, ALWAYS_A))
    judge = make_judge(server, template=name, about=about({"u": "I cook."}))
    [verdict] = judge(["PP"], ["LL"], ["RR"], ["u"])
    assert verdict == "a"
    system, user = server.seen[0]["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    told = f"{system['content']}\n{user['content']}"
    said = {"community": ["\nu\n"], "compo": ["\nu\n"], "args": []}.get(name, ["\nI cook.\n"])
    places = [told.index(text) for text in (*said, "PP", "LL", "RR")]
    assert places == sorted(places)
    assert ('{"preference": "A", "confidence": 0.8}' in told) == ("response_format" in server.seen[0])
    assert ("response_format" in server.seen[0]) == (name not in ASKED_FOR)
    assert ("none known" in told) == (name in ("profile", "prlhf_prism"))


def test_own_template_takes_values_verbatim(make_judge, tmp_path):
    path, server = tmp_path / "mine.txt", FaultServer()
    path.write_text("{prompt}|{answer_a}|{answer_b}|{{}}|{tone}|{prompt}\n")
    judge = make_judge(server, template=path, about=lambda user, prompt: {"tone": f"{user} {{prompt}}", "other": "-"})
    odd = ["{answer_b} {0} {{}} }", "{criterion!r}", "\\1 %s {x:>9}\n---\n${y}"]
    turns = [*message("system", "S"), *message("user", "hi"), *message("assistant", "ho"), *message("user", "hm")]
    told = "System: S\n\nUser: hi\n\nAssistant: ho\n\nUser: hm"
    for prompt, said in ((odd[0], odd[0]), (message("user", "q"), "q"), (turns, told)):
        judge([prompt], [odd[1]], [odd[2]], [None])
        wanted = "|".join([said, odd[1], odd[2], "{}", "None {prompt}", said])
        assert server.seen[-1]["messages"] == message("user", wanted)


@pytest.mark.parametrize("known", [{"tone": "y"}, {"criterion": None}])
def test_unfilled_fields_are_refused_before_anything_is_sent(make_judge, known):
    server, good = FaultServer(), {"criterion": "short"}
    judge = make_judge(server, about=lambda user, prompt: good if user == "u" else known)
    with pytest.raises(JudgeError, match="about says nothing of the criterion of the user 'v'"):
        judge(["p", "p"], "ab", "cd", ["u", "v"])
    assert server.seen == []


def test_what_is_sent(make_judge):
    """Without the form of `parse_verdict` where the answer is read by another parser."""
    server = FaultServer()
    make_judge(server)(*questions(1))
    judge = make_judge(server, parse=lambda text: None, seed=None, temperature=None, max_tokens=7)
    assert judge(*questions(1)) == [None]
    first, second = server.seen
    assert (first["model"], first["temperature"], first["seed"], first["max_tokens"]) == ("m", 0.0, 0, 100)
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert first["response_format"]["json_schema"]["strict"] is True
    assert set(second) == {"model", "messages", "max_tokens"}
    assert second["max_tokens"] == 7


def test_every_deciding_setting_is_part_of_the_key(make_judge, tmp_path):
    own, server = tmp_path / "own.txt", FaultServer()
    own.write_text("{prompt}{answer_a}{answer_b}{criterion}")
    judge = make_judge(server)
    changes = {"model": "n", "temperature": None, "seed": 1, "max_tokens": 99, "structured": False, "template": own}
    changes |= {"about": lambda *_: {"criterion": "long"}, "base_url": "http://other/v1"}
    same = {"concurrency": 1, "retries": 0, "timeout": 9, "prices": (1, 1), "base_url": "http://judge/v1/"}
    assert judge(*questions(1)) == ["a"]
    for new, settings in ((1, changes), (0, same)):
        for name, value in settings.items():
            changed = replace(judge, **{name: value})
            assert changed(*questions(1)) == ["a"]
            assert changed.spent["answers"] == new, name
            assert (changed.config != judge.config) == (new and name != "about")


def test_answers_paid_for_by_earlier_versions_are_found(make_judge):
    """The key of a request, as it was in version 0.1.0: another one would be paid for again."""
    key, _ = make_judge(FaultServer())._request("Q0?", "left", "right", "u")
    assert key == "bd3b2ed09fe109e92238a63d710ca9ffd487ddddfae32f93a346ad7535d4ed59"


def test_max_requests_is_a_limit_over_all_calls(make_judge):
    server = FaultServer()
    judge = make_judge(server, max_requests=4)
    assert judge(*questions(3)) == ["a"] * 3
    with pytest.raises(JudgeError, match="needs 2 new requests, and 3 of max_requests=4"):
        judge(*questions(5))
    assert len(server.seen) == 3
    assert judge(*questions(4)) == judge(*questions(4)) == ["a"] * 4  # one new one


def test_dry_run_and_costs_by_hand(make_judge, tmp_path, capsys):
    own, server = tmp_path / "own.txt", FaultServer()
    own.write_text("sys\n---\n{prompt}{answer_a}{answer_b}")  # 3 characters, and the values'
    judge = make_judge(server, template=own, prices=(2.0, 8.0), max_tokens=50)
    dry = replace(judge, dry_run=True)
    rows = [["p" * 10, "p" * 20, "p" * 10], ["a"] * 3, ["b"] * 3, [None] * 3]  # the first and last are the same
    assert dry(*rows) == [None] * 3
    judge(*[column[:1] for column in rows])
    assert judge.spent["cost"] == pytest.approx((100 * 2 + 10 * 8) / 1e6)
    dry(*rows)
    ways = "to send with about {} input tokens (4 characters a token), at most {} output tokens, cost about {}"
    assert capsys.readouterr().out.splitlines() == [
        "2 requests: 0 answered already, 2 " + ways.format(10, 100, "0.0008"),  # (3 + 12 + 3 + 22) / 4
        "2 requests: 1 answered already, 1 " + ways.format(7, 50, "0.0004"),  # 25 / 4, rounded up
    ]
    assert len(server.seen) == 1
