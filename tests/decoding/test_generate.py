"""Personalised generation against plain uncached loops, token for token in float32."""

import pytest
import torch
from conftest import ALL_FAMILIES

import prlhf_kit as kit
from decoding.plain import PROMPTS, ids_of
from prlhf_kit.data.schema import message


@pytest.mark.parametrize("architecture", ["llama"])
def test_sampling_is_seeded(personal, tokenizer):
    options = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 8}
    one = kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=1, **options)
    assert one == kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=1, **options)
    assert one != kit.generate(personal, tokenizer, PROMPTS, [1, 2, 3], seed=2, **options)


@pytest.mark.parametrize("architecture", ["llama"])
def test_bad_requests(personal, tokenizer):
    for match, prompts, rows, options in (
        ("1 user rows for 3", PROMPTS, [1], {}),
        ("no option 'max_new_token'. Did you mean 'max_new_tokens'", PROMPTS, [1] * 3, {"max_new_token": 4}),
        ("empty prompt", [[{"role": "user", "content": " "}]], [1], {}),
        ("context of 256", [[{"role": "user", "content": "long text " * 80}]], [1], {}),
    ):
        with pytest.raises(kit.DecodingError, match=match):
            kit.generate(personal, tokenizer, prompts, rows, **options)


@torch.no_grad()
def next_logps(model, tokenizer, prompt, row, new):
    """Without a cache: the whole text again. The end of the text is forbidden, as by `min_new_tokens`."""
    text = torch.cat([ids_of(tokenizer, prompt), torch.tensor([new], dtype=torch.long)], 1)
    logits = model(input_ids=text, user_rows=torch.tensor([row])).logits[0, -1]
    logits[tokenizer.eos_token_id] = -torch.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_generates_for_users_as_without_a_cache(make_tiny, tokenizer, family):
    """Greedy in a left-padded batch, beam search in one too, and sampling."""
    model, rows, steps = make_tiny(family, users=3, offsets=0.8), [1, 2, 3], 6
    length = {"max_new_tokens": steps, "min_new_tokens": steps}

    def text(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def greedy(prompt, row):
        new = []
        for _ in range(steps):
            new.append(next_logps(model, tokenizer, prompt, row, new).argmax().item())
        return text(new)

    def beams(prompt, row, width=3):
        kept = [([], 0.0)]
        for _ in range(steps):
            tried = []
            for new, score in kept:
                top = next_logps(model, tokenizer, prompt, row, new).topk(2 * width)
                tried += [
                    ([*new, t], score + s) for t, s in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                ]
            kept = sorted(tried, key=lambda one: -one[1])[:width]
        return text(kept[0][0])

    def sampled(prompt, row):
        torch.manual_seed(4)
        new = []
        for _ in range(steps):
            probabilities = next_logps(model, tokenizer, prompt, row, new).exp()
            new.append(torch.multinomial(probabilities[None], 1).item())
        return text(new)

    asked = list(zip(PROMPTS, rows, strict=True))
    assert kit.generate(model, tokenizer, PROMPTS, rows, **length) == [greedy(*one) for one in asked]
    found = kit.generate(model, tokenizer, PROMPTS, rows, num_beams=3, **length)
    assert found == [beams(*one) for one in asked]
    drawn = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": 4}
    for prompt, row in asked:
        assert kit.generate(model, tokenizer, [prompt], [row], **drawn, **length) == [sampled(prompt, row)]
    one = kit.generate(model, tokenizer, [PROMPTS[1]] * 3, [1, 2, 3], **length)
    assert len(set(one)) > 1  # users differ


@pytest.mark.parametrize("users", [True, False])
def test_penalties_do_not_depend_on_the_batch(make_tiny, tokenizer, users):
    """They go by token ids, of which padding and soft tokens have none of their own."""
    model = make_tiny(users=2, offsets=0.8)
    prompts = [message("user", "how do i make tea " * n) for n in (1, 5, 8)]
    rows, same = [1, 2, 1], {"max_new_tokens": 24, "repetition_penalty": 3.0}
    together = kit.generate(model, tokenizer, prompts, rows if users else None, **same)
    for prompt, row, answer in zip(prompts, rows, together, strict=True):
        assert kit.generate(model, tokenizer, [prompt], [row] if users else None, **same) == [answer]
    assert together != kit.generate(model, tokenizer, prompts, rows if users else None, max_new_tokens=24)
