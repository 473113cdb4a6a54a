"""The command line: options, examples and exit codes. What the commands do is imported when they are called, since
torch, pandas and matplotlib take seconds."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.metadata
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

try:
    import shtab  # of the extra [notebooks]: completes commands in the shell
except ModuleNotFoundError:
    shtab = None  # type: ignore[assignment]

from prlhf_kit.compare import app
from prlhf_kit.files import missing
from prlhf_kit.runs import commands as run_commands
from prlhf_kit.runs.parameters import find_notebook

EXIT_USAGE, EXIT_INTERNAL, EXIT_FILES, EXIT_INTERRUPTED, EXIT_PIPE = 2, 70, 74, 130, 141
EXIT_CODES = """exit codes:
  0    done
  1    a notebook failed, and its record (run.json) says in which cell and why
  2    wrong usage: an option, a parameter or an input is not as expected; the message says what to change
  70   an error inside prlhf_kit (--debug shows the traceback)
  74   a file or the network can't be read or written: no space, no permission, no such file
  130  interrupted (Ctrl-C, or a batch system's SIGTERM); the same command resumes
  141  whatever read the output closed it, as in `prlhf data list | head -3`"""

WAYS_OUT = {
    errno.ENOSPC: "Free some space, or choose a folder on another disk; the same command then goes on.",
    errno.EDQUOT: "Free some of your quota, or choose a folder elsewhere; the same command then goes on.",
    errno.EACCES: "Choose a place that you may read and write, or change its permissions.",
    errno.EROFS: "Choose a folder on a disk that can be written.",
    errno.ENOENT: "Check the path.",
}


class Parser(argparse.ArgumentParser):
    """A parser, like all of its sub-parsers: `--debug`, examples that keep their lines, errors in one line, and help
    where a sub-command is missing."""

    def __init__(self, **options: Any):
        description = textwrap.fill(options.pop("description", ""), 79)
        super().__init__(**options, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        # SUPPRESS: else a sub-parser's default would undo what was given before its name
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")

    def commands(self) -> Callable[[str, str, str, str], Parser]:
        """`add(name, action, description, examples)`, which adds a command. The line for it in this parser's help is
        the description's first sentence. `action`: "module.function", imported when it is called."""
        self.set_defaults(action=lambda _: self.print_help())
        group = self.add_subparsers(metavar="COMMAND")

        def add(name: str, action: str, description: str, examples: str) -> Parser:
            line = description.split(". ")[0].removesuffix(".")
            line = line[0].lower() + line[1:]
            epilog = f"examples:\n{textwrap.indent(examples, '  ')}"
            p: Parser = group.add_parser(name, help=line, description=description, epilog=epilog)
            module, _, function = action.rpartition(".")
            p.set_defaults(action=lambda args: getattr(importlib.import_module(f"prlhf_kit.{module}"), function)(args))
            return p

        return add

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # see `main`
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}. `{self.prog} --help` shows options and examples.\n")


