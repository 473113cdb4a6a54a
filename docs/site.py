"""What the site takes from outside `docs/` (see mkdocs.yml): figures, CONTRIBUTING.md, CHANGELOG.md, and notebooks, as
the demo executed them where it was run here."""

import re
import shutil
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
EXECUTED = ROOT / "build" / "executed"
TAKEN = ("notebooks/*.ipynb", "figures/*.png", "benchmarks/*.png", "CONTRIBUTING.md", "CHANGELOG.md")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    for source in sorted(path for pattern in TAKEN for path in ROOT.glob(pattern)):
        folder, name = ROOT, source.relative_to(ROOT).as_posix()
        executed = ROOT / "papermill_runs" / "demo" / source.stem / "notebook.ipynb"
        if source.suffix == ".ipynb" and executed.is_file():
            folder = EXECUTED
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(executed, folder / name)
        files.append(File(name, str(folder), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from `docs/` to what stands beside it, and from there into `docs/`."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(rf"\]\({re.escape(up)}\.\./(?=\w)", f"]({up}", markdown)
    return markdown.replace("](docs/", "](")
