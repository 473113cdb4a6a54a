"""The command line: help with examples that hold, completion, exit codes, errors in one line."""

import importlib
import inspect
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from runs.conftest import RECORD

import prlhf_kit
from prlhf_kit import cli
from prlhf_kit.files import versions, write_json
from prlhf_kit.runs import report
from prlhf_kit.runs.parameters import defaults

ROOT = Path(__file__).parent.parent
PARSERS = {p.prog: p for p in cli.parsers(cli.parser())}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "papermill_runs" / "README.md",
    *ROOT.glob("docs/**/*.md"),
]
LINE = [sys.executable, "-m", "prlhf_kit.cli"]


def commands_in(text):
    """The words of each `prlhf ...` line of a text, up to a pipe, a redirection or a comment."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r"\s*(?:examples?:\s*)?(?:\$ |nohup |\w+=\S* )*(?:\S*/)?(prlhf(?: .*|$))", line):
            words = shlex.split(found[1], comments=True)
            yield words[: next((i for i, word in enumerate(words) if word[:1] in set("|<>&;")), None)]


def parses(words):
    try:
        args = cli.parser().parse_args(words[1:])
    except SystemExit as end:  # --help, --version
        return end.code == 0
    if words[1:2] == ["run"]:  # whose parameters the notebooks have
        known = [name for notebook in args.notebooks for name in defaults(ROOT / notebook)]
        assert set(dict(args.parameter)) <= set(known), words
    return True


@pytest.mark.parametrize("prog", PARSERS)
def test_each_command_is_described_and_its_examples_hold(prog, capsys):
    parser = PARSERS[prog]
    assert parser.description
    examples = list(commands_in(parser.epilog or ""))
    assert examples, f"`{prog} --help` shows no example"
    for words in examples:
        assert words[: len(prog.split())] == prog.split()
        assert parses(words), capsys.readouterr().err
    for action in parser._actions:
        shown = action.help or getattr(action, "_choices_actions", None)
        assert shown, f"{prog}: no help for {action.option_strings or action.dest}"
    with pytest.raises(SystemExit) as end:
        cli.main([*prog.split()[1:], "--help"])
    assert end.value.code == 0
    assert " ".join(examples[0][:2]) in capsys.readouterr().out


def test_without_a_command_help_is_shown_and_options_that_do_nothing_else(capsys):
    for words in ([], ["data"]):
        assert cli.main(words) == 0
        assert capsys.readouterr().out.startswith(" ".join(["usage: prlhf", *words]))
    for words, said in (
        (["--version"], f"prlhf_kit {versions()['prlhf_kit']}\n"),
        (["--print-completion", "bash"], "prepare"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
        assert said in capsys.readouterr().out
    assert report.LEADERBOARD in PARSERS["prlhf report"].format_help()


def test_help_imports_nothing_that_takes_long():
    code = (
        "import sys; from prlhf_kit import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'pandas', 'nbformat', 'IPython', 'snakemake'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def own_errors():
    for module in pkgutil.walk_packages(prlhf_kit.__path__, "prlhf_kit."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__ == module.name:
                yield kind


def test_each_of_the_kits_own_errors_is_a_line_or_a_traceback_on_demand(monkeypatch, capsys, tmp_path):
    kinds = set(own_errors())
    names = {kind.__name__ for kind in kinds}
    assert names >= {"RunError", "StageError", "SchemaError", "ModelError", "DecodingError", "ConditioningError"}
    for kind in kinds:
        assert fails_with(kind("the wish\nis unknown. Say it."), monkeypatch, tmp_path) == 2
        assert capsys.readouterr().err == "prlhf: the wish is unknown. Say it.\n"
    assert fails_with(kind("unknown"), monkeypatch, tmp_path, "--debug") == 2
    assert capsys.readouterr().err.startswith("Traceback")


def fails_with(error, monkeypatch, folder, *options):
    def fail(*_):
        raise error

    monkeypatch.setattr(report, "write_page", fail)
    return cli.main([*options, "report", str(folder)])


def test_other_errors_are_a_line_and_have_codes_of_their_own(monkeypatch, capsys, tmp_path):
    for error, code, message in (
        (ZeroDivisionError("by\nzero"), 70, "internal error, ZeroDivisionError: by zero. --debug shows the traceback."),
        (OSError(28, "No space left", "/a/b"), 74, r"OSError: \[Errno 28\] No space left: '/a/b'. Free some space,"),
        (PermissionError(13, "Not yours", "/a/b"), 74, r"PermissionError: .*: '/a/b'. Choose a place"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ):
        assert fails_with(error, monkeypatch, tmp_path) == code
        err = capsys.readouterr().err
        assert re.match(f"prlhf: {message}", err)
        assert err.count("\n") == 1


def test_a_failed_notebook_is_a_line_and_its_traceback_is_shown_on_demand(monkeypatch, capsys, tmp_path):
    record = {"status": "failed", "error": "cell 3 raised ValueError: too cold\nx = f()\n---\nTraceback ..."}
    monkeypatch.setattr("prlhf_kit.runs.notebook.run_notebook", lambda *_: record)
    (tmp_path / "r").mkdir()
    line = ["run", str(ROOT / "notebooks" / "01_data_preparation.ipynb"), "--out", str(tmp_path), "--run", "r"]
    said = "prlhf: 01_data_preparation failed: cell 3 raised ValueError: too cold"
    assert cli.main(line) == 1
    where = f"{tmp_path}/r/01_data_preparation/run.json"
    assert capsys.readouterr().err == f"{said}; see {where} (--debug shows the traceback)\n"
    assert cli.main([*line, "--debug"]) == 1
    assert capsys.readouterr().err == f"{said}\nx = f()\n---\nTraceback ...; see {where}\n"


def test_wrong_usage_is_a_line_with_the_way_to_the_examples(capsys):
    for words, message in (
        (["runn"], "prlhf: argument COMMAND: invalid choice: 'runn'"),
        (["data", "check"], "prlhf data check: the following arguments are required: DATASET"),
        (["report", "--ou"], "prlhf report: argument --out: expected one argument"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(message)
        assert err.endswith(" --help` shows options and examples.\n")
        assert err.count("\n") == 1


def prints_to(sink):
    env = os.environ | {"PYTHONUNBUFFERED": ""}  # unbuffered, argparse itself hears of it and is silent
    done = subprocess.run([*LINE, "--version"], stdout=sink, stderr=subprocess.PIPE, text=True, env=env, check=False)
    return done.returncode, done.stderr


def test_a_reader_that_leaves_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    assert prints_to(writer) == (cli.EXIT_PIPE, "")
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, a disk that is always full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        code, said = prints_to(full)
    assert code == cli.EXIT_FILES
    assert re.fullmatch(r"prlhf: OSError: .*No space left on device. Free some space, .*\n", said)


def test_figures_go_into_the_runs_folder_and_what_was_not_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = RECORD | {"status": "failed"}
    write_json(tmp_path / "papermill_runs" / "r" / "03_pdpo_training" / "run.json", record)
    assert cli.main(["figures", "r"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"left out \(.*\): \d+ of 01_data_preparation, 02.*\nleft out \(failed\): 2 of 03_pdpo_training\n", out
    )
    assert (tmp_path / "papermill_runs" / "r" / "figures").is_dir()


def test_exit_codes_are_documented():
    """In `prlhf --help`; what each stands for is tested above and in tests/runs."""
    in_help = dict(re.findall(r"^  (\d+) +(.*)$", PARSERS["prlhf"].format_help(), re.MULTILINE))
    codes = {str(code) for name, code in vars(cli).items() if name.startswith("EXIT_") and isinstance(code, int)}
    assert set(in_help) == {"0", "1", *codes}
    assert cli.EXIT_PIPE == 128 + signal.SIGPIPE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_in_the_docs_parses(page, capsys):
    text = page.read_text()
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for words in (words for fence in fences for words in commands_in(fence)):
        assert parses(words), f"{shlex.join(words)}: {capsys.readouterr().err}"
    known = {prog.split()[1] for prog in PARSERS if " " in prog}
    for words in re.findall(r"`prlhf ([a-z]\w*)[^`]*`", text):
        assert words in known, f"`prlhf {words}` in {page.name}: there is no such command"


def test_the_launch_over_several_nodes_is_understood():
    text = (ROOT / "docs" / "scale.md").read_text().replace("\\\n", " ").replace("$RANK", "1")
    [line] = re.findall(r"accelerate launch (.*)", text)
    args = launch_command_parser().parse_args(shlex.split(line))
    assert (ROOT / args.config_file).is_file()
    assert args.training_script == "prlhf_kit.training.recipe"
