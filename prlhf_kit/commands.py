"""What `prlhf run`, `bench`, `figures`, `notebooks` and `data` do; `cli.py` holds their options."""

import argparse
import difflib
import json
import shutil
import sys

from prlhf_kit.runs.commands import folder_of, tell_edits
from prlhf_kit.runs.parameters import PACKAGE, RunError, defaults, earlier, parameters_cell, typed
from prlhf_kit.runs.plans import checked, once
from prlhf_kit.runs.records import existing, records_of
from prlhf_kit.runs.stage import RECORD, read_record

# what takes seconds to import is imported where it is needed: a person waits for the prompt


def run(args: argparse.Namespace) -> int:
    """`prlhf run`: every notebook in turn, then the run's index page."""
    known = {notebook: defaults(notebook) for notebook in args.notebooks}
    if args.help_notebook:
        print("\n\n".join(f"# {notebook}\n{parameters_cell(notebook)}" for notebook in args.notebooks))
        return 0
    run_dir = folder_of(args.run, args)
    given = checked(once(args.parameter, args.file), known)
    plans = {n: {k: v for k, v in given.items() if k in known[n]} for n in args.notebooks}
    before: list[str] = []
    for notebook, parameters in plans.items():  # all of them are checked before any of them runs
        default = str(known[notebook].get("model"))
        model = str(parameters.get("model", default))
        misspelt = model != default and difflib.get_close_matches(model, [default], cutoff=0.8)
        if misspelt and "/" not in model and not (notebook.parent / model).exists():
            raise RunError(f"there is no model {model!r}. Did you mean {default!r}? A hub id is owner/name.")
        for stage in earlier(notebook, "needs"):
            status = (read_record(run_dir / stage) or {}).get("status", "nothing")
            if stage not in before and status != "completed":
                way = f"Run it first: prlhf run {notebook.with_name(stage)}.ipynb {notebook} --run {args.run}"
                what = f"needs the stage {stage} of {run_dir} completed, found: {status}"
                raise RunError(f"{notebook.name} {what}. {way}")
        before.append(notebook.stem)
    tell_edits(args.notebooks, given)
    from prlhf_kit.runs.notebook import copy_notebook, run_notebook
    from prlhf_kit.runs.report import tables, write_index

    whole = True
    for notebook, parameters in plans.items():
        print(f"{notebook.stem} ...", flush=True)
        record = run_notebook(notebook, run_dir, parameters, args.force)
        if args.copy_to:  # of failed and of skipped stages too: the same command again copies what is missing
            copied, said = copy_notebook(run_dir / notebook.stem, args.copy_to)
            print(f"{notebook.stem} {said}" if copied else f"prlhf: {said}", file=sys.stdout if copied else sys.stderr)
            whole = whole and copied
        if record["status"] != "completed":
            write_index(run_dir)
            error = record["error"] if args.debug else record["error"].splitlines()[0]
            where = run_dir / notebook.stem
            hint = "" if args.debug else " (--debug shows the traceback)"
            print(f"prlhf: {notebook.stem} failed: {error}; see {where / RECORD}{hint}", file=sys.stderr)
            return 1
        how = "unchanged, skipped" if record.get("skipped") else f"{record['seconds']:.0f} s"
        print(f"{notebook.stem} completed ({how})", flush=True)
        for note in record.get("notes", []):
            print(f"  {note}", flush=True)
    page = write_index(run_dir)
    for stage, found in reversed(records_of(run_dir).items()):
        for caption, table in tables(run_dir / stage, found, "headline") if found else ():
            print(f"\n{caption}\n{table.round(3).to_string(index=False)}")
    print(f"\nreport: {page.resolve()}")
    if not whole:
        print(f"prlhf: {run_dir} is whole, but not all of it was copied; the same command copies it", file=sys.stderr)
        return 74
    return 0


