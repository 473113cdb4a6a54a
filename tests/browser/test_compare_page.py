"""The side-by-side page (`prlhf app`) in a browser: with a trained run, and with systems that say nasty things."""

import json
import time

import nbformat
import pytest
from compare.conftest import serving
from playwright.sync_api import expect
from runs.conftest import RECORD

from browser.conftest import CHEAP, assert_contrast, assert_readable_on_a_phone, shot
from prlhf_kit.compare.app import NEEDED

NASTY = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'></div></article>&amp; <b>not bold\u202e"
FAKES = f'''
import time
from dataclasses import dataclass
from prlhf_kit.compare.systems import Offered, System, User
from prlhf_kit.compare.widget import Comparison
from prlhf_kit.decoding.answers import GuidedAnswer

class Characters:
    def decode(self, tokens, **options):
        return "".join(map(chr, tokens))

@dataclass(frozen=True, eq=False)
class Fake(System):
    """Says `text`, a character at a time; one in eight was moved by the reward."""
    text: str = ""
    pause: float = 0.0
    def ended(self, answer, max_new_tokens):
        return True
    def stream(self, prompt, user, weight=1.0, max_new_tokens=64):
        if self.text == "error":
            raise ValueError("out of <i>luck</i>")
        for n in range(1, len(self.text) + 1):
            time.sleep(self.pause)
            tokens = [*map(ord, self.text[:n])]
            base = [ord("<") if i % 8 == 7 else token for i, token in enumerate(tokens)]
            some = [0.5] * n
            yield GuidedAnswer(self.text[:n], tokens, base, some, some, some, [0.0] * n, some, 1.0)

def fake(name, text, pause=0.0):
    return Fake(name, None, Characters(), text=text, pause=pause)

systems = [fake("nasty <u>name</u>", {NASTY!r}), fake("slow", "word " * 400, 0.01), fake("broken", "error")]
users = [User("ann", "ann", "I like <b>short</b>"), User("bob", "bob")]
prompts = [[dict(role="user", content="Chosen?")]]
rewards = {{"length <small>": lambda u, p, a: float(len(a))}}
Comparison(Offered(systems, users, prompts, rewards, {{}}, None), votes=votes)
'''


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


def votes_in(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


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
    page.get_by_role("button", name="Vote for answer 2").click()
    state(page, "voted")
    found = votes_in(votes)
    assert found
    for vote in found:
        asked = vote["prompt"][-1]["content"]
        assert (vote["user_id"], vote["user_text"], asked) == ("Zoë", "plain words", "How do I make <tea>?")

    page.get_by_label("Blind").check()
    generate.click()
    state(page, "done")
    cards = page.get_by_role("region", name="Answers")
    assert not any(name in cards.inner_text() for name in ("P-DPO", "PAD", *two))
    expect(page.get_by_role("button", name="Show who wrote what")).to_be_visible()
    vote = page.get_by_role("button", name="Vote for answer 1")
    vote.click()
    state(page, "voted")
    expect(vote).to_be_focused()
    assert "P-DPO" in cards.inner_text()  # told after the vote
    assert votes_in(votes)[-1]["blind"] is True

    page.reload()  # another kernel
    generate.wait_for()
    expect(page.get_by_text("votes of each person: {'Zoë'")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 390, "height": 844})
        assert_readable_on_a_phone(page)
        assert_contrast(page, "#rendered_cells")
        shot(page, f"app-{scheme}-390")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """The page with `FAKES`; its address and its file of votes."""
    folder = tmp_path_factory.mktemp("fakes")
    for stage in NEEDED:
        (folder / stage).mkdir()
        (folder / stage / "run.json").write_text(json.dumps(RECORD))
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    parameters = f"run_dir = ''  # a run\nvotes = {str(folder / 'votes.jsonl')!r}  # a file"
    notebook.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(FAKES),
    ]
    nbformat.write(notebook, folder / "fakes.ipynb")
    with serving(folder, "--notebook", folder / "fakes.ipynb") as (_, address):
        yield address, folder / "votes.jsonl"


def test_by_keyboard_alone_with_hostile_answers(fakes, open_page):
    address, votes = fakes
    page = open_page(address, width=390, scheme="dark")
    page.get_by_role("button", name="Generate").wait_for()

    def reach(target, key="Tab"):
        """Press Tab until `target` has the focus, and that it can be seen."""
        for _ in range(60):
            page.keyboard.press(key)
            if target.evaluate("node => node === document.activeElement"):
                outline = target.evaluate("n => getComputedStyle(n).outlineStyle + getComputedStyle(n).boxShadow")
                assert outline != "nonenone"
                return
        raise AssertionError(f"{target} can't be reached by {key}")

    prompt = page.get_by_label("or type one")
    reach(prompt)  # what was there is selected
    page.keyboard.type("<script>window.pwned = 3</script>")
    reach(page.get_by_role("checkbox", name="bob"))
    page.keyboard.press("Space")
    reach(page.get_by_role("slider", name="PAD weight"))
    page.keyboard.press("ArrowLeft")
    name = page.get_by_label("Your name, to vote")
    reach(name)
    page.keyboard.type("<img src=x onerror='window.pwned = 4'>")
    page.keyboard.press("Control+Enter")

    state(page, "writing")
    slow = page.get_by_role("article").nth(1).locator(".prlhf-text")
    expect(slow).to_contain_text("word")  # while it is being written
    assert page.get_by_role("article").nth(1).get_attribute("aria-busy") == "true"
    reach(page.get_by_role("button", name="Stop"))
    pressed = time.monotonic()
    page.keyboard.press("Enter")
    state(page, "stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    assert time.monotonic() - pressed < 5
    assert 0 < len(slow.inner_text()) < 5 * 400 - 10

    systems = page.get_by_role("group", name="Systems")
    reach(systems.get_by_role("checkbox", name="slow"), "Shift+Tab")
    page.keyboard.press("Space")
    reach(page.get_by_role("button", name="Generate"))
    page.keyboard.press("Enter")
    state(page, "done")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    nasty, broken = page.get_by_role("article").all()
    assert nasty.locator(".prlhf-text").inner_text().strip() == NASTY.strip()
    assert nasty.locator("script, img, b:not(.prlhf-who b), u, small").count() == 0
    assert broken.get_attribute("data-state") == "failed"
    expect(broken.get_by_role("alert")).to_contain_text("ValueError: out of <i>luck</i>")
    assert "nasty <u>name</u>" in nasty.inner_text()
    moved = nasty.locator(".prlhf-token").first
    reach(moved)
    assert moved.get_attribute("data-base") == "<"
    assert "the base model would say: <" in moved.get_attribute("aria-label")
    assert "base" in moved.evaluate("node => getComputedStyle(node, '::after').content")
    shot(page, "app-hostile-dark-390")
    assert_readable_on_a_phone(page)
    assert_contrast(page, "#rendered_cells")
    assert page.evaluate("window.pwned") is None
    assert votes_in(votes) == []
