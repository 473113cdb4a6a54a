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


def chosen_before(k=4, context="choices", pairs=None, **options):
    earlier = rows() if pairs is None else pairs
    return Contexts(context, PEOPLE, "choices", earlier=[earlier], k=k, **options)


@pytest.mark.parametrize("context", ["choices", "random", "shuffled"])
def test_choices_are_those_recorded_of_whom_is_recorded_and_never_of_the_same_prompt(context):
    found, by_id = with_context(rows(), chosen_before(context=context)), {row["pair_id"]: row for row in rows()}
    for row, plain in zip(found, rows(), strict=True):
        pairs = [by_id[pair] for pair in row["context_pairs"]]
        assert len(pairs) == 4
        assert {pair["user_id"] for pair in pairs} == {row["context_user"]}
        assert (row["context_user"] == row["user_id"]) == (context == "choices")
        assert plain["prompt"] not in [pair["prompt"] for pair in pairs]
        places = [row["prompt"][0]["content"].index(f"Asked: {pair['prompt'][0]['content']}\n") for pair in pairs]
        assert places == sorted(places)
        assert row["prompt"][1:] == plain["prompt"]
    assert with_context(rows(), Contexts("none", PEOPLE))["context_pairs"][:] == [None] * 60


def test_who_has_too_few_choices_gets_those_there_are_and_is_not_drawn():
    two = rows().select([0, 4, 1])  # two pairs of tea, one of coffee; milk and chai have none
    found = with_context(rows(), chosen_before(pairs=two))
    assert {user: len(ids) for user, ids in zip(found["user_id"], found["context_pairs"], strict=True)} == dict(
        zip(PEOPLE, (2, 1, 0, 0), strict=True)
    )
    assert "none known" in found["prompt"][2][0]["content"]
    drawn = with_context(rows(), chosen_before(context="random", pairs=two))
    assert set(drawn["context_user"]) == {"r/tea", "r/coffee"}
    with pytest.raises(SchemaError, match="different things"):
        chosen_before(context="random", pairs=two.select([0, 1]))


@pytest.mark.parametrize(
    ("context", "people", "template", "reason"),
    [
        ("true", PEOPLE, "Hello.", "expected community, user_text or choices"),
        ("true", PEOPLE, "{community.name}", "expected names alone"),
        ("true", PEOPLE, "{community", "can't be read"),
        ("true", PEOPLE, "{community} {prompt}\n---\nNow.\n", "belongs into the user message"),
        ("true", PEOPLE, "{community}\n---\nNow.\n", "belongs into the user message"),
        ("user_text", PEOPLE, "community", "does not say what context='user_text' is about"),
        ("choices", PEOPLE, "community", "use the field choices"),
        ("choices", PEOPLE, "", r"pass earlier=known_pairs\(data\)"),
        ("true", PEOPLE, "comunity", "expected community, user_text"),
        ("user_text", {"a": "Hi.", "b": None}, "", "1 of 2 users have no user_text, first 'b'"),
        ("random", {"a": "Hi.", "b": "Hi."}, "user_text", "different things"),
        ("shuffled", {"a": "Hi.", "b": "Hi."}, "user_text", "different things"),
    ],
)
def test_templates_people_and_contexts_that_do_not_fit(context, people, template, reason, tmp_path):
    if not template.isidentifier() and template:  # the text of a file
        (tmp_path / "bad.txt").write_text(template)
        template = tmp_path / "bad.txt"
    with pytest.raises(SchemaError, match=reason):
        Contexts(context, people, template)
