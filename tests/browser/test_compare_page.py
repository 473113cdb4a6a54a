"""The side-by-side page (`prlhf app`) of a trained run, in a browser."""

import pytest
from compare.conftest import serving, votes_in
from playwright.sync_api import expect

from browser.conftest import CHEAP, assert_contrast, assert_readable_on_a_phone, shot


def state(page, name):
    """Wait until the page says that it is in this state."""
    page.locator(f'.prlhf-status [data-state="{name}"]').wait_for()


def chosen(page, group, *names):
    """Check these boxes of a group, and no others."""
    boxes = page.get_by_role("group", name=group).get_by_role("checkbox")
    boxes.first.wait_for()
    for box in boxes.all():
        box.set_checked(accessible_name(box) in names)


def accessible_name(box):
    return box.evaluate("node => (node.labels[0] ?? node.parentElement).innerText.trim()")


@pytest.fixture(scope="module")
def address(tiny_run, tmp_path_factory):
    """The page of the tiny run; its address and its file of votes."""
    votes = tmp_path_factory.mktemp("votes") / "of people.jsonl"
    with serving(
        tiny_run, "--votes", votes, *(part for name, value in CHEAP.items() for part in ("-p", name, value))
    ) as (_, address):
        yield address, votes


def test_a_persons_way_through_the_page(address, open_page):
    address, votes = address
    page = open_page(address)
    generate = page.get_by_role("button", name="Generate")
    generate.wait_for()
    assert "def " not in page.locator("body").inner_text()  # no code
    people = page.get_by_role("group", name="Users").get_by_role("checkbox")
    two = [accessible_name(people.nth(i)) for i in (0, 3)]
    chosen(page, "Users", *two)
    chosen(page, "Systems", "P-DPO", "PAD")
    prompt = page.get_by_label("or type one")
    prompt.click()
    page.wait_for_function(
        "node => node.selectionEnd - node.selectionStart === node.value.length", arg=prompt.element_handle()
    )
    page.keyboard.type("How do I make <tea>?")
    prompt.click()  # one's own stays
    page.keyboard.press("End")
    slider = page.get_by_role("slider", name="PAD weight")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".prlhf-weight .widget-readout")).to_have_text("2.75")
    generate.click()
    state(page, "done")
    answers = page.get_by_role("article")
    assert answers.count() == 4
    labels = [answer.get_attribute("aria-label") for answer in answers.all()]
    assert all(sum(f"for {who}" in label for label in labels) == 2 for who in two)
    assert any("w = 2.75" in label for label in labels)
    assert answers.first.locator(".prlhf-text").inner_text().strip()
    assert float(answers.first.locator("dd").first.inner_text())
    shot(page, "app-answers")

    page.get_by_label("Your name, to vote").fill("Zoë")
    page.get_by_label("What you like").fill("plain words")
    vote = page.get_by_role("button", name="Vote for answer 2")
    vote.click()
    state(page, "voted")
    expect(vote).to_be_focused()
    found = {(row["user_id"], row["user_text"], row["prompt"][-1]["content"]) for row in votes_in(votes)}
    assert found == {("Zoë", "plain words", "How do I make <tea>?")}

    page.reload()  # another kernel
    generate.wait_for()
    expect(page.get_by_text("votes of each person: {'Zoë'")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 390, "height": 844})
        assert_readable_on_a_phone(page)
        assert_contrast(page, "#rendered_cells")
        shot(page, f"app-{scheme}-390")


def test_by_keyboard_alone(address, open_page):
    """On a phone's dark page; what is typed is text."""
    address, votes = address
    page = open_page(address, width=390, scheme="dark")
    generate = page.get_by_role("button", name="Generate")
    generate.wait_for()
    before = votes_in(votes)

    def reach(target, key="Tab"):
        """Press Tab until `target` has the focus, and that it can be seen."""
        for _ in range(60):
            page.keyboard.press(key)
            if target.evaluate("node => node === document.activeElement"):
                outline = target.evaluate("n => getComputedStyle(n).outlineStyle + getComputedStyle(n).boxShadow")
                assert outline != "nonenone"
                return
        raise AssertionError(f"{target} can't be reached by {key}")

    reach(page.get_by_label("or type one"))  # what was there is selected
    page.keyboard.type("<script>window.pwned = 1</script>")
    reach(page.get_by_role("checkbox", name="vanilla DPO"))
    page.keyboard.press("Space")
    reach(page.get_by_role("slider", name="PAD weight"))
    page.keyboard.press("ArrowLeft")
    reach(page.get_by_label("Your name, to vote"))
    page.keyboard.type("<img src=x onerror='window.pwned = 2'>")
    page.keyboard.press("Control+Enter")
    state(page, "done")
    reach(page.get_by_role("button", name="Stop"))
    moved = page.locator(".prlhf-token").first
    reach(moved)
    assert "the base model would say: " in moved.get_attribute("aria-label")
    assert "base" in moved.evaluate("node => getComputedStyle(node, '::after').content")
    reach(generate, "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.prlhf-status [data-state=writing]')")
    state(page, "done")
    expect(generate).to_be_focused()
    shot(page, "app-keyboard-dark-390")
    assert_readable_on_a_phone(page)
    assert_contrast(page, "#rendered_cells")
    assert page.evaluate("window.pwned") is None
    assert votes_in(votes) == before
