"""Measures of text against values computed by hand, and texts that are too short, empty or not English."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from prlhf_kit.data.attributes import ATTRIBUTES
from prlhf_kit.data.schema import message
from prlhf_kit.data.simulated import Population
from prlhf_kit.evaluation import steering, text
from prlhf_kit.models import embedded
from prlhf_kit.models.features import load_embedder

NAN = float("nan")


def table(rows, columns=("system", "user_id", "prompt", "answer")):
    return pd.DataFrame(rows, columns=list(columns))


def test_words():
    assert text.words("The CAT, the cat's 3 hats — and 😀!") == ["the", "cat", "the", "cat's", "3", "hats", "and"]
    assert text.words("Привет, мир. 你好世界") == ["привет", "мир", "你好世界"]
    assert text.words("") == text.words("😀 ... !") == []


def test_repetition_and_diversity_by_hand():
    tokens = "a b c a b c d".split()
    # 2-grams: ab bc ca ab bc cd, four of six; 3-grams: abc bca cab abc bcd, four of five; 4-grams: all four differ
    assert text.repetition(tokens, 1) == pytest.approx(1 - 4 / 7)
    assert text.repetition(tokens, 2) == pytest.approx(1 / 3)
    assert text.repetition(tokens, 3) == pytest.approx(1 / 5)
    assert text.repetition(tokens, 4) == 0
    assert text.diversity(tokens) == pytest.approx(2 / 3 * 4 / 5)
    assert text.diversity(["no"] * 10) == pytest.approx(1 / 9 * 1 / 8 * 1 / 7)


def test_texts_too_short_to_repeat_themselves_are_nan():
    assert math.isnan(text.repetition([], 1))
    assert math.isnan(text.repetition(["a"], 2))
    assert text.repetition(["a", "b"], 2) == 0
    assert math.isnan(text.diversity("a b c".split()))
    assert text.diversity("a b c d".split()) == 1


def test_distinct_by_hand():
    texts = ["The cat sat.", "the dog sat", "Sat!", ""]
    assert text.distinct_n(texts, 1) == 4 / 7  # the, cat, sat, dog
    assert text.distinct_n(texts, 2) == 4 / 4  # the cat, cat sat, the dog, dog sat
    assert text.distinct_n([*texts, "the cat"], 2) == 4 / 5
    assert math.isnan(text.distinct_n(["one word", ""], 3))
    assert math.isnan(text.distinct_n([], 1))


def test_self_bleu_by_hand():
    one, other = "a b c d e", "a b c d x"
    # one beside the other: 4 of 5 words, 3 of 4 bigrams, 2 of 3, 1 of 2; equally long, so no brevity penalty
    bleu = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert text.self_bleu([one, other]) == pytest.approx(bleu)
    # nothing in common with any: 0; the first two have a better reference than it
    assert text.self_bleu([one, other, "v w y z q"]) == pytest.approx(2 / 3 * bleu)
    assert text.self_bleu(["Same words, all four.", "same words all four"]) == pytest.approx(1)
    # three words: no 4-gram, which counts as 0.1 matches of one (nltk's method 1)
    assert text.self_bleu(["a b c", "a b c"]) == pytest.approx(0.1 ** (1 / 4))


def test_self_bleu_needs_two_texts_with_words():
    for texts in ([], ["one text"], ["one text", "", "😀"]):
        with pytest.raises(AssertionError, match=f"of {len(texts)} texts have words, expected two or more"):
            text.self_bleu(texts)
    assert text.self_bleu(["a b c d", "", "a b c d"]) == pytest.approx(1)


@dataclass
class Directions:
    """Embeds a text by how many a's, b's and c's it has."""

    name: str = "directions"
    decoder: bool = False

    def __call__(self, prompts, responses, cache=None):
        assert not any(prompts)
        texts = ["\n\n".join(m["content"] for m in response) for response in responses]
        return np.array([[t.count(letter) for letter in "abc"] for t in texts], np.float32)


def test_coherence_by_hand():
    dialogue = [*message("user", "a"), *message("assistant", "b"), *message("user", "c")]
    prompts, answers = ["a", "a", "a", dialogue, "a", " "], ["aaa", "b", "ab", "ccc", "", "a"]
    found = text.coherence(Directions(), prompts, answers)
    assert found == pytest.approx([1, 0, 1 / math.sqrt(2), 1 / math.sqrt(3), NAN, NAN], nan_ok=True)
    assert np.isnan(text.coherence(Directions(), ["a"], [""])).all()
    assert text.coherence(Directions(), [], []).shape == (0,)
    with pytest.raises(ValueError, match="'directions' is a decoder; expected a sentence encoder"):
        text.coherence(Directions(decoder=True), ["a"], ["a"])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        text.coherence(Directions(), ["a", "b"], ["a"])