def bench(args: argparse.Namespace) -> int:
    """`prlhf bench`: the tables of one configuration, as the stage "bench" of a run."""
    import pandas as pd

    from prlhf_kit.data.load import fingerprint
    from prlhf_kit.evaluation import bench as rankings
    from prlhf_kit.evaluation.intervals import as_metrics
    from prlhf_kit.evaluation.outside_scores import Scorer
    from prlhf_kit.figures.evaluation import bench as draw
    from prlhf_kit.runs.report import write_index
    from prlhf_kit.runs.stage import Stage

    settings = rankings.read(args.config, args.methods)
    whole = rankings.load_data(settings)
    outside = [Scorer(text, whole) for text in args.outside]
    data = {name: rankings.draw(settings, name, sets) for name, sets in whole.items()}
    values = rankings.run(settings, data, outside, args.out)
    table = rankings.summary(values, data, settings)
    stage = Stage("bench", args.out, settings | {"dataset": ", ".join(data)})
    for name, sets in data.items():
        stage.uses(name, fingerprint=fingerprint(sets))
    for name in ("model", "embedder"):
        stage.uses(name, id=settings[name], fingerprint=rankings.weights_of(settings[name]))
    stage.table(values.drop(columns="commit"), "bench", "Which pairs each method ranks right")
    for name in data:
        shown = rankings.side_by_side(table[table.dataset == name])
        stage.table(shown, name, f"{name}: reward accuracy with 95% intervals", "shown")
        print(f"\n{name}\n{shown.to_string(index=False)}")
    if len(theirs := rankings.published(data)):
        stage.table(theirs, "published", "Published: by other models, on other pairs", "shown")
    stage.table(table, "table", "Reward accuracy with 95% intervals")
    stage.figure(draw(table), "bench", "Reward accuracy with 95% intervals")
    texts = pd.DataFrame([(name, json.dumps(value)) for name, value in settings.items()], columns=["setting", "value"])
    stage.table(texts, "configuration", "Configuration", "shown")
    stage.note(f"computed at commit {', '.join(map(str, values.commit.unique()))}")
    metrics = as_metrics(table[table.k.isna()], "accuracy/{dataset}/{split}/{method}")
    stage.finish(metrics | as_metrics(table[table.k.notna()], "accuracy/{dataset}/{split}/{method}/{k:g}"))
    print(f"\nreport: {write_index(args.out)}")
    return 0


def figures(args: argparse.Namespace) -> int:
    """`prlhf figures`: re-make a run's figures from its tables, without a model."""
    import pandas as pd
    from pyarrow import ArrowInvalid

    from prlhf_kit.figures.index import FIGURES
    from prlhf_kit.figures.style import save

    run_dir = existing(args.run)
    if not any(read_record(run_dir / stage) for stage in {stage for stage, _, _ in FIGURES.values()}):
        raise RunError(f"{run_dir} holds no stage that draws figures. Give one run, papermill_runs/demo say.")
    out = args.out or run_dir / "figures"
    out.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, list[str]] = {}
    for name, (stage, table, draw) in FIGURES.items():
        path = run_dir / stage / f"{table}.parquet"
        if not path.is_file():
            status = (read_record(run_dir / stage) or {}).get("status", "was not run")
            left_out.setdefault(status.replace("completed", "made no table of it"), []).append(stage)
            continue
        try:
            figure = draw(pd.read_parquet(path))
        except (KeyError, AttributeError, ArrowInvalid) as error:
            print(f"{name}: left out, its table is damaged or of an earlier version ({error}); run {stage} again")
            continue
        save(figure, out / f"{name}.png")
        print(out / f"{name}.png")
    for why, stages in left_out.items():
        print(f"left out ({why}): {len(stages)} of {', '.join(sorted(set(stages)))}")
    return 0


