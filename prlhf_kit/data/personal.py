"""Personal preference sets of many raters: `community_alignment`, `personalrewardbench`, `ufp`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from prlhf_kit.data.dialogue import scored_records
from prlhf_kit.data.registry import Records, Source, Tally, dataset, names, require_known, share, split_for, split_of
from prlhf_kit.data.schema import message, record
from prlhf_kit.data.sources import hub_rows, local_rows

COMMUNITY = "facebook/community-alignment-dataset"
LANGUAGES = ("en", "fr", "hi", "it", "pt")
TURNS = ("first", "second", "third", "fourth")
BENCHES = {
    "prism": "MichaelR207/prism_personalized_0125",
    "arena": "MichaelR207/chatbot_arena_personalized_0125",
}
ATTRIBUTES = {  # user -> its number in VPL's files, and what such a person would say
    "helpfulness": ("8", "Give me what helps me most."),
    "honesty": ("4", "Be honest about what you do not know."),
    "instruction_following": ("2", "Do exactly what I ask, in the way I ask."),
    "truthfulness": ("1", "Tell me only what is true."),
}


@dataset(
    "community_alignment",
    title="Community Alignment (Zhang et al. 2025, arXiv 2507.09650)",
    source=f"hub: {COMMUNITY}, community_alignment.csv",
    licence="CC BY 4.0",
    users="over 3,500 annotators in five countries",
    quality="About 31% of the conversations begin with the annotator's own question, unmoderated. Some annotators "
    "write another language than the one they were assigned.",
    # counted in version 1.1 by others who use it, not here
    counts={"conversations": 90_256, "conversations, en": 30_856},
    rules={"user with too few pairs": "drop"},
)
def community_alignment(
    tally: Tally,
    path: Source = None,
    *,
    languages: str | Sequence[str] = "en",
    unseen_share: float = 0.2,
    test_share: float = 0.1,
    seed: int = 0,
) -> Records:
    """Records of up to four turns: the chosen response against each other one, after the dialogue so far (of chosen
    responses). The annotator's country is the group. Splits are by first question, which many annotators share.

    A conversation is read up to the first turn without a question or a choice. Columns and their values are those that
    public code reads from the file; not checked against the file.

    A row: `{"conversation_id": 7, "assigned_lang": "en", "annotator_id": 12, "annotator_country": "india",
    "first_turn_prompt": "How do I make tea?", "first_turn_response_a": "Boil water.", ..., "first_turn_response_d":
    "Ask a friend.", "first_turn_preferred_response": "response_a", "second_turn_prompt": "And then?", ...}`.

    Args:
        path: `community_alignment.csv`, or a folder with it.
        languages: that annotators were assigned: "en", "fr", "hi", "it", "pt".
        unseen_share: share of the annotators that are not trained on.
        test_share: share of the first questions for tests.
        seed: draws both.
    """
    wanted = names(languages, LANGUAGES, "language")
    rows = hub_rows(COMMUNITY, "train") if path is None else local_rows(path, "community_alignment.csv", "*.csv")
    for number, row in enumerate(rows):
        tally.count("conversations")
        if row["assigned_lang"] not in wanted:
            continue
        tally.count(f"conversations, {row['assigned_lang']}")
        user = "" if row["annotator_id"] is None else str(row["annotator_id"])  # no name is refused by the checks
        unseen = [user] if share(seed, "user", user) < unseen_share else []
        split = split_of(user, row["first_turn_prompt"] or "", unseen, test_share, seed)
        dialogue: list[dict[str, str]] = []
        for turn in TURNS:
            asked = row[f"{turn}_turn_prompt"]
            responses = {  # some end with a token of the model
                f"response_{letter}": (row[f"{turn}_turn_response_{letter}"] or "").removesuffix("<|end_of_text|>")
                for letter in "abcd"
            }
            chosen = responses.pop(row[f"{turn}_turn_preferred_response"], "")
            if not (asked and chosen):
                break
            dialogue = dialogue + message("user", asked)
            for name, other in responses.items():
                pair_id = f"{number}-{turn}-{name[-1]}"
                yield split, record(pair_id, user, dialogue, chosen, other, group=row["annotator_country"] or None)
            dialogue = dialogue + message("assistant", chosen)
        if not dialogue:
            tally.drop(split, user, "first turn without a question or a choice", 3)


@dataset(
    "personalrewardbench",
    title="PersonalRewardBench (SynthesizeMe, Ryan et al. 2025, arXiv 2506.05598)",
    source=f"hub: {', '.join(BENCHES.values())}",
    licence="not checked",
    users="723 of PRISM, 131 of Chatbot Arena",
    quality="Texts have the licences of PRISM and Chatbot Arena. Models chose what can be personalised. Its PRISM "
    "pairs are those of `prism`: do not train on one and test on the other.",
    counts={"arena, train": 305, "arena, test": 798},
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
    folder=True,
)
def personalrewardbench(tally: Tally, path: Source = None, *, subset: str = "prism") -> Records:
    """Records in the benchmark's own splits, of which it has two: parts of users, and of each user's pairs (`split`).

    Users of the hub's train part are seen, those of its test part unseen. A user's own pairs for training and
    validation are in `train` or `adapt_unseen`, the rest in `test_seen` or `test_unseen`: the paper's test is
    `test_unseen`. The hub's validation part, users to tune on, is not read. Columns are those that the authors' code
    reads; not checked against the files.

    A row: `{"user_id": "user1", "conversation_id": "c1", "context": [{"role": "user", "content": "How do I make
    tea?"}], "chosen": {"role": "model", "content": "Boil water."}, "rejected": {"role": "model", "content": "No."},
    "split": "train", ...}`. A response may be a list of one message.

    Args:
        path: the subset's folder, or one with `prism_personalized_0125` or `chatbot_arena_personalized_0125` in it.
        subset: "prism" or "arena".
    """
    require_known([subset], BENCHES, "subset")
    hub = BENCHES[subset]
    parts = {
        part: hub_rows(hub, part)
        if path is None
        else local_rows(path, f"{hub.split('/')[1]}/data/{part}*", f"data/{part}*", f"{part}*")
        for part in ("train", "test")
    }
    unseen = {row["user_id"] for row in parts["test"]} - {row["user_id"] for row in parts["train"]}
    for part, rows in parts.items():
        for number, row in enumerate(rows):
            tally.count(f"{subset}, {part}")
            require_known([row["split"]], ("train", "val", "test"), "split")
            split = split_for(row["user_id"] in unseen, row["split"] == "test")
            prompt = [m | {"role": "user" if m["role"] == "user" else "assistant"} for m in row["context"]]
            chosen, rejected = (
                (answer[0] if isinstance(answer, list) else answer)["content"]
                for answer in (row["chosen"], row["rejected"])
            )
            yield split, record(f"{subset}-{part}-{number}", row["user_id"], prompt, chosen, rejected)


@dataset(
    "ufp",
    title="UF-P (VPL, Poddar et al. 2024, arXiv 2408.10075)",
    source="https://github.com/WEIRDLabUW/vpl_llm: its script ultrafeedback_augment, or the files that it links",
    licence="MIT; labels as published with VPL",
    users="4 attributes of UltraFeedback",
    quality="GPT-4's ratings, not people's. The script ranks equal ratings by a coin, so that a part of the "
    "disagreements is chance.",
    rules={"prompt in train and test": "drop"},
    folder=True,
)
def ufp(
    tally: Tally,
    path: str | Path,
    *,
    users: str | Iterable[str] = tuple(ATTRIBUTES),
    controversial: bool = True,
    unseen: str | Iterable[str] = (),
) -> Records:
    r"""Records of the source's own parts. A user ranks by the ratings of one attribute, and is told so by `user_text`.

    UF-P-4 has all four users, UF-P-2 `users=("helpfulness", "honesty")`. Columns are those that the authors' script
    writes; not checked against the files that they link.

    A row of `8/train.jsonl`: `{"chosen": "Human: Hi.\n\nAssistant: Hello!", "rejected": "Human: Hi.\n\nAssistant:
    What?", "data_subset": "8", "controversial": true, "reversed": false, ...}`.

    Args:
        path: a folder with `{8,4,2,1}/{train,test}.jsonl`, of the users in the order above.
        users: those to read.
        controversial: only pairs which not all four users rank alike, as in the paper's training.
        unseen: users who are not trained on.
    """
    users, unseen = names(users, ATTRIBUTES, "user"), names(unseen, ATTRIBUTES, "user")
    for user in users:
        number, text = ATTRIBUTES[user]
        parts = []
        for part in ("train", "test"):
            rows = local_rows(path, f"{number}/{part}.jsonl*")
            parts.append((part, (row for row in rows if row["controversial"] or not controversial)))
        yield from scored_records(parts, tally, "ufp", 0, 0, unseen=unseen, user_id=user, user_text=text, count=user)
