"""Guided decoding by the papers' formulas: one prompt at a time, no cache, every model reads the whole text for each
token."""

import contextlib

import torch

from prlhf_kit.data.chat import tell
from prlhf_kit.models.preference_head import heads_on

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("Hi", "Tell me something about the sea, please", "Why not?")
]


def ids_of(tokenizer, prompt, told=None):
    layout = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return tokenizer.apply_chat_template(tell(prompt, told), **layout)["input_ids"]


def reader(model, tokenizer, prompt, told=None, adapter=True, head=True, user=None):
    """`new -> [V]`: log-probabilities of the token after the prompt and the tokens `new`."""
    ids, inputs = ids_of(tokenizer, prompt, told), {} if user is None else {"user_rows": torch.tensor([user])}

    def logps(new):
        text = torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if not adapter:
                stack.enter_context(model.disable_adapter())
            if not head:
                stack.enter_context(heads_on(model.get_base_model(), torch.tensor([False])))
            return model(input_ids=text, **inputs).logits[0, -1].log_softmax(-1)

    return logps


def summed(model, tokenizer, prompt, tokens, *told, **how):
    """Log-probability (nats) of a response's tokens; `told` and `how` are as of `reader`."""
    read = reader(model, tokenizer, prompt, *told, **how)
    return sum(read(tokens[:t])[token].item() for t, token in enumerate(tokens))


def steered(tokenizer, base, terms, weight=1.0, released=False, k=5, steps=12, draws=None, temperature=1.0):
    """Tokens by score(v) = base(v) + w * sum of factor * term(v); `released`: (1 - w) * base(v) + w * ...

    Args:
        terms: [(`new -> [V]`, factor)], or `(new, candidates) -> [k]`.
        draws: random numbers of sampling, one a token; None: greedy.
    """
    new = []
    for step in range(steps):
        w = weight[min(step, len(weight) - 1)] if isinstance(weight, list) else weight
        values = base(new)
        candidates = values.topk(k).indices.sort().values
        if callable(terms):
            reward = terms(new, candidates)
        else:
            reward = sum(factor * term(new)[candidates] for term, factor in terms)
        score = (1 - w if released else 1) * values[candidates] + w * reward
        if draws is None:
            pick = score.argmax()
        else:
            bounds = (score / temperature).softmax(-1).cumsum(-1)
            pick = int((bounds <= draws[step] * bounds[-1]).sum())
        new.append(candidates[pick].item())
        if new[-1] == tokenizer.eos_token_id:
            break
    return new