def test_coherence_of_real_embeddings(tmp_path):
    prompts = ["How do I make green tea?"] * 2 + ["😀"]
    answers = ["Boil water, let it cool a little, and pour it over the tea leaves.", "Stock prices fell.", "😀"]
    embedder = load_embedder(embedded.SENTENCES)
    on_topic, off_topic, same = text.coherence(embedder, prompts, answers, tmp_path)
    assert on_topic > 0.5 > 0.2 > off_topic
    assert same == pytest.approx(1)
    vectors = embedder([[]] * 2, [message("user", prompts[0]), message("assistant", answers[0])])
    assert on_topic == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)


def test_readability_by_hand():
    # 11 words in two sentences: the doc-tor gave the pa-tient wa-ter, the gar-den was beau-ti-ful to-day
    found = text.readability(["The doctor gave the patient water. The garden was beautiful today."])
    syllables = 1 + 2 + 1 + 1 + 2 + 2 + 1 + 2 + 1 + 3 + 2
    assert found.reading_ease.item() == pytest.approx(206.835 - 1.015 * 11 / 2 - 84.6 * syllables / 11)
    assert found.grade.item() == pytest.approx(0.39 * 11 / 2 + 11.8 * syllables / 11 - 15.59)
    one = text.readability(["Yes"])
    assert one.reading_ease.item() == pytest.approx(206.835 - 1.015 - 84.6)


def test_readability_without_english_words_is_nan():
    found = text.readability(["", "  ", "😀", "!?", "12 345", "你好世界", "Привет, мир."])
    assert found.shape == (7, 2)
    assert found.isna().all(axis=None)
    assert text.readability([]).columns.tolist() == ["reading_ease", "grade"]


def test_length():
    found = text.length(["Two words.", "", "😀 你好"])
    assert found.to_dict("list") == {"words": [2, 0, 1], "characters": [10, 0, 4]}


@pytest.mark.parametrize(
    "answer",
    [
        "I can't help with that.",
        "I can’t assist you there.",
        "  I cannot provide medical advice.",
        "I'm sorry, but I can't do that.",
        "I am so sorry, I won't discuss this.",
        "I'm sorry for the confusion, but I am unable to say.",
        "I apologize, but I cannot fulfill this request.",
        "My apologies. I'm not able to do so.",
        "Unfortunately, I will not write that.",
        "As an AI language model, I cannot give opinions.",
        "I must respectfully decline.",
        "That isn't something I can do.",
        "I do not have the ability to browse.",
        "I'm not comfortable with this.",
    ],
)
def test_refusals(answer):
    assert text.refusals([answer]).tolist() == [True]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "😀",
        "I can help with that.",
        "I can't wait to see you!",
        "I can't help but smile.",
        "I'm sorry to hear that. Rest helps.",
        "Sorry for your loss. Talk to a friend.",
        "As an AI, I find this fun.",
        "No, tea is better.",
        "Here it is. I can't help with more.",
        "Unfortunately, it will rain.",
        "我不能帮你。",
    ],
)
def test_no_refusals(answer):
    assert text.refusals([answer]).tolist() == [False]


def test_kl_by_hand():
    policy, base = [[math.log(0.5), math.log(0.8)], [], [math.log(0.3)]], [[math.log(0.25), math.log(0.8)], [], [0.0]]
    found = text.kl_per_token(policy, base)
    assert found.tokens.tolist() == [2, 0, 1]
    assert found.k1.tolist() == pytest.approx([math.log(2) / 2, NAN, math.log(0.3)], nan_ok=True)
    k3 = [(0.5 - 1 + math.log(2)) / 2, NAN, 1 / 0.3 - 1 + math.log(0.3)]
    assert found.k3.tolist() == pytest.approx(k3, nan_ok=True)
    with pytest.raises(AssertionError, match=r"answer 1: log-probabilities \(1,\) and \(2,\)"):
        text.kl_per_token([[0.0], [0.0]], [[0.0], [0.0, 0.0]])


def test_both_estimates_come_close_to_the_true_divergence():
    policy, base = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    drawn = np.random.default_rng(0).choice(3, size=(20, 2000), p=policy)
    found = text.kl_per_token(list(np.log(policy)[drawn]), list(np.log(base)[drawn]))
    exact = (policy * np.log(policy / base)).sum()
    assert found.k1.mean() == pytest.approx(exact, abs=0.01)
    assert found.k3.mean() == pytest.approx(exact, abs=0.01)
    assert found.k3.std() < found.k1.std()
    assert text.kl_per_token([], []).columns.tolist() == ["tokens", "k1", "k3"]


