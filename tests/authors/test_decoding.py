"""Decoding against the tokens of the authors' code: ARGS, PAD in its released form, P-RLHF's greedy answers."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

import prlhf_kit as kit
from authors.golden import HERE, MODELS, fill, golden, language_model, load_tokenizer, until_end
from prlhf_kit.decoding.generate import ids_of
from prlhf_kit.training.persrm import RELEASED, load_persrm

ARGS = golden("args.json")
PAD = golden("pad.json")
FIRST = PAD["first_step"]
GREEDY = golden("pdpo_greedy.json")


def settings(gold):
    """Weight and number of candidates, each once."""
    return sorted({(row[0], row[1]) for row in gold["rows"]})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def base():
    return language_model()


@pytest.fixture(scope="module")
def args(tokenizer, tmp_path_factory):
    """The authors' padding token of the reward model is 0, as the tokenizer's."""
    folder = tmp_path_factory.mktemp("reward")
    LlamaForSequenceClassification.from_pretrained(MODELS / "reward").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return kit.ARGS(kit.load_reward(str(folder)))


def as_released(folder, suffix="safetensors"):
    """`folder` like PAD's released checkpoint: the merged model, LLaMA-Factory's value head beside it."""
    shutil.copytree(MODELS / "persona", folder, dirs_exist_ok=True)
    head = {f"v_head.summary.{name}": value for name, value in load_file(HERE / "pad_head.safetensors").items()}
    write = save_file if suffix == "safetensors" else torch.save
    write(head, folder / f"value_head.{suffix}")
    return folder


@pytest.fixture(scope="module")
def pad(tokenizer, tmp_path_factory):
    return kit.PAD(load_persrm(as_released(tmp_path_factory.mktemp("pad"))), form="released", tokenizer=tokenizer)


def compare(gold, weight, top_k, guide, base, tokenizer):
    """The authors' rows of one setting, answered as one batch."""
    rows = [dict(zip(gold["columns"], row, strict=True)) for row in gold["rows"] if row[:2] == [weight, top_k]]
    prompts = [[{"role": "user", "content": row.get("principle", "") + row["prompt"]}] for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == row["prompt_ids"]
    decoder = kit.GuidedDecoder(
        base, tokenizer, guide, weight=weight, top_k=top_k, max_new_tokens=gold["max_new_tokens"]
    )
    found = [answer.tokens for answer in decoder.generate(prompts)]
    assert found == [until_end(row["tokens"]) for row in rows]


@pytest.mark.parametrize(("weight", "top_k"), settings(ARGS))
def test_args(weight, top_k, args, base, tokenizer):
    """Both of the authors' greedy modes: they give the same tokens, as the kit's only one."""
    compare(ARGS, weight, top_k, args, base, tokenizer)


@pytest.mark.parametrize(("weight", "top_k"), settings(PAD))
def test_pad(weight, top_k, pad, base, tokenizer):
    """Base and personalised model both read the principle, glued to the prompt."""
    compare(PAD, weight, top_k, pad, base, tokenizer)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_pads_released_checkpoint(suffix, tokenizer, tmp_path):
    """Its logits are those of a plain computation from its files; the principle stands in the user's turn."""
    persrm = load_persrm(as_released(tmp_path, suffix))
    ids = tokenizer("how do i make tea ?", return_tensors="pt")["input_ids"]
    plain, head = language_model("persona"), load_file(HERE / "pad_head.safetensors")
    with torch.no_grad():
        hidden = plain.model(ids).last_hidden_state @ head["weight"].T + head["bias"]
        torch.testing.assert_close(persrm(ids).logits, plain.lm_head(hidden))
    prompt = [{"role": "user", "content": "tea ?"}]
    told = [{"role": "user", "content": RELEASED.replace("{}", "humor").replace("{prompt}", "tea ?")}]
    guide = kit.PAD(persrm, form="released")
    assert guide.base_prompt(prompt, "humor") == told
    [(row, _)] = guide.rows(0, prompt, "humor", tokenizer)
    assert row.ids == ids_of(tokenizer, told)


def test_an_ordinary_value_head_is_no_persrm(tmp_path):
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, as_released(tmp_path) / "value_head.safetensors")
    with pytest.raises(kit.ModelError, match=r"\(1, 32\).*, expected v_head.summary of .*\(32, 32\)"):
        load_persrm(tmp_path)


def test_scores_of_pads_first_step(pad, base, tokenizer):
    """All ten candidates of every prompt: they are drawn, all as likely, until each was seen.

    Scores are equal up to a constant, so the base's own choice is taken off.
    """
    prompts, wanted = [], []
    for principle, prompt, _, candidates, scores in FIRST["rows"]:
        prompts.append([{"role": "user", "content": principle + prompt}])
        wanted.append(dict(zip(candidates, scores, strict=True)))
    weight, found = FIRST["weight"], [{} for _ in prompts]
    for seed in range(100):
        decoder = kit.GuidedDecoder(
            base,
            tokenizer,
            pad,
            weight=weight,
            top_k=FIRST["top_k"],
            max_new_tokens=1,
            do_sample=True,
            temperature=1e6,
            seed=seed,
        )
        for seen, answer in zip(found, decoder.generate(prompts), strict=True):
            seen[answer.tokens[0]] = (1 - weight) * answer.logps[0] + weight * answer.rewards[0]
    for seen, scores in zip(found, wanted, strict=True):
        assert seen.keys() == scores.keys()
        gaps = [seen[token] - scores[token] for token in scores]
        assert [gap - gaps[0] for gap in gaps] == pytest.approx([0] * len(gaps), abs=1e-5)


def test_greedy_answers_of_p_rlhf():
    """With the user's vectors behind the begin token, as in the authors' code; the kit's default is in front of it."""
    model, tokenizer = language_model(), load_tokenizer()
    tokenizer.backend_tokenizer.decoder = None  # text with the tokens' own names: single bytes may be no character
    users = kit.IndividualUserModel(4, model.get_input_embeddings(), num_tokens=3, after_bos=True)
    fill(users, load_file(HERE / "pdpo_individual.safetensors"))
    kit.condition(model, users)
    answers = GREEDY["answers"]
    prompts = [[{"role": "user", "content": answer["prompt"]}] for answer in answers]
    rows = [answer["user_row"] for answer in answers]
    found = kit.generate(model, tokenizer, prompts, rows, max_new_tokens=GREEDY["max_new_tokens"])
    wanted = [until_end(answer["tokens"]) for answer in answers]
    assert found == [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in wanted]
