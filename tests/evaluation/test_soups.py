"""Which pairs soups rank right, beside everybody's own adapter."""

from peft import PeftModel

import prlhf_kit as kit
from prlhf_kit.evaluation import accuracy, soups
from prlhf_kit.models.logprobs import score_pairs


def test_own_adapter_all_alike_and_the_others(base, tokenizer, pairs, adapters):
    folders = {"a": adapters["a"], "b": adapters["b"]}
    model = kit.load_model(base)
    reference = score_pairs(model, tokenizer, pairs)
    table = soups.ranked_by_soup(model, tokenizer, folders, pairs, reference)
    users = table.groupby("method").user_id.agg(set).to_dict()  # c has no adapter
    assert users == {soups.OWN: {"a", "b"}, soups.OTHERS: {"a", "b"}, soups.ALIKE: {"a", "b", "c"}}
    own = pairs.filter(lambda row: row["user_id"] == "a")
    found = table[table.user_id == "a"].groupby("method").value.agg(list)
    for method, folder in {soups.OWN: adapters["a"], soups.OTHERS: adapters["b"]}.items():
        one = PeftModel.from_pretrained(kit.load_model(base), folder)
        assert found[method] == accuracy.by_implicit_reward(score_pairs(one, tokenizer, own), reference).tolist()
    assert found[soups.OWN] != found[soups.OTHERS]
    assert score_pairs(model, tokenizer, own).equals(score_pairs(kit.load_model(base), tokenizer, own))  # given back
    alone = soups.ranked_by_soup(model, tokenizer, {"a": adapters["a"]}, own, reference)
    right = alone.groupby("method").value.agg(list)
    assert right.to_dict() == dict.fromkeys([soups.OWN, soups.ALIKE], found[soups.OWN])
