"""One notebook by papermill in a process of its own: started, stopped, and what went wrong in it. Traps of papermill
2.7: it fills parameters into braces of paths, changes the process's folder, calls the cell of a dead kernel "completed"
and `sys.exit()` a success, and two kernels may take one port."""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from prlhf_kit.runs.parameters import RunError, read
from prlhf_kit.runs.stage import UNDER_RUNNER

GRACE = 20  # seconds that an interrupted notebook has to stop by itself
REPORT_EVERY = 60  # seconds between two lines on what runs; on a terminal a sixth, in the same line
# papermill's command line can't hand arguments to the kernel, which warns of eavesdropping at each start
EXECUTE = "import json, sys, papermill; papermill.execute_notebook(**json.load(open(sys.argv[1])))"


def execute(notebook: Path, out: Path, parameters: dict[str, Any]) -> tuple[int, str]:
    """Papermill in a child process; its exit code and the end of its log. Ctrl-C ends the whole process group."""
    terminal = sys.stderr.isatty() and not os.environ.get("CI")
    with tempfile.TemporaryDirectory() as scratch:
        arguments, log = Path(scratch, "arguments.json"), Path(scratch, "log.txt")
        options = {
            # papermill fills parameters into braces in a path
            "input_path": str(notebook).replace("{", "{{").replace("}", "}}"),
            "output_path": str(out).replace("{", "{{").replace("}", "}}"),
            "parameters": parameters,
            "cwd": str(notebook.parent),
            "kernel_name": "python3",
            "progress_bar": False,  # it counts cells, and stands still while one trains
            "extra_arguments": ["--IPKernelApp.log_level=40"],
        }
        arguments.write_text(json.dumps(options))
        with log.open("w") as sink:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", EXECUTE, str(arguments)],
                env=os.environ | {UNDER_RUNNER: str(out.parent)},
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=killed_with_parent,
            )
            start = time.monotonic()
            bar = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, disable=not terminal)
            try:
                while (code := child.poll()) is None:
                    try:
                        child.wait(REPORT_EVERY / 6 if terminal else REPORT_EVERY)
                    except subprocess.TimeoutExpired:
                        line = f"{notebook.stem} {(time.monotonic() - start) / 60:.0f} min: {_progress(out)}"
                        if terminal:
                            bar.set_description_str(line)
                        else:
                            print(line, flush=True)
            except KeyboardInterrupt:
                end(child, GRACE)
                raise
            finally:
                bar.close()
        return code, log.read_text(errors="replace")[-4000:]  # compiled code writes any bytes


def _progress(executed: Path) -> str:
    """The cell that runs, by the latest copy that papermill wrote, and how far a training in it has come."""
    cells = _executed(executed)
    number, cell = _last_run(cells)
    if cell is None:
        return "starting"
    headings = [c["source"].splitlines()[0] for c in cells[:number] if c["cell_type"] == "markdown" and c["source"]]
    # the bar of transformers' trainer: [40/80 00:10 < 00:12, 3.1 it/s, Epoch 0.5/1]
    shown = "".join("".join(out.get("data", {}).get("text/html", "")) for out in cell.get("outputs", []))
    bars = re.findall(r"\[\s*(\d+/\d+) [\d:]+ < ([\d:]+)", shown)
    losses = re.findall(r"<td>\d+</td>\s*<td>([\d.]+)</td>", shown[shown.rfind("<progress") :])
    text = f"cell {number} of {len(cells)}" + (f" ({headings[-1].strip('# ')})" if headings else "")
    loss = f", loss {losses[-1]}" if losses else ""
    which = f", training {len(bars)}" if len(bars) > 1 else ""  # of the cell: P-DPO, then its controls
    return text + (f"{which}, step {bars[-1][0]}{loss}, {bars[-1][1]} left" if bars else "")


def _last_run(cells: list[dict[str, Any]]) -> tuple[int, dict[str, Any] | None]:
    """The last cell that was started, with its number. When a kernel dies, papermill says "completed" of its cell."""
    begun = [
        (number, cell)
        for number, cell in enumerate(cells)
        if cell["cell_type"] == "code" and cell.get("metadata", {}).get("papermill", {}).get("start_time")
    ]
    return begun[-1] if begun else (0, None)


def killed_with_parent(sign: int = signal.SIGKILL) -> None:
    """In the child: get that signal when the parent is gone, so that no orphan goes on training (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, sign)  # PR_SET_PDEATHSIG


def end(child: subprocess.Popen, grace: float) -> None:
    """Ask a process group to stop, twice with `grace` seconds each, and kill what is left."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace if sign != signal.SIGKILL else None)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # a kernel, in a session of its own, ends itself without papermill


def error_of(executed: Path, code: int, log: str, finished: bool) -> str | None:
    """What went wrong, with the failing cell; None if the notebook ran to its closing cell."""
    cells = _executed(executed)
    for number, cell in enumerate(cells):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"]))
                raised = f"cell {number} raised {output['ename']}: {output['evalue']}"
                return f"{raised}\n{cell['source']}\n---\n{trace[-3000:]}"
    number, last = _last_run(cells)
    if finished and not code:
        return None
    if code:
        place = f"cell {number} did not end" if last else "no cell ran"
        said = f"{place}, exit code {code}: the kernel died (killed, out of memory, a fault in compiled code?)"
    else:
        said = (
            f"cell {number} was the last, without its closing cell `stage.finish(...)`: sys.exit(), a dead kernel, or "
            "another notebook's name in `begin`?"
        )
    return "\n".join([said, *([last["source"], "---"] if last else []), log])


def _executed(notebook: Path) -> list[dict[str, Any]]:
    """The executed notebook's cells; none where papermill was killed before or while it wrote it."""
    with contextlib.suppress(RunError):
        return read(notebook)["cells"]
    return []
