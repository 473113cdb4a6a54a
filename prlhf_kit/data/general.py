"""General preference sets: `hh`, `webgpt`, `gpt4llm` (one user), `hh_relabelled` (two objectives), `prefeval`."""

import hashlib
from pathlib import Path

from prlhf_kit.data.dialogue import NotAPair, common_prompt, scored_records
from prlhf_kit.data.registry import Records, Source, Tally, dataset, opening, require_known, share, split_of
from prlhf_kit.data.schema import SchemaError, message, record
from prlhf_kit.data.sources import Parts, hub_rows, local_files, local_parts, local_rows, rows_of

HH, WEBGPT = "Anthropic/hh-rlhf", "openai/webgpt_comparisons"
SUBSETS = ("helpful", "harmless")
OBJECTIVES = {"helpful": "Help me with whatever I ask.", "harmless": "Never say anything that could do harm."}


@dataset(
    "hh",
    title="HH-RLHF (Bai et al. 2022, arXiv 2204.05862)",
    source=f"hub: {HH}; DSP's cleaned files: https://github.com/Linear95/DSP",
    licence="MIT; DSP's cleaned files CC BY-NC 4.0",
    users="1 (general): not named",
    quality="Offensive content by design. Many pairs differ little, some are labelled against sense. In a few rows the "
    "dialogues differ before the last answer; they are dropped. Some prompts are in train and test.",
    # as commonly reported, not checked against the hub
    counts={"helpful, train": 43_835, "helpful, test": 2_354, "harmless, train": 42_537, "harmless, test": 2_312},
    rules={"prompt in train and test": "drop"},
)
def hh(tally: Tally, path: Source = None, *, subset: str = "both", test_share: float = 0.1, seed: int = 0) -> Records:
    r"""Records of the user "general".

    A row: `{"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"}`.

    Args:
        path: a folder with `helpful-base/{train,test}.jsonl.gz` (and `harmless-base`, as on the hub), or with DSP's
            cleaned `helpful.{train,test}.json`; or one file of either form.
        subset: "helpful", "harmless" or "both", of the hub or a folder.
        test_share, seed: for a file without a split of its own, which is split by prompt.
    """
    require_known([subset], (*SUBSETS, "both"), "subset")
    if path is not None and Path(path).is_file():
        subsets: tuple[str, ...] = (Path(path).name.split(".")[0],)
    else:
        subsets = SUBSETS if subset == "both" else (subset,)
    for name in subsets:
        if path is None:
            parts: Parts = [(part, hub_rows(HH, part, data_dir=f"{name}-base")) for part in ("train", "test")]
        else:
            parts = local_parts(path, [f"{name}-base/{{part}}.*", f"{name}.{{part}}.*"], [f"{name}*"])
        yield from scored_records(parts, tally, f"hh-{name}", test_share, seed, count=name)


@dataset(
    "webgpt",
    title="WebGPT comparisons (Nakano et al. 2021, arXiv 2112.09332)",
    source=f"hub: {WEBGPT}; DSP's cleaned files: https://github.com/Linear95/DSP",
    licence="not stated (OpenAI); DSP's cleaned files CC BY-NC 4.0",
    users="1 (general): not named",
    quality="Judged with the quotes in sight, which are not part of the record: marks such as [1] lead nowhere.",
    counts={"comparisons": 19_578},
    rules={"prompt in train and test": "drop"},
)
def webgpt(tally: Tally, path: Source = None, *, test_share: float = 0.1, seed: int = 0) -> Records:
    """Records of the user "general", ties dropped and counted.

    A row (the hub's parquet conversion): `{"question": {"full_text": "Why?"}, "answer_0": "So.", "answer_1": "No.",
    "score_0": 0.5, "score_1": -0.5}`, or in `text`-`score` format.

    Args:
        path: a file of either form, or a folder with `webgpt*`.
        test_share, seed: for a source without a split of its own, which is split by question.
    """
    if path is None:
        parts: Parts = [(None, hub_rows(WEBGPT, "train", converted=True))]
    else:
        whole = ("webgpt*", "default/train/*", "*train*", "*.parquet", "*.jsonl")
        parts = local_parts(path, ["webgpt.{part}.*"], whole)

    def read(row: dict) -> tuple[list[dict[str, str]], list, list]:
        asked = message("user", row["question"]["full_text"] or "")
        return asked, [row["answer_0"], row["answer_1"]], [row["score_0"], row["score_1"]]

    yield from scored_records(parts, tally, "webgpt", test_share, seed, read)


