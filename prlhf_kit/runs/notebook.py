"""A notebook's run: skipped where nothing changed, resumed where it was killed, recorded, and copied elsewhere
(`prlhf run --copy-to`). `execute.py` starts papermill; `parameters.py` reads the parameters, since papermill misreads
some cells."""

import contextlib
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from prlhf_kit.files import file_states, now, sha256, short_hash, versions, write_json, write_text
from prlhf_kit.runs.execute import error_of, execute
from prlhf_kit.runs.parameters import RunError, earlier, read, resolve
from prlhf_kit.runs.stage import NOTEBOOK, PAGE, RECORD, begun, hash_now, inputs, read_record, set_aside

NO_PORT = "Kernel died before replying to kernel_info"


def _key(notebook: Path, parameters: dict[str, Any], made_from: dict[str, dict[str, str | None]]) -> str:
    """Hash of all that decides a stage's result: code, parameters (with the local files and folders that they name),
    versions, and the artefacts of earlier stages."""
    cells = [(cell["cell_type"], cell["source"]) for cell in read(notebook)["cells"]]
    return short_hash(cells, parameters, made_from, _states(notebook.parent, parameters), _installed())


@functools.cache
def _installed() -> str:
    """Hash of the package's sources and of the versions."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in {".py", ".parquet", ".yaml", ".txt"})
    return short_hash(versions(), [(str(path.relative_to(package)), sha256(path)) for path in sources])


def _states(here: Path, value: Any) -> list[tuple[str, int, int]]:
    """Name, bytes and time of the last change of the files that texts in `value`, however deep, name, seen from the
    notebook's folder `here`; not their hashes, since a model may have many gigabytes. A folder around `here` or home
    ("." or "/") names none."""
    if isinstance(value, (list, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return [state for each in inner for state in _states(here, each)]
    # what can't be a path: a number, too long a text, one with a null character
    with contextlib.suppress(OSError, ValueError, TypeError):
        around = (here / value).resolve()
        if not (here.is_relative_to(around) or Path(os.path.expanduser("~")).is_relative_to(around)):
            return file_states(here / value)
    return []


@dataclass(frozen=True)
class Plan:
    """A notebook that is to run in a run's folder, with everything that decides its result."""

    notebook: Path
    stage_dir: Path
    parameters: dict[str, Any]
    inputs: dict[str, dict[str, str | None]]
    key: str
    same: bool  # whether what lies in the folder was made from the same, and is as it was left
    changed: list[str]  # artefacts there that are not
    done: dict[str, Any] | None  # its record, if it completed and all of it is there


def plan(notebook: str | Path, run_dir: str | Path, parameters: Mapping[str, Any] | None = None) -> Plan:
    """Look at a notebook, its parameters and what it is made from; nothing is run. Raises `RunError`."""
    notebook, run_dir = Path(notebook).resolve(), Path(run_dir).resolve()
    values = resolve(notebook, {**(parameters or {}), "run_dir": str(run_dir)})
    made_from = inputs(run_dir, earlier(notebook))
    key = _key(notebook, values | {"run_dir": None}, made_from)
    stage_dir = run_dir / notebook.stem
    old = read_record(stage_dir) or {"artifacts": {}}
    left = old["artifacts"] if old.get("key") == key else {}
    changed = [name for name, entry in left.items() if hash_now(stage_dir / name, entry) != entry.get("sha256")]
    same = old.get("key") == key and not changed
    there = all((stage_dir / name).exists() for name in [*left, NOTEBOOK, PAGE])
    done = old if same and there and old["status"] == "completed" else None
    return Plan(notebook, stage_dir, values, made_from, key, same, changed, done)


def run_notebook(
    notebook: str | Path,
    run_dir: str | Path,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    wait: bool = False,
) -> dict[str, Any]:
    """Execute `notebook` in a process of its own and leave `<run_dir>/<stem>/{notebook.ipynb,notebook.html,run.json}`.

    A stage that completed with the same inputs is skipped. One that did not complete is started again in the same
    folder, so that its training resumes from the last checkpoint. Where the inputs changed, the old folder moves to
    `<run_dir>/.previous/<stem>`.

    Args:
        parameters: in place of the notebook's defaults; `run_dir` is set by the runner.
        force: run it even if nothing changed, from the start.
        wait: while another process runs the stage; else that is refused.

    Returns:
        The record, with `"skipped": True` where nothing had to be done. `status` is `completed` or `failed`.

    Raises:
        RunError: the notebook or a parameter is wrong; nothing was run.
        KeyboardInterrupt: after the record says `interrupted`.
    """
    notebook, run_dir = Path(notebook), Path(run_dir)
    resolve(notebook, {**(parameters or {}), "run_dir": str(run_dir)})  # before anything is written
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / f".{notebook.stem}.lock", timeout=-1 if wait else 0):
            return _run(plan(notebook, run_dir, parameters), force)
    except Timeout:
        raise RunError(f"another process runs {notebook.stem} in {run_dir}. Wait, or choose another run.") from None


