"""What the site takes from outside `docs/` (see mkdocs.yml): figures, CONTRIBUTING.md, CHANGELOG.md, and notebooks, as
the demo executed them where it was run here."""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
TAKEN = ("notebooks/*.ipynb", "figures/*.png", "benchmarks/*.png", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    for source in sorted(path for pattern in TAKEN for path in ROOT.glob(pattern)):
        executed = ROOT / "papermill_runs" / "demo" / source.stem / "notebook.ipynb"
        place = executed if source.suffix == ".ipynb" and executed.is_file() else source
        files.append(File.generated(config, source.relative_to(ROOT).as_posix(), abs_src_path=str(place)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from `docs/` to what stands beside it, and from there into `docs/`."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(rf"\]\({up}\.\./(?=\w)", f"]({up}", markdown)
    return markdown.replace("](docs/", "](")