@dataset(
    "gpt4llm",
    title="GPT-4-LLM comparisons (Peng et al. 2023, arXiv 2304.03277)",
    source="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM, data/comparison_data_v2.json",
    licence="CC BY-NC 4.0",
    users="1 (general): GPT-4",
    quality="One model's judgement, known to favour long answers and its own. Many scores are equal.",
    rules={"prompt in train and test": "drop"},
)
def gpt4llm(tally: Tally, path: str | Path, *, test_share: float = 0.1, seed: int = 0) -> Records:
    """Records of the user "general": every pair of a prompt's responses with different scores.

    A row: `{"user_input": "Make tea.", "responses_and_scores": [{"response": "Hot water.", "score": 8}, {"response":
    "No.", "score": 2}]}`, or in `text`-`score` format (DSP's cleaned files).

    Args:
        path: a file of either form, or a folder with `comparison_data*.json` or `gpt4llm.{train,test}.json`.
        test_share, seed: for a source without a split of its own, which is split by prompt.
    """

    def read(row: dict) -> tuple[list[dict[str, str]], list, list]:
        scored = row["responses_and_scores"]
        asked = message("user", row["user_input"] or "")
        return asked, [one["response"] for one in scored], [one["score"] for one in scored]

    whole = ("comparison_data_v2.json", "comparison_data*.json", "gpt4llm*")
    parts = local_parts(path, ["gpt4llm.{part}.*"], whole)
    yield from scored_records(parts, tally, "gpt4llm", test_share, seed, read, count="prompts")


@dataset(
    "hh_relabelled",
    title="HH-RLHF relabelled by objective (VPL, Poddar et al. 2024, arXiv 2408.10075)",
    source="https://github.com/WEIRDLabUW/vpl_llm, both.jsonl.gz",
    licence="base data MIT; labels as published with VPL",
    users="2 objectives (helpful, harmless)",
    quality="Labelled by a model, not by people. The two users rank different pairs: where they disagree on the same "
    "pair can't be read off it.",
)
def hh_relabelled(tally: Tally, path: str | Path, *, test_share: float = 0.1, seed: int = 0) -> Records:
    r"""Records split by the dialogues' first turns. The objective is the user: pairs of both subsets are ranked by it.

    A row: `{"chosen": "Human: Hi.\n\nAssistant: Hello!", "rejected": "Human: Hi.\n\nAssistant: What?", "objective":
    "helpful", "data_subset": "harmless"}`.

    Args:
        path: the file, or a folder with `both.jsonl*`.
        test_share, seed: share of the prompts for tests, and what draws them.
    """
    for number, row in enumerate(local_rows(path, "both.jsonl*", "*.jsonl*")):
        user = row["objective"]
        if user not in OBJECTIVES:
            raise SchemaError(f"the objective of row {number} is {user!r}, expected one of {list(OBJECTIVES)}.")
        tally.count("pairs")
        try:
            prompt, (chosen, rejected) = common_prompt(row["chosen"], row["rejected"])
        except NotAPair as reason:
            tally.drop(None, user, str(reason))
            continue
        split = split_of(user, opening(prompt), (), test_share, seed)
        yield split, record(f"{user}-{number}", user, prompt, chosen, rejected, OBJECTIVES[user])


@dataset(
    "prefeval",
    title="PrefEval, multiple choice (Zhao et al. 2025, arXiv 2502.09597)",
    source="https://github.com/amazon-science/PrefEval, benchmark_dataset/mcq_options",
    licence="CC BY-NC 4.0",
    users="about 1,000 stated preferences on 20 topics",
    quality="Written by a model. Options are one sentence; the first is always the right one in the source. The same "
    "question can be asked under two preferences.",
    counts={"questions": 1_000},
    rules={"prompt in train and test": "drop", "user with too few pairs": "drop"},
)
def prefeval(tally: Tally, path: str | Path, *, unseen_share: float = 0.2, seed: int = 0) -> Records:
    """Records of `train` and `test_unseen`. A user is a preference; its text is `user_text`, its topic the group.

    A user has one question (a few have two), so seen users have no new prompts to be tested on, and what is learnt
    must come through `user_text`. A row: `{"topic": "tea", "preference": "I like green tea.", "question": "What shall
    I drink?", "classification_task_options": ["Sencha.", "Coffee.", "Cola.", "Beer."]}`, the first option respects it.

    Args:
        path: a file, or the folder of topic files.
        unseen_share: share of the users that are not trained on.
        seed: draws them.
    """
    files = local_files(path, "*.json", "mcq_options/*.json")
    rows = ((file, row) for file in files for row in rows_of([file]))
    for number, (file, row) in enumerate(rows):
        # one file a topic in the release, in which 'travel_hotel copy' is a slip
        topic = (row.get("topic") or file.stem).removesuffix(" copy")
        user = hashlib.sha256(row["preference"].encode()).hexdigest()[:12]
        split = "test_unseen" if share(seed, "user", user) < unseen_share else "train"
        tally.count("questions")
        right, *others = row["classification_task_options"]
        for i, option in enumerate(others):
            pair = (row["question"], right, option)
            yield split, record(f"{number}-{user}-{i}", user, *pair, user_text=row["preference"], group=topic)
