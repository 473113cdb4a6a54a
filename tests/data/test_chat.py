"""Chat templates: which are refused, and those without a system message."""

import logging
from pathlib import Path

import pytest
from conftest import CHATML
from peft import LoraConfig
from transformers import AutoTokenizer

import prlhf_kit as kit
from prlhf_kit.data.chat import PLAIN_TEMPLATE, apply_template, require_prefix, shorten, with_user_text
from prlhf_kit.data.schema import message
from prlhf_kit.models.logprobs import score_pairs
from prlhf_kit.models.tokenize import tokenize_completions

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
# of Mistral 7B 0.1: roles alternate from the first message on
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
# of Mistral 7B 0.3: the words stand in the last message if that is the user's, so an answer makes them disappear
FORGETS = (
    "{% set words = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'user' %}{{ words }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DROPS = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML


@pytest.fixture
def load(base):
    """A tiny model's folder whose tokenizer has a template."""

    def save(template):
        (Path(base) / "chat_template.jinja").write_text(template)
        return base

    return save


@pytest.mark.parametrize("template", [REFUSES, ALTERNATES, FORGETS, DROPS])
def test_without_a_system_message_its_words_begin_the_users_message(template, load, pairs, caplog):
    tokenizer = kit.load_tokenizer(load(template))
    told = with_user_text(pairs.map(lambda row: {"user_text": "Be brief."}))
    prompt = told[0]["prompt"]
    text = apply_template(tokenizer, prompt, add_generation_prompt=True, tokenize=False)
    as_one = message("user", f"Be brief.\n\n{prompt[-1]['content']}")
    assert text == apply_template(tokenizer, as_one, add_generation_prompt=True, tokenize=False)
    require_prefix(tokenizer)
    assert caplog.text.count("has no system message") == 1
    scores = score_pairs(kit.load_model(load(template)), tokenizer, told)
    assert scores.chosen_logp.notna().all()


def test_a_template_with_a_system_message_stays_as_it_is(load, caplog):
    with caplog.at_level(logging.WARNING):
        assert kit.load_tokenizer(load(CHATML)).chat_template == CHATML
    assert not caplog.text


def test_roles_that_no_template_takes_are_refused_with_the_way_out(load):
    tokenizer = kit.load_tokenizer(load(ALTERNATES))
    twice = message("user", "Hello?") * 2
    with pytest.raises(kit.data.SchemaError, match=r"refuses the roles \['user', 'user'\] \(roles must"):
        tokenize_completions(tokenizer, twice, message("assistant", "Hi."))


def test_templates_that_change_the_prompt_are_refused(make_tiny, pairs, load, tmp_path):
    changed = AutoTokenizer.from_pretrained(load(CHATML))
    changed.chat_template = (  # as reasoning models' templates do: the last turn is laid out differently
        "{% for m in messages %}{{ '[' + m['role'] + (' last' if loop.last else '') + ']' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant last]' }}{% endif %}"
    )
    with pytest.raises(kit.data.SchemaError, match=r"does not keep the prompt in front.*get_training_chat_template"):
        require_prefix(changed)
    config = kit.PersonalizedDPOConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(kit.data.SchemaError, match="does not keep the prompt in front"):
        kit.PersonalizedDPOTrainer(make_tiny(users=3), config, pairs, None, changed, peft_config=LoraConfig())
    changed.chat_template = PLAIN_TEMPLATE
    require_prefix(changed)


def test_shorten_by_hand():
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    talk = [turn for i, role in enumerate(roles) for turn in message(role, str(i))]
    assert shorten(talk, lambda p: len(p) <= 4) == [talk[0], *talk[3:]]
    assert shorten(talk, lambda p: len(p) <= 2) == [talk[0], talk[5]]
    assert shorten(talk, lambda p: False) is None
    assert shorten(message("user", "1"), lambda p: True) is None  # nothing older to leave out
