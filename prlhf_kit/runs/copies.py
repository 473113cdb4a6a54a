"""Executed notebooks elsewhere too (`prlhf run --copy-to`): in a folder, or in a store that fsspec can write to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from prlhf_kit.runs.parameters import RunError
from prlhf_kit.runs.stage import NOTEBOOK


class CopyError(RuntimeError):
    """A notebook could not be copied; the run itself is whole."""


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


def copy_notebook(stage_dir: Path, url: str) -> str:
    """Write a stage's executed notebook to `<url>/<run>/<stage>/notebook.ipynb`, and return that address. A query in
    `url` (a signature, say) stays at the end, and is in no message. Raises `CopyError` where that could not be."""
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
        raise CopyError(f"{shown(place)} was not written: {said}") from error
    return shown(place)


def shown(url: str) -> str:
    """`url` without user name, password and query, where secrets are.

    >>> shown("https://me:secret@host:8080/runs?sig=abc"), shown("s3://bucket/runs"), shown("runs?")
    ('https://host:8080/runs', 's3://bucket/runs', 'runs?')
    """
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
