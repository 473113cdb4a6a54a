"""`prlhf app RUN`: a run's side-by-side comparison as a web page, served by voila. Page, kernel and static files
want the token. A page can send its widgets' messages to the kernel, no code."""

import argparse
import html
import logging
import os
import secrets
import shutil
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from prlhf_kit.runs.parameters import find_notebook

NEEDED = ("01_data_preparation", "03_pdpo_training")
IDLE = 600  # seconds until the kernel of a closed page is ended
OPEN = '<!doctype html><title>prlhf app</title><meta http-equiv="refresh" content="0; url={0}"><a href="{0}">Open</a>'


def add_parser(add: Callable[..., Any]) -> None:
    """Register `prlhf app` by `add` (`cli.Parser.commands`)."""
    p = add(
        "app",
        "compare.app.serve",
        "Serve a run's side-by-side comparison in a browser. The address holds a secret token (or the one in "
        "JUPYTER_TOKEN). Ctrl-C ends it.",
        "prlhf app papermill_runs/demo\nprlhf app papermill_runs/demo --no-browser --port 9000 --votes votes/ann.jsonl",
    )
    p.add_argument("run_dir", type=Path, metavar="RUN", help=f"a run (folder or name) with {' and '.join(NEEDED)}")
    p.add_argument("--port", type=int, default=8866, help="or the next free one (default: %(default)s)")
    p.add_argument("--pages", type=int, default=8, help="open at once, each with its models (default: %(default)s)")
    p.add_argument("--no-browser", action="store_true", help="only print the address")
    p.add_argument("--votes", type=Path, metavar="FILE", help="where votes are appended (default: in the run)")
    by = "path, number or name of the page's (default: %(default)s)"
    p.add_argument("--notebook", type=find_notebook, default="07_compare_responses", help=by)
    p.add_argument("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help="set a parameter")


def serve(args: argparse.Namespace) -> int:
    """`prlhf app`: serve until Ctrl-C or SIGTERM. Raises `RunError`, before anything is served, for what is wrong."""
    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from prlhf_kit.runs.parameters import RunError, defaults, resolve
    from prlhf_kit.runs.records import existing
    from prlhf_kit.runs.stage import read_record

    run_dir, trained = existing(args.run_dir).resolve(), {}
    for stage in NEEDED:
        record = read_record(run_dir / stage) or {"status": "not there"}
        if record.get("status") != "completed":
            way = f"`prlhf run {' '.join(NEEDED)} --run {run_dir.name}` makes it"
            raise RunError(f"stage {stage} of {run_dir} is {record.get('status')}, expected completed; {way}.")
        trained = record.get("parameters", {})
    given = dict(args.parameter or [])
    if {"run_dir", "votes"} & set(given):
        raise RunError("the parameters run_dir and votes are set with RUN and --votes, not with -p.")
    if not 0 < args.port < 65536 or args.pages < 1:
        raise RunError(f"--port is {args.port} and --pages {args.pages}; expected a port from 1 to 65535, and a page.")
    given["run_dir"] = str(run_dir)
    if args.votes:
        given["votes"] = str(args.votes.resolve())
    if "model" in trained and "model" in defaults(args.notebook):  # the run knows its base
        given.setdefault("model", trained["model"])
    values, page = resolve(args.notebook, given), load_notebook_node(str(args.notebook))
    notebook = parameterize_notebook(page, values, kernel_name="python3", language="python")
    notebook.metadata["title"] = f"{run_dir.name} - prlhf_kit"
    with tempfile.TemporaryDirectory(prefix="prlhf-app-") as scratch:  # readable by its owner only
        nbformat.write(notebook, Path(scratch, "index.ipynb"))
        shutil.copy(Path(__file__).with_name("page.html.j2"), Path(scratch, "index.html.j2"))
        _run_server(Path(scratch), args)
    return 0


def _run_server(scratch: Path, args: argparse.Namespace) -> None:
    """Serve `scratch/index.ipynb`, whose kernels work in the folder of the notebook, as in JupyterLab."""
    from jupyter_server import DEFAULT_STATIC_FILES_PATH
    from jupyter_server.base.handlers import JupyterHandler
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
    from tornado.web import HTTPError, StaticFileHandler
    from traitlets.config import Config
    from voila.app import Voila
    from voila.tornado.handler import TornadoVoilaHandler
    from voila.voila_identity_provider import VoilaIdentityProvider

    class Page(TornadoVoilaHandler):
        async def prepare(self) -> None:
            await super().prepare()
            _ = self.xsrf_token  # sets a cookie, without which a page that is left can't end its kernel

        def write_error(self, status_code: int, **more) -> None:
            if status_code == 503:
                self.finish(f"{args.pages} pages are open already. Close one, or wait {IDLE // 60} minutes.")
            else:
                super().write_error(status_code, **more)

    class Kernels(AsyncMappingKernelManager):
        starting = 0  # kernels that are being started, not yet in `list_kernel_ids`

        async def start_kernel(self, **options) -> Any:  # type: ignore[override]  # async, as what it overrides is
            if len(self.list_kernel_ids()) + Kernels.starting >= args.pages:
                raise HTTPError(503)
            Kernels.starting += 1
            try:
                return await super().start_kernel(**options)
            finally:
                Kernels.starting -= 1

    class WithToken(JupyterHandler):
        async def prepare(self, **_: Any) -> None:
            await super().prepare(_redirect_to_login=False)
            if self.current_user is None:
                raise HTTPError(403)

    def guarded(handler: type) -> type:
        if issubclass(handler, StaticFileHandler):  # which has no authentication of its own
            return type("FileWithToken", (WithToken, handler), {})
        return Page if handler is TornadoVoilaHandler else handler

    class App(Voila):
        def init_handlers(self) -> list:
            return [(route, guarded(handler), *more) for route, handler, *more in super().init_handlers()]

        def launch_browser(self) -> None:  # once the port is known; voila's own would open it without the token
            url = f"http://127.0.0.1:{self.port}/?{urlencode({'token': self.token})}"
            print(f"{url}\nCtrl-C ends it.", flush=True)
            if not args.no_browser:  # by a file: other users of the machine could read the token in a command line
                page = scratch / "open.html"
                page.write_text(OPEN.format(html.escape(url)))
                webbrowser.open(page.as_uri())

    config = Config()
    config.VoilaConfiguration.file_allowlist = []  # voila/files serves pictures of the notebook's folder by default
    config.VoilaConfiguration.extension_denylist = ["jupyterlab-jupytext"]  # fails to load where no JupyterLab is
    config.VoilaConfiguration.allow_template_override = "NO"
    config.VoilaConfiguration.allow_theme_override = "NO"
    config.VoilaConfiguration.multi_kernel_manager_class = Kernels
    config.VoilaConfiguration.show_tracebacks = True  # an error stands where the page would
    config.MappingKernelManager.root_dir = str(args.notebook.resolve().parent)
    config.MappingKernelManager.cull_idle_timeout = IDLE
    config.MappingKernelManager.cull_interval = 60
    config.VoilaIdentityProvider.cookie_options = {"samesite": "Strict"}
    if os.name == "posix" and len(str(scratch)) < 40:  # the path of a socket has at most 103 bytes
        config.KernelManager.transport = "ipc"  # in the private folder, in place of open ports
    logging.getLogger("tornado").setLevel(logging.ERROR)
    app = App(
        config=config,
        config_file_paths=[],
        notebook_path=str(scratch / "index.ipynb"),
        root_dir=str(scratch),
        ip="127.0.0.1",
        port=args.port,
        open_browser=True,
        token=os.environ.get("JUPYTER_TOKEN") or secrets.token_urlsafe(32),
        identity_provider_class=VoilaIdentityProvider,
        log_level=logging.ERROR,
        connection_dir_root=str(scratch),
        tornado_settings={
            "static_path": DEFAULT_STATIC_FILES_PATH,  # pages of errors ask for it
            "static_url_prefix": "/voila/static/",
            "allow_remote_access": False,  # a Host other than localhost is some web page's trick
            "xsrf_cookie_kwargs": {"samesite": "Strict"},
            "headers": {"Referrer-Policy": "no-referrer"},  # the address holds the token
            "log_function": lambda handler: None,
        },
    )
    app.initialize([])
    app.template_paths.insert(0, str(scratch))
    app.start()
