"""Answers to test prompts: one for each, on disk batch by batch, resumed after a kill; long ones lose turns."""

import copy
import json

import pytest
import torch
from datasets import Dataset

import prlhf_kit as kit
from decoding.plain import ids_of
from prlhf_kit.data.context import Contexts, with_context
from prlhf_kit.data.schema import ANSWERS, message, record
from prlhf_kit.decoding import respond as module
from prlhf_kit.decoding.respond import COLUMNS, respond

PEOPLE = {"ann": "I like tea.", "bob": "I like it short.", "eve": "I hate puns."}
INDEX = kit.UserIndex(["ann", "bob", "eve"])
JOBS = [
    {"user_id": user, "prompt": message("user", text), "pair_id": f"{user}{n}"}
    for n, text in enumerate(("Hi", "Tell me something about the sea, please", "Why not?"))
    for user in ("ann", "bob", "zoe")  # zoe has no row
]
LENGTH = {"max_new_tokens": 8}
SAMPLED = {**LENGTH, "do_sample": True, "temperature": 1.5, "batch_size": 2, "seed": 3}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_every_job_has_one_answer_in_order_as_generate_gives_it(personal, tokenizer, tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    table = respond(
        personal, tokenizer, Dataset.from_list(JOBS), path, system="mine", index=INDEX, batch_size=4, **LENGTH
    )
    rows = INDEX.rows([job["user_id"] for job in JOBS], unknown="generic")
    expected = kit.generate(personal, tokenizer, [job["prompt"] for job in JOBS], rows, **LENGTH)
    assert list(table.answer) == expected
    assert list(table.columns) == list(COLUMNS) == [*ANSWERS, *COLUMNS[len(ANSWERS) :]]
    first = {"user_id": "ann", "prompt": "Hi", "system": "mine", "context": "none", "context_user": None}
    first |= {"shown": JOBS[0]["prompt"], "shortened": False}
    assert first.items() <= table.to_dict("records")[0].items()
    assert len(set(table.answer[3:6])) > 1  # users differ
    assert (table.finished | (table.tokens == 8)).all()


def test_finished_counts_tokens_before_the_end(make_tiny, tokenizer, tmp_path):
    """A model that ends at once says nothing, and that is an answer; one that never ends is not finished."""
    model = make_tiny()
    free = respond(model, tokenizer, JOBS, tmp_path / "a", system="a", **LENGTH)
    said_first = tokenizer(free.answer[0], add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [2, said_first]
    mute = respond(model, tokenizer, JOBS, tmp_path / "a", system="a", **LENGTH)
    assert mute.tokens[0] == 0
    assert mute.finished[0]
    assert len(mute) == len(JOBS)
    model.generation_config.eos_token_id = 2
    text = free.answer[0][1:4]
    stopped = respond(model, tokenizer, JOBS[:1], tmp_path / "a", system="a", stop_strings=[text], **LENGTH)
    assert free.answer[0].startswith(stopped.answer[0])
    assert text in stopped.answer[0]
    assert stopped.finished[0]
    assert 0 < stopped.tokens[0] < 8


def counting(monkeypatch, stop_after=None):
    """The prompts of each batch that is written; interrupted before batch number `stop_after`."""
    calls, original = [], module.write_batch

    def counted(model, tokenizer, prompts, *rest):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return original(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(module, "write_batch", counted)
    return calls


def test_equal_questions_are_asked_once_when_greedy(personal, tokenizer, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    table = respond(personal, tokenizer, JOBS + JOBS, tmp_path / "a", system="a", **LENGTH)
    assert sum(calls) == len(read(tmp_path / "a")) == 3  # without an index, users are alike
    assert list(table.answer[: len(JOBS)]) == list(table.answer[len(JOBS) :])
    del calls[:]
    strangers = [{**job, "user_id": name} for job in JOBS for name in ("zoe", None)]
    respond(personal, tokenizer, strangers, tmp_path / "a", system="a", index=INDEX, **LENGTH)
    assert sum(calls) == 3  # who has no row is the generic user
    del calls[:]
    drawn = respond(personal, tokenizer, JOBS + JOBS, tmp_path / "a", system="a", **SAMPLED)
    assert sum(calls) == 2 * len(JOBS)
    assert list(drawn.answer[: len(JOBS)]) != list(drawn.answer[len(JOBS) :])


@pytest.mark.parametrize("options", [{"batch_size": 2, **LENGTH}, SAMPLED], ids=["greedy", "sampled"])
def test_an_interrupted_call_goes_on(personal, tokenizer, tmp_path, monkeypatch, options):
    whole = respond(personal, tokenizer, JOBS, tmp_path / "whole", system="a", index=INDEX, **options)
    path = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        counting(patch, stop_after=2)
        torch.manual_seed(99)  # what was drawn before does not matter
        with pytest.raises(KeyboardInterrupt):
            respond(personal, tokenizer, JOBS, path, system="a", index=INDEX, **options)
    assert len(read(path)) == 4
    kept = path.read_text(encoding="utf-8").splitlines()[:3]
    torn = '\n{"key": "cut within a letter: é'.encode()[:-1]  # half a batch, and half a line
    path.write_bytes("\n".join(kept).encode() + torn)
    with monkeypatch.context() as patch:
        calls = counting(patch)
        again = respond(personal, tokenizer, JOBS, path, system="a", index=INDEX, **options)
        assert sum(calls) == (7 if "do_sample" in options else 6)  # sampling makes a batch as a whole or not at all
        assert respond(personal, tokenizer, JOBS, path, system="a", index=INDEX, **options).equals(whole)
        assert sum(calls) < 8  # nothing was asked again
    assert again.equals(whole)
    assert path.read_text(encoding="utf-8").splitlines()[:3] == kept
    assert len({row["key"] for row in read(path)}) == len(read(path)) == len(JOBS)


def test_keys_tell_apart_what_answers_differ_by(personal, tokenizer, tmp_path, monkeypatch):
    path, calls = tmp_path / "answers.jsonl", counting(monkeypatch)
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("assistant", "bot")
    jobs = JOBS[:2]

    def new(tokenizer=tokenizer, jobs=jobs, **options):
        del calls[:]
        with torch.random.fork_rng():
            respond(personal, tokenizer, jobs, path, **{"system": "a", "index": INDEX, **LENGTH, **options})
        return sum(calls)

    assert new() == 2
    drawn = {"do_sample": True, "batch_size": 1}
    changed = {"max_new_tokens": 7}, {"contexts": Contexts("true", PEOPLE)}, {"tokenizer": other}
    sampled = drawn, {**drawn, "seed": 1}, {**drawn, "batch_size": 2}, {**drawn, "jobs": jobs[::-1]}
    for options in changed + sampled:
        assert new(**options) == 2, options
    assert new(index=None) == 1
    layers = [layer for layer in personal.modules() if isinstance(getattr(layer, "scaling", None), dict)]
    for factor, asked in ((2, 2), (0.5, 0)):
        for layer in layers:
            layer.scaling["default"] *= factor
        assert new() == asked
    with personal.disable_adapter():
        assert new(index=None) == 1
    assert new(batch_size=1, seed=5, system="b") == 0  # of no account when greedy
    with torch.no_grad():
        personal.get_input_embeddings().weight[5] += 0.1
    assert new() == 2


def test_the_reader_is_shown_to_the_model(personal, tokenizer, tmp_path):
    jobs = [job for job in JOBS if job["user_id"] in PEOPLE]
    contexts = Contexts("random", PEOPLE, seed=4)
    silent, table = (
        respond(personal, tokenizer, jobs, tmp_path / "a", system="a", contexts=shown, index=INDEX, **LENGTH)
        for shown in (None, contexts)
    )
    assert list(table.shown) == [contexts.put(job["prompt"], job["user_id"]) for job in jobs]
    assert list(table.context_user) == [contexts.whose(job["user_id"], job["prompt"]) for job in jobs]
    assert list(table.prompt) == [job["prompt"][0]["content"] for job in jobs]
    assert set(table.context) == {"random"}
    assert list(table.answer) != list(silent.answer)


def test_long_prompts_lose_their_oldest_turns_and_never_the_context(make_tiny, tokenizer, tmp_path):
    dialogue = message("user", "First?") + message("assistant", "One answer. " * 9) + message("user", "And then?")
    jobs = [{"user_id": "ann", "prompt": prompt} for prompt in (dialogue, message("user", "Short."))]
    contexts = Contexts("true", PEOPLE)
    limit = ids_of(tokenizer, contexts.put(message("user", "And then?"), "ann")).shape[1]
    options = {"system": "a", "contexts": contexts, **LENGTH}
    table = respond(make_tiny(), tokenizer, jobs, tmp_path / "a", max_prompt_tokens=limit, **options)
    assert table.shown[0] == contexts.put(message("user", "And then?"), "ann")
    assert table.prompt[0].startswith("First?")  # judges see all of it
    assert list(table.shortened) == [True, False]
    with pytest.raises(kit.DecodingError, match=f"job 0 has more than max_prompt_tokens={limit - 1} tokens"):
        respond(make_tiny(), tokenizer, jobs, tmp_path / "a", max_prompt_tokens=limit - 1, **options)


def test_what_may_be_told_of_choices_does_not_depend_on_the_cut(make_tiny, tokenizer, tmp_path):
    whole = message("user", "First?") + message("assistant", "One answer. " * 3) + message("user", "And then?")
    branch = [*whole[:1], *message("assistant", "No."), *message("user", "And so?")]
    pairs = [record("p", "ann", branch, "Yes.", "No."), record("q", "ann", "Tea?", "Yes.", "No.")]
    contexts = Contexts("choices", {"ann": None}, earlier=[Dataset.from_list(pairs)])
    limit = ids_of(tokenizer, contexts.put(whole, "ann")).shape[1] - 1
    options = {"system": "a", "contexts": contexts, "max_prompt_tokens": limit, **LENGTH}
    jobs = [{"user_id": "ann", "prompt": whole}]
    [row] = respond(make_tiny(), tokenizer, jobs, tmp_path / "a", **options).to_dict("records")
    assert row["shortened"]
    assert row["context_pairs"] == ["q"]
    assert "And so?" not in row["shown"][0]["content"]


def test_what_cannot_be_answered_is_refused_before_anything_is_generated(
    personal, make_tiny, tokenizer, tmp_path, monkeypatch
):
    counting(monkeypatch, stop_after=0)
    path = tmp_path / "answers.jsonl"
    told = with_context(Dataset.from_list(JOBS[:2]), Contexts("true", PEOPLE))
    one = JOBS[:1]
    for match, jobs, options in (
        ("no jobs", [], {}),
        ("job 0 has a context in its prompt already", told, {}),
        ("no option 'max_new_token'", one, {"max_new_token": 3}),
        ("context of 256", [*one, {"user_id": "a", "prompt": message("user", "long text " * 80)}], {}),
    ):
        with pytest.raises(ValueError, match=match):
            respond(personal, tokenizer, jobs, path, **{"system": "a", **options})
    with pytest.raises(kit.data.SchemaError, match="nothing is known of the user 'zoe'"):
        respond(personal, tokenizer, JOBS, path, system="a", contexts=Contexts("true", PEOPLE))
    with pytest.raises(kit.ConditioningError, match="has no user model"):
        respond(make_tiny(), tokenizer, one, path, system="a", index=INDEX)
    personal.train()
    with pytest.raises(kit.DecodingError, match="training mode"):
        respond(personal, tokenizer, one, path, system="a")
    personal.eval()
    assert not path.exists()
    path.write_text(text := '{"key": "k", "prompt": "of another program"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .* is no answer of respond"):
        respond(personal, tokenizer, one, path, system="a")
    assert path.read_text() == text
