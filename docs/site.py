"""What the site takes from outside `docs/` (see mkdocs.yml): figures, CONTRIBUTING.md, CHANGELOG.md, and notebooks, as
the demo executed them where it was run here. Their equations become MathML, which needs no script and no network."""

import json
import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

from prlhf_kit.runs.report import with_mathml

ROOT = Path(__file__).parents[1]
SCRATCH = ROOT / "build" / "site_notebooks"
FILES = ("figures/*.png", "benchmarks/*.png", "CONTRIBUTING.md", "CHANGELOG.md")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        executed = ROOT / "papermill_runs" / "demo" / path.stem / "notebook.ipynb"
        notebook = json.loads((executed if executed.is_file() else path).read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = with_mathml("".join(cell["source"]))
        place = SCRATCH / "notebooks" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(notebook))
    for folder, patterns in ((SCRATCH, ("notebooks/*.ipynb",)), (ROOT, FILES)):
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            files.append(File(name, str(folder), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from `docs/` to what stands beside it, and from there into `docs/`."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(rf"\]\({re.escape(up)}\.\./(?=\w)", f"]({up}", markdown)
    return markdown.replace("](docs/", "](")
