"""`prlhf bench`: reward accuracy of every method on several datasets, for seen users, and for new ones by the number of
their pairs that are known. A configuration has the keys of configs/bench.yaml, which says what they mean."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from datasets import Dataset, DatasetDict, concatenate_datasets

from prlhf_kit.data import context, registry, select
from prlhf_kit.data.chat import with_user_text, without_user_text
from prlhf_kit.data.load import fingerprint, load, resolved
from prlhf_kit.decoding.generate import generate
from prlhf_kit.evaluation import accuracy, heads
from prlhf_kit.evaluation.accuracy import by_implicit_reward, tests_of
from prlhf_kit.evaluation.intervals import BY_USER_AND_PROMPT, intervals, long_table, readable
from prlhf_kit.evaluation.outside_scores import BenchError, Scorer
from prlhf_kit.evaluation.personas import personas, with_personas
from prlhf_kit.evaluation.soups import ranked_by_soup
from prlhf_kit.files import git_state, only_on_hub, short_hash, unfinished
from prlhf_kit.models import features, hub, logprobs, saving
from prlhf_kit.training import controls, encoder, heads as kinds, presets
from prlhf_kit.training.launch import load_base
from prlhf_kit.training.recipe import Recipe, train
from prlhf_kit.training.soups import train_adapters

HEADS, TRAINED = (*kinds.KINDS, *encoder.KINDS), ("pdpo", "dpo", "soups", "choices_dpo")
METHODS = ("length", *HEADS, "untrained", "choices", "personas", *TRAINED)  # cheap ones first
COLUMNS = ["split", "method", "k", "user_id", "prompt", "item", "value"]
SEEN, NEW, FEW, CHOICES = "test_seen", "test_unseen", "adapt_unseen", "choices in context"
CHOICES_DPO, LIKELIER, PERSONA = f"DPO with {CHOICES}", f"{CHOICES}, by likelihood", "persona from choices"
SHIPPED = Path(__file__).parents[1] / "configs" / "bench.yaml"  # a configuration's defaults
_model, _tokenizer, _embedder = cache(hub.load_model), cache(hub.load_tokenizer), cache(features.load_embedder)

Bench = dict[str, Any]


def read(config: Path, methods: str = "") -> Bench:
    """The configuration in a YAML file; `methods`, "a,b", in place of its own."""
    given = yaml.safe_load(config.read_text(encoding="utf-8")) | ({"methods": methods.split(",")} if methods else {})
    known = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    registry.require_known(given, known, f"setting of {config} named")
    bench = known | given
    bench["datasets"] = {name: entry or {} for name, entry in bench["datasets"].items()}
    registry.require_known(bench["methods"], METHODS, "method")
    registry.require_known(bench["datasets"], registry.DATASETS, "dataset")
    for name, entry in bench["datasets"].items():
        registry.require_known(entry, ("path", "options", "pairs", "cluster"), f"setting of {name!r} named")
        registry.require_known(np.atleast_1d(entry.get("cluster", [])).tolist(), BY_USER_AND_PROMPT, "cluster")
        resolved(name, entry.get("options", {}))
    if not all(isinstance(k, int) and k >= 0 for k in bench["ks"]) or not any(bench["ks"]):
        raise BenchError(f"ks: {bench['ks']}: expected numbers of known pairs, one above 0, such as [0, 2, 4, 8].")
    recipe(bench, "pdpo")  # which may refuse it
    return bench


def recipe(bench: Bench, method: str) -> Recipe:
    """How a method is trained: "soups", each adapter; "choices_dpo", with `choices` of the user in the prompts."""
    own = bench["training"] | {"method": "pdpo" if method == "pdpo" else "dpo"}
    own["settings"] = {"seed": bench["seed"]} | own.get("settings", {})
    if method == "choices_dpo":
        own |= {"context": "choices", "settings": own["settings"] | {"max_length": None}}
    return Recipe(**presets.preset(own.pop("preset", "cpu_dpo"), **own))


def load_data(bench: Bench) -> dict[str, DatasetDict]:
    """The datasets that are there; of an absent one a line says where to get it."""
    found = {}
    for name, entry in bench["datasets"].items():
        path, options = entry.get("path"), {"max_tokens": bench["max_tokens"], **entry.get("options", {})}
        if path is None or (path and Path(path).exists()) or only_on_hub(path):
            found[name] = load(name, path, tokenizer=_tokenizer(bench["model"]), **options)
        else:
            print(f"{name}: left out, no data at path={path!r}. Get them from {registry.DATASETS[name].source}.")
    if not found:
        raise BenchError("none of the datasets is there. The embedded one needs no path: datasets: {simulated: {}}.")
    return found


def draw(bench: Bench, name: str, whole: DatasetDict) -> DatasetDict:
    """What methods are compared on: `pairs` of each test split, and new users of whom the largest k are known, so that
    all k compare the same users."""
    data, given = DatasetDict(whole), Counter(whole[FEW]["user_id"] if FEW in whole else ())
    for split in {NEW, FEW} & set(data) if given else ():
        enough = [given[user] >= max(bench["ks"]) for user in data[split]["user_id"]]
        data[split] = data[split].select(np.flatnonzero(enough))
    for split, pairs in tests_of(data).items():
        data[split] = select.subsample(pairs, bench["datasets"][name].get("pairs"), seed=bench["seed"])
    print(f"{name}: {', '.join(f'{len(pairs)} {split}' for split, pairs in data.items())} pairs")
    return DatasetDict({split: pairs for split, pairs in data.items() if len(pairs)})


def run(bench: Bench, data: dict[str, DatasetDict], outside: list[Scorer], out: Path) -> pd.DataFrame:
    """The long table, with `dataset`, `split`, `k` (None: of seen users) and the `commit` that made each part. Parts in
    `out`, of the same data and settings, are not computed again. Outside scorers, which may be refused, come first."""
    cases, tables = [_Case(bench, name, sets, out) for name, sets in data.items()], []
    methods: list[str | Scorer] = [*outside, *(one for one in METHODS if one in bench["methods"])]
    for method, case in ((method, case) for method in methods for case in cases):
        if isinstance(method, Scorer) and case.name not in method.datasets:
            continue
        own = [method.name, method.made_from] if isinstance(method, Scorer) else _made_from(bench, method)
        part = out / "parts" / f"{case.name}-{short_hash(fingerprint(case.data), own)}.parquet"
        if not part.exists():
            print(f"{case.name}: {own[0]} ...", flush=True)
            table = pd.concat([rows for rows in case.tables(method) if len(rows)]).reindex(columns=COLUMNS)
            table["k"] = table.k.astype(float).where(table.k.notna() | (table.split != NEW), 0)
            part.parent.mkdir(parents=True, exist_ok=True)
            table.assign(dataset=case.name, commit=git_state()["commit"]).to_parquet(unfinished(part))
            unfinished(part).replace(part)
        tables.append(pd.read_parquet(part))
    return pd.concat(tables, ignore_index=True)


def weights_of(name: str) -> str:
    """Hash of a model's name and, if it is a folder, of its weight files."""
    return short_hash(name, hub.weights_in(hub.resolve(name)))


