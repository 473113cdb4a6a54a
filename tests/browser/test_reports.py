"""Report pages in a browser: a run's index, the leaderboard, executed notebooks. From disk, with no network."""

import shutil

import pytest

from browser.conftest import assert_contrast, assert_readable_on_a_phone, shot
from prlhf_kit.runs import report

STAGES = ("01_data_preparation", "03_pdpo_training")
OPEN = "document.querySelectorAll('details').forEach(node => node.open = true)"


@pytest.fixture(scope="module")
def pages(tiny_run):
    """Name -> address of each page; a second run stands beside the first."""
    shutil.copytree(tiny_run, tiny_run.parent / "second", dirs_exist_ok=True)
    found = {"index": tiny_run / "index.html", "leaderboard": report.write_page([tiny_run.parent])}
    return found | {stage: tiny_run / stage / "notebook.html" for stage in STAGES}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "leaderboard"])
def test_report_is_readable_on_a_phone_and_a_screen(pages, open_page, name, scheme):
    page = open_page(pages[name].as_uri(), 390, scheme)
    page.evaluate(OPEN)
    assert_readable_on_a_phone(page)
    assert_contrast(page)
    shot(page, f"{name}-{scheme}-390")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_every_figure_has_its_caption_as_text_and_every_box_can_be_scrolled_by_keyboard(pages, open_page):
    page = open_page(pages["index"].as_uri(), 390)
    page.evaluate(OPEN)
    figures = page.locator("figure")
    assert figures.count() >= 5
    for figure in figures.all():
        image = figure.get_by_role("img")
        assert image.get_attribute("alt") == figure.locator("figcaption").inner_text()
        image.scroll_into_view_if_needed()
        assert image.evaluate("node => node.complete && node.naturalWidth > 0")
    boxes = page.get_by_role("region").filter(has=page.locator("table")).all()
    wide = next(box for box in boxes if box.evaluate("node => node.scrollWidth > node.clientWidth"))
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("node => node.scrollLeft > 0", arg=wide.element_handle())


@pytest.mark.parametrize("stage", STAGES)
def test_an_executed_notebook_needs_no_network(pages, open_page, stage):
    page = open_page(pages[stage].as_uri(), 390)
    assert_readable_on_a_phone(page)
    images = page.locator("img")
    assert images.count() >= 2
    for image in images.all():
        assert len(image.get_attribute("alt")) > 20
        assert "No description" not in image.get_attribute("alt")
    assert "0%|" not in page.locator("body").inner_text()  # progress bars are for who waits
