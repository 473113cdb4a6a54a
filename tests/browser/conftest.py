"""Headless Chromium by Playwright. A page must load nothing from elsewhere, fail nothing and log no error.

Every page's last state is kept as a picture in `build/browser` (or in the folder BROWSER_SHOTS), to be looked at.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright

from prlhf_kit.runs import report

ROOT = Path(__file__).parent.parent.parent
SHOTS = Path(os.environ.get("BROWSER_SHOTS", ROOT / "build" / "browser"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCROLLED = "[...document.querySelectorAll('html, body, #rendered_cells')]"  # the last in voila's pages
WAIT = 60_000  # milliseconds; a slow machine's first import of torch
CHEAP = {"settings": {"n_prompts": 2, "k": 2, "steps": 1, "top_k": 5}, "max_new_tokens": 8}


@pytest.fixture(scope="package")  # not session: asyncio can't be used elsewhere while Playwright is open
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, request):
    """`open_page(address, width=1280, scheme="light", allow=())`: a page. `allow`: parts of messages that are fine."""
    problems, contexts = [], []

    def open_page(address, width=1280, scheme="light", allow=()):
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()

        def problem(text):
            if not any(part in text for part in allow):
                problems.append(text)

        def here(url):
            parts = urlsplit(url)
            return parts.scheme not in ("http", "https", "ws") or parts.hostname == "127.0.0.1"

        page.on("console", lambda m: m.type == "error" and problem(f"console: {m.text} {m.location.get('url')}"))
        page.on("pageerror", lambda error: problem(f"exception: {error}"))
        page.on("request", lambda r: None if here(r.url) else problem(f"asks another machine: {r.url}"))
        page.on("response", lambda r: r.status >= 400 and problem(f"{r.status} {r.url}"))
        page.goto(address)
        return page

    yield open_page
    for i, context in enumerate(contexts):
        for page in context.pages:
            shot(page, f"{request.node.name}-{i}")
        context.close()
    assert not problems


@pytest.fixture(scope="package")
def tiny_run(chromium, trained_run, tmp_path_factory):
    """A run of notebooks 01 and 03 on a tiny model, with its index page."""
    folder = tmp_path_factory.mktemp("browser") / "tiny"
    shutil.copytree(trained_run, folder)
    report.write_index(folder)
    return folder


def shot(page, name):
    """Keep the whole page as a picture."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    size = page.viewport_size
    height = page.evaluate(f"Math.max(...{SCROLLED}.map(node => node.scrollHeight))")
    page.set_viewport_size(size | {"height": min(height, 12_000)})
    page.screenshot(path=SHOTS / f"{name}.png")
    page.set_viewport_size(size)


def assert_readable_on_a_phone(page):
    """The page itself does not scroll sideways, and no text is smaller than 12 px."""
    overflow = f"Math.max(...{SCROLLED}.map(node => node.scrollWidth - node.clientWidth))"
    assert page.evaluate(overflow) == 0
    small = """() => [...document.querySelectorAll("body *")].filter(node => node.checkVisibility()
      && !node.closest("sub, sup, svg, mjx-container, math")
      && [...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim())
      && parseFloat(getComputedStyle(node).fontSize) < 12).map(node => node.outerHTML.slice(0, 120))"""
    assert page.evaluate(small) == []


def assert_contrast(page, selector="body", least=4.5):
    """WCAG's contrast of every text under `selector` with what is behind it: at least 4.5."""
    pale = """([selector, least]) => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const rgba = colour => {  // any notation, laid over nothing
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
      };
      const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
      const behind = node => {
        if (!node) return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
        const colour = rgba(getComputedStyle(node).backgroundColor);
        return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(node.parentElement));
      };
      const luminance = rgb => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
      const found = [];
      for (const node of document.querySelectorAll(`${selector} *`)) {
        if (!node.checkVisibility() || node.disabled || node.closest("svg, mjx-container")) continue;
        if (![...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim())) continue;
        const back = behind(node), text = over(rgba(getComputedStyle(node).color), back);
        const [low, high] = [luminance(text), luminance(back)].sort((a, b) => a - b);
        const contrast = (high + .05) / (low + .05);
        if (contrast < least) found.push(`${contrast.toFixed(1)}: ${node.outerHTML.slice(0, 140)}`);
      }
      return found;
    }"""
    assert page.evaluate(pale, [selector, least]) == []
