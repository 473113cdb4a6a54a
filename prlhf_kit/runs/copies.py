"""Executed notebooks in a remote store as well (`prlhf run --copy-to`): written by papermill's own handlers, checked
before anything runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from urllib.parse import urlsplit

from papermill import iorw
from papermill.exceptions import PapermillOptionalDependencyException

from prlhf_kit.files import write_text
from prlhf_kit.runs.notebook import NOTEBOOK
from prlhf_kit.runs.parameters import RunError

# papermill puts a function that raises in the place of a client whose package is missing
CLIENTS = {"s3": "S3", "gs": "GCSFileSystem", "abs": "AzureBlobStore", "adl": "ADL", "hdfs": "HadoopFileSystem"}


class CopyError(RuntimeError):
    """A notebook could not be copied; the run itself is whole."""


def check_store(url: str) -> None:
    """Refuse a store that papermill can't write to. Nothing is sent yet.

    Args:
        url: a folder: `s3://`, `gs://`, `abs://`, `adl://`, `hdfs://`, `http://`, `https://`, or a local path.

    Raises:
        RunError: an unknown scheme, a package that is missing (with what to install), or no folder.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    known = {name.partition("://")[0] for name, _ in iorw.papermill_io._handlers if "://" in name}
    if scheme and scheme not in known:
        raise RunError(
            f"--copy-to {shown(url)}: papermill writes to no {scheme}:// store. Expected a local folder, or one of "
            f"{', '.join(f'{name}://' for name in sorted(known))}."
        )
    if scheme in ("http", "https") and urlsplit(url).hostname == "github.com":
        raise RunError(f"--copy-to {shown(url)}: papermill can read from GitHub, but not write to it.")
    client = getattr(iorw, CLIENTS[scheme]) if scheme in CLIENTS else None
    if inspect.isfunction(client):
        try:
            client()
        except PapermillOptionalDependencyException as error:
            raise RunError(f"--copy-to {shown(url)}: {error}.") from None
    if not scheme and Path(url).exists() and not Path(url).is_dir():
        raise RunError(f"--copy-to {url} is a file; expected a folder.")


def copy_notebook(stage_dir: Path, url: str) -> str:
    """Write a stage's executed notebook to `<url>/<run>/<stage>/notebook.ipynb`, and return that address.

    A query in `url` (the signature of an Azure container, say) stays at the end, and is in no message.

    Raises:
        CopyError: there is no executed notebook, or the store refused it.
    """
    folder, mark, query = url.partition("?") if "://" in url else (url, "", "")
    place = f"{folder.rstrip('/')}/{stage_dir.parent.name}/{stage_dir.name}/{NOTEBOOK}"
    target = place + mark + query
    try:
        text = (stage_dir / NOTEBOOK).read_text(encoding="utf-8")
        if "://" in url:
            iorw.papermill_io.write(text, target)
        else:
            write_text(Path(target), text)  # papermill would want the folder to be there
    except Exception as error:  # every store's client has errors of its own, and none of them may lose the run
        said = str(error).replace(target, shown(target))
        for secret in filter(None, (query, urlsplit(url).password if "://" in url else None)):
            said = said.replace(secret, "...")
        raise CopyError(f"{shown(target)} was not written: {type(error).__name__}: {said}") from error
    return shown(target)


def shown(url: str) -> str:
    """`url` without user name, password and query, where secrets are.

    >>> shown("https://me:secret@host:8080/runs?sig=abc"), shown("s3://bucket/runs"), shown("runs?")
    ('https://host:8080/runs', 's3://bucket/runs', 'runs?')
    """
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