def _made_from(bench: Bench, method: str) -> list[Any]:
    """What decides a method's results beside the data."""
    weights = [weights_of(bench["embedder"])] if method in (*HEADS, "pdpo") else []
    weights += [weights_of(bench["model"])] if method not in (*HEADS, "length") else []
    own = vars(recipe(bench, method)) if method in ("choices", *TRAINED) else {}
    return [method, bench["ks"], bench["seed"], bench["steps"] if method == "pdpo" else None, weights, own]


class _Case:
    """One dataset, and what several methods need of it."""

    def __init__(self, bench: Bench, name: str, data: DatasetDict, out: Path):
        self.name, self.data, self.train, self.tests, self.out = name, data, data["train"], tests_of(data), out / name
        self.bench, self.model, self.seed = bench, bench["model"], bench["seed"]
        self.ks = [k for k in bench["ks"] if k and FEW in data]

    @cached_property
    def vectors(self) -> dict[str, features.Embedded]:
        return features.embed(self.data, [_embedder(self.bench["embedder"])], features.feature_cache())

    @cached_property
    def with_reference(self) -> Dataset:
        own = recipe(self.bench, "dpo")
        base = load_base(self.model, own.train_base, dtype=own.dtype)  # rounded as the policy is
        return logprobs.add_reference_logps(self.train, base, _tokenizer(self.model))

    @cached_property
    def base(self) -> dict[str, pd.DataFrame]:
        return {split: self.scores(pairs) for split, pairs in self.tests.items()}

    def scores(self, pairs: Dataset) -> pd.DataFrame:
        return logprobs.score_pairs(_model(self.model), _tokenizer(self.model), pairs)

    def tables(self, method: str | Scorer) -> Iterator[pd.DataFrame]:
        """Long tables of what a method ranks right, with `split` and, of new users of whom pairs are known, `k`."""
        if isinstance(method, Scorer):
            for split, pairs in self.tests.items():
                yield long_table(pairs, {method.name: method.ranked(pairs)}, split=split)
        elif method == "length":
            yield heads.controls(self.data)
            for k in self.ks:  # each new user's own direction
                both = [self.train, select.few_shot(self.data, k, self.seed)]
                both = [pairs.select_columns(["user_id", "chosen", "rejected"]) for pairs in both]
                right = accuracy.length_rules(concatenate_datasets(both), self.tests[NEW])
                yield long_table(self.tests[NEW], right, split=NEW, k=k)
        elif method in HEADS:
            fitted = heads.fit(method, self.train, self.vectors["train"], [_embedder(self.bench["embedder"])])
            few = heads.ranked_after_few_shot(fitted, self.data, self.vectors, self.ks, self.seed)
            for found in (heads.held_out(fitted, self.data, self.vectors), few.assign(split=NEW)):
                yield found.assign(method=f"{method.replace('_', ' ')} head")
        elif method == "untrained":
            for split, pairs in self.tests.items():
                right = {accuracy.UNTRAINED: accuracy.likelier(self.base[split])}
                if all(pairs["user_text"]):
                    right[accuracy.TEXT] = by_implicit_reward(self.scores(with_user_text(pairs)), self.base[split])
                yield long_table(pairs, right, split=split)
        elif method in ("choices", "choices_dpo"):
            policy = controls.load_control(self.trained(method), self.model) if method in TRAINED else None
            for split in self.tests:
                for k in self.ks if split == NEW else [recipe(self.bench, method).choices]:
                    yield self.choices(split, k, policy)
        elif method == "personas":
            if seen := [split for split in self.tests if split != NEW]:
                yield from self.personas(seen, recipe(self.bench, method).choices)
            for k in self.ks:
                yield from self.personas([NEW], k)
        elif method == "dpo":
            control = controls.load_control(self.trained(method), self.model)
            for split, pairs in self.tests.items():
                scores = control.score(_tokenizer(self.model), pairs)
                yield long_table(pairs, {control.label: by_implicit_reward(scores, self.base[split])}, split=split)
        elif method == "soups":  # an adapter for each user
            folders = train_adapters(recipe(self.bench, method), self.model, self.with_reference, self.out / method)
            for split, pairs in self.tests.items():
                parts = _model(self.model), _tokenizer(self.model), folders, pairs, self.base[split]
                yield ranked_by_soup(*parts).assign(split=split)
        else:
            personal, index = saving.load_personalized(self.trained(method), self.model)
            for split, pairs in self.tests.items():
                found = accuracy.ranked_by_method(personal, [], _tokenizer(self.model), index, pairs, self.train)
                own = [accuracy.GENERIC_ROW] + [accuracy.PERSONAL] * (split != NEW)
                yield found[found.method.isin(own)].assign(split=split)
            if self.ks:
                asked, seed = (personal, _tokenizer(self.model)), self.seed
                by_pairs, _ = accuracy.ranked_by_pairs(*asked, self.data, self.ks, steps=self.bench["steps"], seed=seed)
                embedder = _embedder(self.bench["embedder"])
                at_once, _ = heads.ranked_when_placed(*asked, index, self.data, self.ks, embedder, seed=seed)
                for found in (by_pairs, at_once):
                    yield found[found.k > 0].assign(split=NEW)

    def earlier(self, split: str, k: int) -> Dataset:
        return select.few_shot(self.data, k, self.seed) if split == NEW else self.train

    def choices(self, split: str, k: int, policy: controls.Control | None) -> pd.DataFrame:
        """With k earlier choices in the prompt: how much they raise a response's log-prob, and its mean log-prob a
        token; or how much likelier a `policy` finds it than the untrained model does."""
        pairs, earlier = self.tests[split], self.earlier(split, k)
        people = context.people_of(*self.data.values())
        told = context.with_context(pairs, context.Contexts("choices", people, seed=self.seed, earlier=[earlier], k=k))
        print(f"{self.name}: of k = {k} choices {np.mean([len(ids) for ids in told['context_pairs']]):.1f} are told")
        scores = self.scores(told)
        if policy:
            right = {CHOICES_DPO: by_implicit_reward(policy.score(_tokenizer(self.model), told), scores)}
        else:
            right = {CHOICES: by_implicit_reward(scores, self.base[split]), LIKELIER: accuracy.likelier(scores)}
        return long_table(pairs, right, k=k, split=split)

    def personas(self, splits: list[str], k: int) -> Iterator[pd.DataFrame]:
        """With a persona in the prompt, which the untrained model wrote from k earlier choices: how much it raises a
        response's log-prob. Four more choices check it; of a new user, half of the k. Who has none counts 1/2."""

        def rank(pairs: Dataset) -> np.ndarray:
            if not any(pairs["user_text"]):
                return np.full(len(pairs), 0.5)
            return by_implicit_reward(self.scores(with_user_text(pairs)), self.scores(pairs))

        users = {user for split in splits for user in self.tests[split]["user_id"]}
        known = self.earlier(splits[0], k)
        known = without_user_text(known.select([i for i, user in enumerate(known["user_id"]) if user in users]))
        parts = _model(self.model), _tokenizer(self.model)
        found = personas(known, lambda asked: generate(*parts, asked, max_new_tokens=150), rank, k, seed=self.seed)
        print(f"{self.name}: k = {k}, personas by outcome: {found.outcome.value_counts().to_dict()}")
        for split in splits:
            pairs = with_personas(without_user_text(self.tests[split]), found)
            right = by_implicit_reward(self.scores(with_user_text(pairs)), self.base[split])
            yield long_table(pairs, {PERSONA: right}, k=k, split=split)

    def trained(self, method: str) -> Path:
        """The folder of a trained model, named by the recipe's method: trained now or before."""
        own = recipe(self.bench, method)
        train(own, self.model, self.with_reference, folder := self.out / method / own.method)
        return folder


