"""`prism`: what 1,396 people preferred in their own conversations (Kirk et al. 2024, arXiv 2404.16019)."""

from collections.abc import Iterator

import numpy as np

from prlhf_kit.data.registry import Records, Source, Tally, dataset, split_for
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.data.sources import hub_rows, local_rows

HUB = "HannahRoseKirk/prism-alignment"
CARES = {  # a stated preference -> what such a person cares about
    "values": "answers in line with their values and culture",
    "creativity": "creative and inspiring answers",
    "fluency": "well-written answers",
    "factuality": "facts",
    "diversity": "several viewpoints",
    "safety": "answers that do no harm",
    "personalisation": "being known from earlier conversations",
    "helpfulness": "help with what they asked",
}
FACTS = {  # as it is said of a person -> column of the survey
    "age": "age",
    "gender": "gender",
    "education": "education",
    "work": "employment_status",
    "family": "marital_status",
    "English": "english_proficiency",
}


@dataset(
    "prism",
    title="PRISM (Kirk et al. 2024, arXiv 2404.16019)",
    source=f"hub: {HUB}, survey and conversations",
    licence="texts CC BY 4.0, responses CC BY-NC 4.0",
    users="1,396 people from 75 countries",
    quality="Everybody writes their own prompts: users can't be compared on the same ones, and a taste can't be told "
    "from a topic. From the second turn on both responses are the same model's. Personal and sensitive texts.",
    counts={
        "users": 1_396,
        "conversations": 8_011,
        "seen users": 1_234,
        "unseen users": 162,
        "conversations without a usable turn": 2,
    },
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
    folder=True,
)
def read(
    tally: Tally,
    path: Source = None,
    *,
    max_characters: int | None = 2300,
    train_share: float = 0.9,
    adapt_share: float = 0.5,
    seed: int = 123,
) -> Records:
    """Records with the person's survey answers as `user_text`: at every turn the chosen response against each other
    one, with the dialogue so far (of chosen responses) in the prompt.

    The split is P-RLHF's (Li et al. 2024, arXiv 2402.05133, and its released notebook): 90% of the users are seen, 90%
    of the conversations of each are for training, and whoever has one conversation only becomes unseen. Departures:
    P-RLHF cuts long histories to their last characters, `check(max_prompt_tokens=)` leaves out whole old turns; and
    half of an unseen user's conversations are for adaptation (`adapt_share=0` gives P-RLHF's test).

    A row of the survey: `{"user_id": "user0", "num_completed_conversations": 6, "self_description": "I teach.",
    "system_string": "Be honest.", "order_stated_prefs": {"values": 2, "creativity": 1}, "age": "25-34 years old", ...}`
    (rank 1 is the most important). A conversation: `{"conversation_id": "c0", "user_id": "user0",
    "conversation_history": [{"turn": 0, "role": "user", "content": "Hi"}, {"turn": 0, "role": "model", "content":
    "Hello!", "if_chosen": True, "score": 90}, ...]}`, at every turn one message of the user and two to four of models.

    Args:
        path: a folder with `survey.jsonl` and `conversations.jsonl`.
        max_characters: longest last question and response together; longer pairs are dropped. None: any length.
        train_share: of the users, and of the conversations of each.
        adapt_share: of the conversations of an unseen user who has several.
        seed: shuffles users and conversations.
    """
    survey, conversations = (
        hub_rows(HUB, "train", name) if path is None else local_rows(path, f"{name}.*", f"{name}/*")
        for name in ("survey", "conversations")
    )
    texts = {row["user_id"]: describe(row) for row in survey if row["num_completed_conversations"]}
    by_user: dict[str, list[str]] = {user: [] for user in texts}
    limit = max_characters or float("inf")
    for row in conversations:
        tally.count("conversations")
        talk, user = row["conversation_id"], row["user_id"]
        if user not in by_user:
            raise SchemaError(f"conversation {talk!r} is of {user!r}, who is not in the survey: add them to it.")
        usable = any(  # a turn has a pair, and all of its responses are short enough
            asked and chosen and rejected and len(asked) + max(map(len, [chosen[0], *rejected])) <= limit
            for asked, chosen, rejected in _turns(row["conversation_history"])
        )
        if usable:
            by_user[user].append(talk)
        else:
            tally.count("conversations without a usable turn")
    rng = np.random.RandomState(seed)  # P-RLHF's generator and order of draws
    users = np.array([user for user, ids in by_user.items() if ids])
    rng.shuffle(users)
    cut = int(len(users) * train_share)
    splits: dict[str, str] = {}  # of each conversation
    for place, user in enumerate(users):
        ids = np.array(by_user[user])
        seen = place < cut and len(ids) > 1
        tally.count("users")
        tally.count("seen users" if seen else "unseen users")
        if place < cut:
            rng.shuffle(ids)
        first = int(len(ids) * (train_share if seen else adapt_share))
        splits |= {conversation: split_for(not seen, i >= first) for i, conversation in enumerate(ids.tolist())}
    for row in conversations:
        user, split = row["user_id"], splits.get(row["conversation_id"])
        dialogue: list[dict[str, str]] = []
        for turn, (asked, chosen, rejected) in enumerate(_turns(row["conversation_history"])):
            if dialogue and dialogue[-1]["role"] == "user":  # nothing was chosen there: its question joins this one
                asked = f"{dialogue.pop()['content']}\n\n{asked}"
            dialogue = dialogue + message("user", asked)
            if not chosen:
                continue
            for i, other in enumerate(rejected):
                if split is None:
                    tally.drop(None, user, "in a conversation without a usable turn")
                elif len(asked) + max(len(chosen[0]), len(other)) > limit:
                    tally.drop(split, user, f"longer than {max_characters} characters")
                else:
                    pair_id = f"{row['conversation_id']}-{turn}-{i}"
                    yield split, record(pair_id, user, dialogue, chosen[0], other, texts[user])
            dialogue = dialogue + message("assistant", chosen[0])


def describe(row: dict) -> str:
    """What a participant says of themselves, in sentences: wishes first, then values, then demographics."""
    ranks = {name: rank for name, rank in (row["order_stated_prefs"] or {}).items() if rank}
    first = [CARES[name] for name in sorted(ranks, key=lambda name: ranks[name]) if name in CARES and ranks[name] <= 3]
    silent = (None, "", "Prefer not to say")
    known = [f"{name} {row[column]}" for name, column in FACTS.items() if row[column] not in silent]
    parts = [
        f"How I want you to behave: {row['system_string']}" if row["system_string"] else "",
        f"What matters most to me: {', '.join(first)}." if first else "",
        f"About me: {row['self_description']}" if row["self_description"] else "",
        f"Facts: {'; '.join(known)}." if known else "",
    ]
    return "\n".join(filter(None, parts))


def _turns(history: list[dict]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(what the user said, chosen responses, rejected ones) of every turn."""
    turns: dict[int, tuple[list[str], list[str], list[str]]] = {}
    for line in history:
        asked, chosen, rejected = turns.setdefault(line["turn"], ([], [], []))
        into = asked if line["role"] == "user" else chosen if line["if_chosen"] else rejected
        # the release writes "EMPTY STRING" for a response that was empty (its codebook)
        into.append("" if line["content"] in (None, "EMPTY STRING") else line["content"])
    for _, (asked, chosen, rejected) in sorted(turns.items()):
        yield (asked[0] if asked else ""), chosen, rejected