def copy_notebooks(args: argparse.Namespace) -> int:
    """`prlhf notebooks`: copy the kit's notebooks and configurations into a folder."""
    for name in ("notebooks", "configs"):
        if (args.dir / name).exists():
            raise RunError(f"{args.dir / name} exists, nothing was copied. Name another folder: prlhf notebooks DIR")
    for name in ("notebooks", "configs"):
        shutil.copytree(PACKAGE / name, args.dir / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        print(args.dir / name)
    return 0


def list_datasets(args: argparse.Namespace) -> int:
    """`prlhf data list`: every dataset and its options."""
    from prlhf_kit import data
    from prlhf_kit.data.load import resolved

    if args.markdown:
        from prlhf_kit.data.prepare import cards_table

        print(cards_table())
        return 0
    for name, card in data.DATASETS.items():
        options = ", ".join(f"{key}={value!r}" for key, value in resolved(name, {}).items())
        print(f"{name}: {card.title}\n    source: {card.source}\n    options: {options or 'none'}")
    return 0


def prepare_dataset(args: argparse.Namespace) -> int:
    """`prlhf data prepare`: load, check and write a dataset."""
    from prlhf_kit.data.prepare import prepare, require_free

    require_free(args.out, args.path, args.force)  # before any long work
    loaded, found, options, limits = _load(args)
    out = prepare(loaded, found, args.out, args.name, args.path, options, limits, args.force)
    print(f"{found}\n{', '.join(f'{split}: {len(rows)}' for split, rows in loaded.items())} pairs\n{out.resolve()}")
    return 0


def export_dataset(args: argparse.Namespace) -> int:
    """`prlhf data export`: load, check and write a dataset in DSP's text-score format."""
    from prlhf_kit.data.dialogue import write_text_score
    from prlhf_kit.data.dsp import listwise

    loaded, found, _, _ = _load(args)
    args.out.mkdir(parents=True, exist_ok=True)
    print(found)
    for split, pairs in loaded.items():
        file, rows = args.out / f"{split}.json", listwise(pairs) if args.lists else pairs
        left_out = write_text_score(rows, file)
        why = f", {left_out} left out: system messages, or Human: and Assistant: marks in a turn" if left_out else ""
        print(f"{file}: {len(rows) - left_out} rows{why}")
    return 0


def check_dataset(args: argparse.Namespace) -> int:
    """`prlhf data check`: load and check a dataset, and compare its counts with the paper's."""
    from prlhf_kit.data.prepare import compare_counts

    loaded, found, _, _ = _load(args)
    print(f"{found}\n\n{found.checks.to_string(index=False)}\n")
    if found.tokens is not None:
        print(f"tokens, of at most 1,000 pairs a split:\n{found.tokens.to_string(index=False)}\n")
    for split, rows in loaded.items():
        users = len(set(rows["user_id"]))
        print(f"{split}: {len(rows)} pairs of {users} user{'s' * (users != 1)}")
    counts = compare_counts(args.name, found)
    if len(counts):
        print(f"\ncounted here and in the papers:\n{counts.to_string(index=False, na_rep='not counted')}")
        differ = counts[counts.difference.notna() & (counts.difference != 0)]
        print(f"{len(differ)} of {counts.found.notna().sum()} differ" if counts.found.notna().any() else "none counted")
    return 0


def _load(args: argparse.Namespace):
    """What `prlhf data` loads, its report, the dataset's options, and the limits that were set."""
    from prlhf_kit import data
    from prlhf_kit.data.load import resolved

    if args.name not in data.DATASETS:
        data.load(args.name)  # says what there is
        raise data.SchemaError(f"{args.name} is prepared already; give the name of a dataset.")
    options = {name: typed(name, text, None) for name, text in args.option or []}
    resolved(args.name, options)  # refuses those of `load` too
    tokenizer = None
    if args.model or args.max_prompt_tokens or args.max_tokens:
        from prlhf_kit.models.embedded import EMBEDDED
        from prlhf_kit.models.hub import load_tokenizer

        tokenizer = load_tokenizer(args.model or EMBEDDED)
    limits = {"max_prompt_tokens": args.max_prompt_tokens, "max_tokens": args.max_tokens, "min_pairs": args.min_pairs}
    limits["rules"] = dict(args.rule or [])
    loaded, found = data.load_with_report(args.name, args.path, tokenizer=tokenizer, **limits, **options)
    if found.warning:
        print(f"prlhf: {found.warning}", file=sys.stderr)
    return loaded, found, options, limits | {"tokenizer": tokenizer and tokenizer.name_or_path}