def test_scores_of_a_table():
    answers = table(
        [
            ("base", "ann", "Why?", "a b c a b c d"),
            ("base", "bob", "Why?", ""),
            ("mine", "ann", "Why?", "I cannot help you."),
        ]
    )
    answers.index = [7, 7, 7]  # rows are told apart by place, not by index
    found = text.text_scores(answers)
    assert found.columns.tolist() == list(text.SCORES)
    measures = ["words", "rep-2", "rep-3", "rep-4", "diversity", "Flesch reading ease", "refusal"]
    assert found.measure.unique().tolist() == measures
    assert len(found) == 3 * 7
    assert (found.item == "Why?").all()
    assert (found.prompt == "Why?").all()
    values = found.set_index(["measure", "method", "user_id"]).value.unstack("measure")[measures]
    assert values.loc[("base", "ann")].tolist() == pytest.approx(
        [7, 1 / 3, 1 / 5, 0, 8 / 15, 206.835 - 1.015 * 7 - 84.6, 0]
    )
    assert values.loc[("base", "bob")].tolist() == pytest.approx([0, NAN, NAN, NAN, NAN, NAN, 0], nan_ok=True)
    # can-not help you: five syllables in four words
    assert values.loc[("mine", "ann")].tolist() == pytest.approx([4, 0, 0, 0, 1, 206.835 - 4.06 - 84.6 * 5 / 4, 1])


def test_tables_without_answers_and_bad_ones():
    assert text.text_scores(table([])).columns.tolist() == list(text.SCORES)
    assert text.corpus_scores(table([])).empty
    with pytest.raises(ValueError, match="answers lack user_id, prompt; they have system, answer"):
        text.text_scores(table([("base", "x")], ["system", "answer"]))
    for answer in (None, NAN):
        with pytest.raises(ValueError, match="1 of 2 answers are no text, first row 1"):
            text.corpus_scores(table([("base", "ann", "Why?", "x"), ("base", "bob", "Why?", answer)]))


def test_corpus_scores_by_hand():
    answers = table(
        [
            ("base", "bob", "p", "a b c d e"),
            ("base", "bob", "q", "a b c d x"),
            ("base", "bob", "r", ""),
            ("base", "eve", "p", "a b c d e"),  # what a system tells several users is no repetition
            ("mine", "ann", "p", "yes"),
            ("mine", None, "p", "no no"),
        ]
    )
    found = text.corpus_scores(answers)
    assert found.columns.tolist() == list(text.SCORES)
    values = found.fillna({"user_id": "nobody"}).set_index(["method", "user_id", "measure"]).value
    assert values["base", "bob"].to_dict() == pytest.approx(
        {"distinct-1": 6 / 10, "distinct-2": 5 / 8, "distinct-3": 4 / 6, "self-BLEU": 0.2 ** (1 / 4)}
    )
    assert values["base", "eve"].tolist() == pytest.approx([1, 1, 1, NAN], nan_ok=True)
    assert values["mine", "ann"].tolist() == pytest.approx([1, NAN, NAN, NAN], nan_ok=True)
    assert values["mine", "nobody"].tolist() == pytest.approx([0.5, 1, NAN, NAN], nan_ok=True)


def test_self_bleu_of_many_answers_draws_the_same_of_all_systems(monkeypatch):
    monkeypatch.setattr(text, "SELF_BLEU_ANSWERS", 5)
    rows = [("ann", f"p{i}", " ".join(f"w{(i * k) % 7}" for k in range(6))) for i in range(30)]
    answers = table([("one", *row) for row in rows] + [("two", *row) for row in reversed(rows)])
    one, two = text.corpus_scores(answers).query("measure == 'self-BLEU'").value
    assert one == two
    assert one != text.self_bleu([answer for *_, answer in rows])
    seeds = {text.corpus_scores(answers, seed).query("measure == 'self-BLEU'").value.iloc[0] for seed in range(5)}
    assert len(seeds) > 1


def test_rewards_by_several_scorers():
    weights = pd.DataFrame(0.0, index=["long", "short"], columns=list(ATTRIBUTES))
    weights["length"] = [1.0, -1.0]
    ones = pd.Series(1.0, index=list(ATTRIBUTES))
    people = Population(weights, {"long": "x", "short": "y"}, 0 * ones, ones, 1.0)
    answers = table([("base", "long", "Why?", "one two three"), ("mine", "short", "How?", "one two three")])
    asked = []

    def letters(users, prompts, texts):
        asked.append((users, prompts, texts))
        return [len(t) for t in texts]

    dialogue = [*message("user", "How?"), *message("assistant", "Like this."), *message("user", "How?")]
    found = text.reward_table(answers, {"own": steering.true_utility(people), "letters": letters}, {"How?": dialogue})
    assert asked == [(["long", "short"], [message("user", "Why?"), dialogue], ["one two three"] * 2)]
    assert found.columns.tolist() == list(text.SCORES)
    assert found[["measure", "method", "user_id", "item", "prompt"]].to_numpy().tolist() == [
        ["own", "base", "long", "Why?", "Why?"],
        ["own", "mine", "short", "How?", "How?"],
        ["letters", "base", "long", "Why?", "Why?"],
        ["letters", "mine", "short", "How?", "How?"],
    ]
    assert found.value.tolist() == pytest.approx([math.log(4), -math.log(4), 13, 13])


def test_rewards_are_one_each():
    answers = table([("base", "ann", "Why?", "x"), ("base", "bob", "Why?", "")])
    with pytest.raises(ValueError, match="does not match length"):
        text.reward_table(answers, {"odd": lambda users, prompts, texts: [1.0]})
