"""The reader in the prompt: whose context a row gets, how it is said, and that no flag is taken for another."""

import pytest
from datasets import Dataset

from prlhf_kit.data.context import Contexts, require_context, with_context
from prlhf_kit.data.schema import SchemaError, message, record

PEOPLE = {"r/tea": "I love tea.", "r/coffee": "I love coffee.", "r/milk": "I love milk.", "r/chai": "I love tea."}
ASKED = message("user", "What shall I drink?")


def rows(n=60):
    users = [list(PEOPLE)[i % len(PEOPLE)] for i in range(n)]
    return Dataset.from_list(
        [record(f"p{i}", u, f"Question {i // 2}?", "Yes.", "No.", PEOPLE[u]) for i, u in enumerate(users)]
    )


@pytest.mark.parametrize("bad", [False, None, "False", ["true"]])
def test_only_names_of_contexts_are_contexts(bad):
    with pytest.raises(SchemaError, match="'none', 'true', 'random', 'shuffled', 'user_text'"):
        require_context(bad)
    with pytest.raises(SchemaError, match="expected one of"):
        Contexts(bad, PEOPLE)


def test_none_true_and_user_text():
    told = with_context(rows(), Contexts("none", PEOPLE))
    assert told["prompt"][:] == rows()["prompt"][:]
    assert set(told["context"]) == {"none"}
    assert set(told["context_user"]) == {None}
    assert "r/tea" in Contexts("true", PEOPLE).put(ASKED, "r/tea")[0]["content"]
    assert Contexts("user_text", PEOPLE).put(ASKED, "r/tea") == message("system", "I love tea.") + ASKED
    with pytest.raises(SchemaError, match="a context already"):
        with_context(told, Contexts("none", PEOPLE))


@pytest.mark.parametrize("template", ["community", "user_text"])
@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_what_is_recorded_is_what_was_shown(kind, template):
    told = with_context(rows(), Contexts(kind, PEOPLE, template, seed=3))
    assert told["user_id"][:] == rows()["user_id"][:]  # who stated the preference stays who they are
    true = Contexts("true", PEOPLE, template)
    for row, plain in zip(told, rows(), strict=True):
        asked = plain["prompt"]
        assert row["prompt"] == true.put(asked, row["context_user"]) != true.put(asked, row["user_id"])
        assert row["context"] == kind


def test_random_is_drawn_for_each_prompt_and_depends_on_seed_user_and_prompt_alone():
    def drawn(pairs, seed):
        told = with_context(pairs, Contexts("random", PEOPLE, seed=seed))
        return dict(zip(told["pair_id"], told["context_user"], strict=True))

    found = drawn(rows(), 1)
    assert found == drawn(rows().select(range(59, -1, -1)), 1) != drawn(rows(), 2)
    mine = {found[pair] for pair, user in zip(rows()["pair_id"], rows()["user_id"], strict=True) if user == "r/tea"}
    assert mine == set(PEOPLE) - {"r/tea"}


def test_shuffled_gives_each_user_one_other_and_nobody_the_same_one():
    shuffled = with_context(rows(), Contexts("shuffled", PEOPLE))
    found = set(zip(shuffled["user_id"], shuffled["context_user"], strict=True))
    assert sorted(who for _, who in found) == sorted(PEOPLE) == sorted(user for user, _ in found)


@pytest.mark.parametrize("texts", ["ab", "aab", "aaab", "abc", "aabbbc"])
def test_no_draw_ever_says_the_same(texts):
    people = {f"u{i}": text for i, text in enumerate(texts)}
    for kind in ("random", "shuffled"):
        contexts = Contexts(kind, people, "user_text")
        assert all(people[contexts.whose(user, ASKED)] != people[user] for user in people)


def test_others_are_drawn_among_those_asked_for():
    people = PEOPLE | {"stranger": "I love juice."}
    for kind, n in (("random", len(PEOPLE)), ("shuffled", 1)):
        contexts = Contexts(kind, people, among=frozenset(PEOPLE))
        drawn = {contexts.whose("stranger", message("user", str(i))) for i in range(60)}
        assert len(drawn) == n
        assert drawn <= set(PEOPLE)


def test_a_system_message_is_replaced_and_braces_in_what_people_say_are_left_alone():
    people = PEOPLE | {"r/code": "I write {json} and {0}."}
    talk = ASKED + message("assistant", "Tea.") + message("user", "What is {community}?")
    put = Contexts("user_text", people).put(message("system", "Be brief.") + talk, "r/code")
    assert put == message("system", "I write {json} and {0}.") + talk


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello.", "expected community or user_text"),
        ("{community.name}", "expected names alone"),
        ("{community", "can't be read"),
        ("{community} {prompt}\n---\nNow.\n", "belongs into the user message"),
        ("{community}\n---\nNow.\n", "belongs into the user message"),
    ],
)
def test_templates_that_cant_be_used_are_refused(tmp_path, text, reason):
    file = tmp_path / "bad.txt"
    file.write_text(text)
    with pytest.raises(SchemaError, match=reason):
        Contexts("true", PEOPLE, file)


def test_templates_people_and_contexts_that_do_not_fit():
    for people, options, reason in (
        (PEOPLE, ("user_text", "community"), "does not say what context='user_text' is about"),
        (PEOPLE, ("true", "comunity"), "expected community, user_text"),
        ({"a": "Hi.", "b": None}, ("user_text", ""), "1 of 2 users have no user_text, first 'b'"),
        ({"a": "Hi.", "b": "Hi."}, ("random", "user_text"), "different things"),
        ({"a": "Hi.", "b": "Hi."}, ("shuffled", "user_text"), "different things"),
    ):
        with pytest.raises(SchemaError, match=reason):
            Contexts(options[0], people, options[1])
    Contexts("true", {"a": "Hi.", "b": None})  # a name is enough for the community
