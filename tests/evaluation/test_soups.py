"""Which pairs soups rank right, beside everybody's own adapter."""

import pytest
from peft import PeftModel

import prlhf_kit as kit
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.evaluation import accuracy, soups
from prlhf_kit.models.logprobs import score_pairs


def test_own_adapter_all_alike_and_the_others(base, tokenizer, pairs, adapters):
    folders = {"a": adapters["a"], "b": adapters["b"], "c": adapters["b"]}
    table = soups.ranked_by_soup(kit.load_model(base), tokenizer, folders, pairs)
    assert table.groupby("method").size().to_dict() == dict.fromkeys(table.method.unique(), len(pairs))
    own = pairs.filter(lambda row: row["user_id"] == "a")
    reference = score_pairs(kit.load_model(base), tokenizer, own)
    found = table[table.user_id == "a"].groupby("method").value.agg(list)
    assert found[accuracy.UNTRAINED] == accuracy.likelier(reference).tolist()
    for method, folder in {soups.OWN: adapters["a"], soups.OTHERS: adapters["b"]}.items():  # b and c are the same
        model = PeftModel.from_pretrained(kit.load_model(base), folder)
        ranked = accuracy.by_implicit_reward(score_pairs(model, tokenizer, own), reference).tolist()
        assert found[method] == ranked
    assert found[soups.OWN] != found[soups.OTHERS]


def test_one_adapter_and_a_user_without(base, tokenizer, pairs, adapters):
    own = pairs.filter(lambda row: row["user_id"] == "a")
    table = soups.ranked_by_soup(kit.load_model(base), tokenizer, {"a": adapters["a"]}, own)
    assert soups.OTHERS not in set(table.method)
    assert table[table.method == soups.OWN].value.tolist() == table[table.method == soups.ALIKE].value.tolist()
    with pytest.raises(SchemaError, match="no user_id 'b'"):
        soups.ranked_by_soup(kit.load_model(base), tokenizer, {"a": adapters["a"]}, pairs)