def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`top` and all sub-parsers under it."""
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    top = Parser(
        prog="prlhf",
        description="Personalized RLHF in notebooks, run headlessly. `prlhf COMMAND --help` has examples of each.",
        epilog="examples:\n"
        "  prlhf run 01 --run first\n"
        "  prlhf report papermill_runs\n"
        "  prlhf --print-completion bash\n\n" + EXIT_CODES,
    )
    top.set_defaults(debug=False)
    top.add_argument("--version", action="version", version=f"prlhf_kit {importlib.metadata.version('prlhf_kit')}")
    if shtab is not None:
        shtab.add_argument_to(top, help="print a script that completes commands, options and paths in this shell")
    add = top.commands()

    p = add(
        "run",
        "commands.run",
        "Execute notebooks through papermill. Completed stages that nothing changed are skipped, killed ones resume.",
        "prlhf run 01 03 --run mine\n"
        "prlhf run notebooks/03_pdpo_training.ipynb --run mine -p alpha 0.7 -p seed 1\n"
        "prlhf run 03 --help-notebook",
    )
    p.add_argument("notebooks", nargs="+", type=find_notebook, metavar="NOTEBOOK", help=run_commands.NOTEBOOK_HELP)
    run_commands.add_run(p, "run")
    p.add_argument("-f", "--file", type=Path, metavar="FILE", help="YAML file of parameters; -p counts over it")
    p.add_argument("--help-notebook", action="store_true", help="list the notebooks' parameters and stop")
    p.add_argument("--force", action="store_true", help="run again, from the start, even if nothing changed")

    p = add(
        "train",
        "training.command.command",
        "Train P-DPO or a control from a YAML file, without notebooks. Options count over the file, as in TRL's own "
        "commands. In several processes: accelerate launch -m prlhf_kit.cli train CONFIG. Every option: prlhf train "
        "CONFIG --help.",
        "prlhf train configs/pdpo.yaml --alpha 0.3 --output_dir models/alpha3\n"
        "prlhf train configs/pdpo.yaml --method dpo --output_dir models/dpo",
    )
    p.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/pdpo.yaml")
    p.add_argument("options", nargs=argparse.REMAINDER, metavar="--NAME VALUE", help="set in place of the file's")

    p = add(
        "figures",
        "commands.figures",
        "Re-make a run's figures from its tables, as PNG and SVG. Needs no model.",
        "prlhf figures demo\nprlhf figures papermill_runs/demo --out figures",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its name in papermill_runs")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to (default: figures, in the run's folder)")

    p = add(
        "bench",
        "commands.bench",
        "Reward accuracy of every method on several datasets, as one table. Held-out pairs are ranked for seen and new "
        "users. What is done is not computed again. DIR is a run: prlhf report and prlhf figures read it.",
        "prlhf bench configs/bench.yaml --out bench --methods length,pooled,per_user\n"
        "prlhf bench mine.yaml --out bench --outside mine=scores.json --outside theirs=my_module:reward",
    )
    p.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/bench.yaml")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where tables, figure and page go")
    p.add_argument("--methods", default="", metavar="NAME,...", help="in place of the file's")
    p.add_argument("--outside", action="append", default=[], metavar="NAME=SCORES", help="JSON file or MODULE:FUNCTION")

    p = add(
        "bundle",
        "runs.bundle.command",
        "Pack wheels, notebooks, models and data for a GPU node without a network (docs/scale.md).",
        "prlhf bundle --out build/bundle\n"
        "prlhf bundle --out build/bundle --python 3.12 --has node_packages.txt --data data/prism",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the parts")
    p.add_argument("--part-size", type=run_commands.count, default=60, metavar="MB", help="of a part (default: 60)")
    p.add_argument("--python", default="", metavar="VERSION", help="the node's Python (default: this one's)")
    p.add_argument("--has", type=Path, metavar="FILE", help="the node's `pip list`: what it has is left out")
    p.add_argument("--data", type=Path, nargs="+", default=[], metavar="DIR", help="folders of `prlhf data prepare`")

    p = add(
        "notebooks",
        "commands.copy_notebooks",
        "Copy the kit's notebooks and configurations into DIR/notebooks and DIR/configs. In DIR, `prlhf run 03` takes "
        "the copy then, elsewhere the kit's own.",
        "prlhf notebooks\nprlhf notebooks my_study",
    )
    p.add_argument("dir", nargs="?", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")

    p = add(
        "presets",
        "training.presets.command",
        "List the presets of the papers' settings, or print one with the source of each value.",
        "prlhf presets\nprlhf presets prlhf_tldr",
    )
    p.add_argument("name", nargs="?", metavar="NAME", help="the one to print")
    _add_data(add)
    app.add_parser(add)
    run_commands.add_parsers(add)
    for each in parsers(top) if shtab is not None else ():
        for action in each._actions:
            if action.type in (Path, find_notebook):
                action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "RUN") else shtab.FILE  # type: ignore[attr-defined]
    return top


def _add_data(add: Callable[..., Any]) -> None:
    data = add(
        "data",
        "",
        "List, check and prepare datasets of preferences: the field's, or your own (docs/datasets.md).",
        "prlhf data list\nprlhf data check files --path my.csv",
    ).commands()
    p = data(
        "list",
        "commands.list_datasets",
        "Name every dataset of the kit, where it comes from, and the options that -o sets.",
        "prlhf data list\nprlhf data list --markdown",
    )
    p.add_argument("--markdown", action="store_true", help="the table of the docs")
    for name, text, out in (
        ("prepare", "Load, check and write a dataset as parquet, with a data card", " --out data/mine"),
        ("check", "Load and check a dataset, and compare its counts with the papers'", ""),
        ("export", "Load, check and write a dataset in DSP's text-score format, a file a split", " --out data/mine"),
    ):
        p = data(
            name,
            f"commands.{name}_dataset",
            f"{text}. A check that refuses stops before anything is written.",
            f"prlhf data {name} tldr --path summarize_from_feedback -o mode synthetic -o top 40{out}\n"
            f'prlhf data {name} files --path my.csv -o columns \'{{"user_id": "worker"}}\'{out}\n'
            f"prlhf data {name} prism --max-tokens 512 --rule 'user with too few pairs' drop{out}",
        )
        p.add_argument("name", metavar="DATASET", help="one of `prlhf data list`")
        p.add_argument("--path", type=Path, help="local file or folder in the dataset's own schema (default: the hub)")
        p.add_argument("-o", "--option", nargs=2, action="append", metavar=("NAME", "VALUE"), help="the dataset's own")
        p.add_argument("--rule", nargs=2, action="append", metavar=("CHECK", "RULE"), help="refuse, drop or shorten")
        p.add_argument("--model", help="whose tokenizer counts (with a limit: smollm2-135m-instruct)")
        p.add_argument("--max-prompt-tokens", type=int, help="longest prompt")
        p.add_argument("--max-tokens", type=int, help="longest prompt and response together")
        p.add_argument("--min-pairs", type=int, default=1, help="training pairs that a user needs (default: 1)")
        if out:
            p.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
        if name == "prepare":
            p.add_argument("--force", action="store_true", help="replace the folder")
        if name == "export":
            p.add_argument("--lists", action="store_true", help="a row a prompt, with all its responses")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `prlhf`; its exit codes are `EXIT_CODES`."""
    # a batch system's SIGTERM is treated like Ctrl-C, so that the record says what happened; and SIGINT is heard even
    # where a script started us with `&`, for which shells turn it off
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # a terminal that is closed; nohup ignores it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    args = argparse.Namespace(debug=False)
    try:
        args = parser().parse_args(argv)
        code = args.action(args) or 0
        sys.stdout.flush()  # here, where a reader that has left can still be told from an error
        return code
    except KeyboardInterrupt:
        print("prlhf: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _leave_output()
        return EXIT_PIPE
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        code, message = explained(error)
        _leave_output()
        hint = "" if args.debug or code == EXIT_USAGE else " --debug shows the traceback."
        print(f"prlhf: {' '.join(message.split())}{hint}", file=sys.stderr)
        return code


def _leave_output() -> None:
    """If standard output can't be written, send it nowhere: Python flushes it at exit, and would complain again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explained(error: Exception) -> tuple[int, str]:
    """Exit code and message for what a command raised. The kit's own errors say what was wrong and the way out; they
    are told by the module of their class, since importing all of their classes would take seconds."""
    if any(kind.__module__.startswith("prlhf_kit.") for kind in type(error).__mro__):
        return EXIT_USAGE, str(error)
    if isinstance(error, ModuleNotFoundError) and (message := missing(error.name or "")):
        return EXIT_USAGE, message
    said = f"{type(error).__name__}: {error}."
    if isinstance(error, OSError):
        return EXIT_FILES, f"{said} {WAYS_OUT.get(error.errno or 0, '')}"
    return EXIT_INTERNAL, f"internal error, {said}"


if __name__ == "__main__":
    sys.exit(main())
