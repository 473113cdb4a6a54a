"""Sample the responses of the `simulated` dataset from SmolLM2 and write `prlhf_kit/data/simulated.parquet`.

    python scripts/make_simulated.py            # about half an hour on 2 CPU cores

Each prompt is answered in seven styles. A style is a system message and three worked examples (a 135M model follows
examples, hardly instructions) with a temperature of its own. Answers that did not end by themselves within
`MAX_NEW_TOKENS`, near-duplicates and empty ones are dropped; up to `KEEP` of the rest are kept a prompt, one a style.
"""

from __future__ import annotations

import argparse
from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from prlhf_kit.models.hub import load_model, load_tokenizer

HERE = Path(__file__).parent
MAX_NEW_TOKENS = 64
KEEP = 6
ROUNDS = 2  # a second round tries again where an answer was dropped

QUESTIONS = ("How do I keep flowers fresh?", "Why do we have seasons?", "How do I stop being shy?")

# style -> (temperature, system message, answers to QUESTIONS in that style)
STYLES: dict[str, tuple[float, str, tuple[str, str, str]]] = {
    "brief": (
        0.7,
        "Answer in a few words.",
        ("Change the water every day.", "Because the Earth's axis is tilted.", "Start with small talk."),
    ),
    "plain": (
        0.7,
        "Answer in two plain sentences.",
        (
            "Cut the stems and put them in clean water. Keep the vase away from the sun.",
            "The Earth's axis is tilted. Each half of the planet leans toward the sun for part of the year.",
            "Talk to one new person each week. It gets easier with practice.",
        ),
    ),
    "detailed": (
        0.7,
        "Answer thoroughly in three full sentences.",
        (
            "Trim two centimeters off each stem at an angle, so that the flowers can take up more water. Change the "
            "water every second day and wash the vase, because bacteria block the stems. Keep them in a cool place "
            "away from fruit.",
            "Seasons happen because the Earth's axis is tilted by about 23 degrees. While the planet travels around "
            "the sun, each half receives more direct light for part of the year. More direct light and longer days "
            "bring summer, and less of both brings winter.",
            "Shyness fades with practice, so begin with small and safe steps such as greeting a neighbor. Prepare two "
            "or three questions before you meet people, because that takes the pressure off. Afterward, write down "
            "what went well and try again.",
        ),
    ),
    "list": (
        0.7,
        "Answer with three short bullet points.",
        (
            "- Trim the stems\n- Change the water daily\n- Keep them out of the sun",
            "- The Earth's axis is tilted\n- The Earth moves around the sun\n- Each half gets more light in turn",
            "- Smile at people\n- Prepare a question\n- Practice every day",
        ),
    ),
    "warm": (
        0.8,
        "You are a warm and cheerful friend.",
        (
            "Oh, how lovely! Just give them clean water every day, my friend, and they will love you for it!",
            "What a wonderful question! Our dear Earth leans a little, so everyone gets a turn in the sun. Enjoy it!",
            "I'm so glad you asked, dear! You're wonderful, so just smile and say hello. You've got this!",
        ),
    ),
    "formal": (
        0.7,
        "You are a formal expert.",
        (
            "It is advisable to trim the stems and to replace the water daily.",
            "The seasons result from the inclination of the rotational axis of the Earth relative to its orbit.",
            "It is recommended to seek gradual exposure to social situations, since familiarity reduces anxiety.",
        ),
    ),
    "curious": (
        0.8,
        "You are a friendly coach who asks questions back.",
        (
            "Clean water helps. What flowers do you have, and where do you keep them?",
            "The Earth is tilted. Which season do you like best, and why?",
            "Small steps help. When do you feel most shy, and what would you like to say?",
        ),
    ),
}


def messages(prompt: str, style: str) -> list[dict[str, str]]:
    """The chat that asks for `prompt` in `style`: system message, three worked examples, the prompt."""
    _, system, answers = STYLES[style]
    chat = [{"role": "system", "content": system}]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": prompt}]


@torch.inference_mode()
def sample(model, tokenizer, prompts: list[str], style: str) -> list[str | None]:
    """One answer a prompt; None where it did not end within `MAX_NEW_TOKENS` or nearly repeats a worked example."""
    texts = [
        tokenizer.apply_chat_template(messages(p, style), tokenize=False, add_generation_prompt=True) for p in prompts
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(
        **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=STYLES[style][0], top_p=0.95, top_k=0
    )[:, batch["input_ids"].shape[1] :]
    answers: list[str | None] = []
    for ids in out:
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        copied = max(SequenceMatcher(None, text, example).ratio() for example in STYLES[style][2]) > 0.7
        usable = bool((ids == tokenizer.eos_token_id).any()) and text and not copied
        answers.append(text if usable else None)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--limit", type=int, help="only the first LIMIT prompts, for a try")
    parser.add_argument("--out", type=Path, default=HERE.parent / "prlhf_kit" / "data" / "simulated.parquet")
    args = parser.parse_args()

    prompts = (HERE / "simulated_prompts.txt").read_text().splitlines()[: args.limit]
    model, tokenizer = load_model(), load_tokenizer()
    torch.manual_seed(args.seed)
    found: dict[tuple[int, str], str] = {}
    for _ in range(ROUNDS):
        for style in tqdm(STYLES):
            missing = [i for i in range(len(prompts)) if (i, style) not in found]
            for start in range(0, len(missing), args.batch_size):
                ids = missing[start : start + args.batch_size]
                answers = sample(model, tokenizer, [prompts[i] for i in ids], style)
                found |= {(i, style): a for i, a in zip(ids, answers, strict=True) if a}

    rows = []
    for i, prompt in enumerate(prompts):
        kept: dict[str, str] = {}  # lower-cased text -> style, so that no prompt has the same answer twice
        shift = i % len(STYLES)  # which styles are left out when all seven succeeded changes from prompt to prompt
        for style in [*STYLES][shift:] + [*STYLES][:shift]:
            text = found.get((i, style))
            if text and text.lower() not in kept and len(kept) < KEEP:
                kept[text.lower()] = style
                rows.append({"prompt_id": i, "prompt": prompt, "response": text, "style": style})
    table = pd.DataFrame(rows)
    table = table[table.groupby("prompt_id")["style"].transform("size") >= 4]  # four to six responses a prompt
    table.to_parquet(args.out, index=False)
    print(f"{table.prompt_id.nunique()} prompts, {len(table)} responses -> {args.out}")
    print(table.groupby("style").size().to_string())


if __name__ == "__main__":
    main()