def _run(plan: Plan, force: bool) -> dict[str, Any]:
    notebook, stage_dir = plan.notebook, plan.stage_dir
    if plan.changed:
        print(f"{notebook.stem} is run again: {', '.join(plan.changed)} was changed since it completed", flush=True)
    if plan.done and not force:
        return plan.done | {"skipped": True}
    if stage_dir.exists() and (force or not plan.same):
        set_aside(stage_dir)
    stage_dir.mkdir(parents=True, exist_ok=True)
    for name in (NOTEBOOK, PAGE):  # of an earlier attempt
        (stage_dir / name).unlink(missing_ok=True)
    record = begun(notebook.stem, plan.parameters, plan.inputs) | {"key": plan.key}
    write_json(stage_dir / RECORD, record)
    start = time.monotonic()
    interrupted = False
    try:
        code, log = execute(notebook, stage_dir / NOTEBOOK, plan.parameters)
        if code and NO_PORT in log:  # two runs' kernels took the same port
            code, log = execute(notebook, stage_dir / NOTEBOOK, plan.parameters)
    except KeyboardInterrupt:
        interrupted, code, log = True, 130, ""
    record |= read_record(stage_dir) or {}
    finished = "ended" in record  # the notebook came to its closing cell
    record |= {"ended": now(), "seconds": round(time.monotonic() - start, 1)}
    if interrupted:
        record |= {"status": "interrupted", "error": "stopped by the user; run again to resume"}
    else:
        error = error_of(stage_dir / NOTEBOOK, code, log, finished)
        record |= {"status": "failed", "error": error} if error else {"status": "completed"}
    import nbformat

    from prlhf_kit.runs.report import notebook_page

    with contextlib.suppress(OSError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        write_text(stage_dir / PAGE, notebook_page(nbformat.read(stage_dir / NOTEBOOK, 4), stage_dir.name))
    write_json(stage_dir / RECORD, record)
    if interrupted:
        raise KeyboardInterrupt
    return record


def check_store(url: str) -> None:
    """Raises `RunError` where fsspec can't write to a store; nothing is sent yet."""
    from fsspec import get_filesystem_class

    try:
        if not url.startswith(("http://", "https://")):
            get_filesystem_class(urlsplit(url).scheme if "://" in url else "file")
    except (ValueError, ImportError) as error:  # an unknown scheme; a package that is missing, with its name
        raise RunError(f"--copy-to {shown(url)}: {error}. Expected a folder or an address of fsspec's.") from None
    if "://" not in url and Path(url).exists() and not Path(url).is_dir():
        raise RunError(f"--copy-to {url} is a file; expected a folder.")


def copy_notebook(stage_dir: Path, url: str) -> tuple[bool, str]:
    """Write a stage's executed notebook to `<url>/<run>/<stage>/notebook.ipynb`. Returns whether it is there, and a
    line that says so. A query in `url` (a signature, say) stays at the end, and is in no message."""
    import fsspec
    import httpx2 as httpx

    folder, mark, query = url.partition("?") if "://" in url else (url, "", "")
    place = f"{folder.rstrip('/')}/{stage_dir.parent.name}/{stage_dir.name}/{NOTEBOOK}"
    try:
        content = (stage_dir / NOTEBOOK).read_bytes()
        if url.startswith(("http://", "https://")):  # by PUT; fsspec would need aiohttp
            httpx.put(place + mark + query, content=content, timeout=60).raise_for_status()
        else:
            with fsspec.open(place + mark + query, "wb") as sink:
                sink.write(content)
    except Exception as error:  # every store's client has errors of its own, and none of them may lose the run
        said = f"{type(error).__name__}: {error}"
        for secret in filter(None, (query, urlsplit(url).password if "://" in url else None)):
            said = said.replace(secret, "...")
        return False, f"{shown(place)} was not written: {said}"
    return True, f"copied to {shown(place)}"


def shown(url: str) -> str:
    """`url` without user name, password and query, where secrets are.

    >>> shown("https://me:secret@host:8080/runs?sig=abc"), shown("s3://bucket/runs"), shown("runs?")
    ('https://host:8080/runs', 's3://bucket/runs', 'runs?')
    """
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