def summary(values: pd.DataFrame, data: dict[str, DatasetDict], bench: Bench) -> pd.DataFrame:
    """Intervals by `dataset`, `split`, `method` and `k`, clustered as the configuration says, and oracles."""
    tables = []
    for name, rows in values.groupby("dataset", sort=False):
        by, cluster = ["dataset", "split", "method", "k"], bench["datasets"][name].get("cluster", BY_USER_AND_PROMPT)
        best = accuracy.oracle(tests_of(data[str(name)]))
        tables += [intervals(rows, by=by, cluster=cluster, seed=bench["seed"])]
        tables += [best.assign(dataset=name, k=np.nan)] if len(best) else []
    return pd.concat(tables, ignore_index=True)


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `summary` of one dataset to read: a row a method; columns for seen users, then for new ones by k."""
    at = table.k.fillna(0).where(table.split == NEW, -1)  # of seen users, all training pairs are known
    new = [f"new users, k = {k:g}" for k in at]
    table = table.assign(
        of=np.where(at >= 0, new, "seen users" + table.split.replace(SEEN, "").replace("test_", ", ", regex=True))
    )
    table["of"] += [f" (n = {n})" for n in table.groupby("of").n.transform("max")]
    columns = table.of.iloc[at.argsort(kind="stable")].unique()
    found = readable(table, "method", "of").reindex(table.method.unique(), columns=columns)
    return found.fillna("").rename_axis(columns=None).reset_index()


def published(names: Iterable[str]) -> pd.DataFrame:
    """What papers report on datasets of these names, by other models on other pairs: `dataset`, `method`, `value`,
    `model`, `source`."""
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return pd.DataFrame([{"dataset": name, **row} for name in names for row in known.get(name, [])])
