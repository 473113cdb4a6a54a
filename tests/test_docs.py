"""The site of `mkdocs.yml`: it builds without a warning, and has the public names and all notebooks."""

import subprocess
import sys
from pathlib import Path

import pytest

import prlhf_kit as kit

ROOT = Path(__file__).parent.parent


def test_the_site_builds_with_all_names_and_notebooks(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference.html").read_text()
    for name in set(kit.__all__) - {"data"}:
        assert f'id="prlhf_kit.{name}"' in reference, f"docs/reference.md lacks {name}"
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = (tmp_path / "notebooks" / notebook.name).with_suffix(".html").read_text()
        assert f"notebooks/{notebook.stem}.html" in (tmp_path / "index.html").read_text(), "mkdocs.yml lacks it"
        assert "jupyter-wrapper" in page
