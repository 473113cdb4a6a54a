"""ComPRed, on rows of its real schema."""

import pytest
from raw import pairs_of, post, refused, write

import prlhf_kit as kit
from prlhf_kit.data.chat import COMPO_TEMPLATE, prompt_texts, require_prefix
from prlhf_kit.data.context import Contexts


@pytest.mark.parametrize("label", [None, "1", 2])
def test_a_label_that_is_none_is_no_label(label, tmp_path):
    for split in ("train_pref", "test_pref"):
        write(tmp_path / "history" / f"{split}.jsonl", [post(1, "a"), post(2, "a") | {"labels": label}])
    refused("labels is", "compred", tmp_path, factors="history")


def test_compred(compred_folder):
    data, report = kit.data.load_with_report("compred", compred_folder, factors=["history", "politics"])
    assert set(data["train"]["user_id"]) == {"historyA", "historyB", "politicsA", "politicsB"}
    assert set(data["train"]["group"]) == {"history", "politics"}
    assert len(data["train"]) == 2 * (5 + 1)
    reasons = report.table.groupby("reason").pairs.sum().to_dict()
    assert reasons == {"more than 5 pairs of a post": 8, "score ratio below 2": 2}
    for user, question, chosen, rejected in pairs_of(data):
        assert (chosen[0], rejected[0]) == (("B", "A") if user.endswith("A") else ("A", "B"))  # labels 0: B preferred
        assert question.startswith("Title")
    again = kit.data.load("compred", compred_folder, factors=["history", "politics"])
    other = kit.data.load("compred", compred_folder, factors=["history", "politics"], seed=5)
    assert pairs_of(data) == pairs_of(again) != pairs_of(other)
    held = kit.data.load("compred", compred_folder, factors=["history"], unseen=["historyB"])
    assert set(held["test_unseen"]["user_id"]) == {"historyB"} == set(held["adapt_unseen"]["user_id"])


@pytest.mark.parametrize(("context", "said"), [("true", "r/historyA"), ("none", "Reddit")])
def test_the_layout_is_compos(compred_folder, tokenizer, tmp_path, context, said):
    """A row as the authors' `sft.py` and `predict.py` write it."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    layout = kit.load_tokenizer(str(tmp_path), chat_template=COMPO_TEMPLATE)
    require_prefix(layout)
    row = kit.data.load("compred", compred_folder, factors="history")["train"][0]
    prompt = Contexts(context, {"historyA": None}, "compo").put(row["prompt"], row["user_id"])
    wanted, chosen = (
        f"<|domain|>\n{said}\n<|user|>\nTitle 2001\nText 2001.\n<|assistant|>\n",
        row["chosen"][0]["content"],
    )
    assert prompt_texts(layout, [prompt], answered=False) == [wanted]
    assert prompt_texts(layout, [prompt + row["chosen"]], answered=True) == [f"{wanted}{chosen}{tokenizer.eos_token}"]
