"""The page in a real browser: what an edit, a pass, a target, a link and a mistake do to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser import SIZES, needs_browser, opened_browser
from tests.playground.conftest import PATIENCE
from tilewright.playground.serve import Playground

pytestmark = needs_browser
MS = PATIENCE * 1000
Tab = Any
Example = Callable[[str], str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as opened:
        yield opened


class Page:
    """A tab with the page in it. Whatever it says on the console, or fetches from elsewhere, fails
    the test."""

    def __init__(
        self, browser: Any, server: Playground, fragment: str = "", **context: Any
    ) -> None:
        context = {"viewport": {"width": 1280, "height": 900}, **context}
        self.tab: Tab = browser.new_page(**context)
        self.tab.set_default_timeout(MS)
        self.said: list[str] = []
        self.fetched: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.fetched.append(request.url))
        self.address = server.address
        self.tab.goto(server.url + fragment)
        self.settled()

    def settled(self) -> None:
        """Until the page shows what its state says."""
        self.tab.wait_for_selector("body[data-round]:not(.stale):not(.busy)")

    def after(self, change: Callable[[], Any]) -> None:
        """Makes a change, and waits until it is shown."""
        before = self.tab.get_attribute("body", "data-round")
        change()
        self.tab.wait_for_selector(f"body:not([data-round='{before}']):not(.stale):not(.busy)")

    def choose(self, name: str) -> None:
        self.after(lambda: self.tab.select_option("#example", name))

    def switch(self, name: str) -> None:
        """One pass on or off."""
        self.after(lambda: self.tab.click(f"#passes li[data-name={name}] input"))

    def open(self, tab: str) -> None:
        self.tab.click(f"#tab-{tab}")

    def text(self, selector: str) -> str:
        found: str = self.tab.inner_text(selector)
        return found

    def close(self) -> None:
        self.tab.close()
        assert self.said == []
        assert {url for url in self.fetched if not url.startswith("data:image/svg")} <= {
            url for url in self.fetched if url.startswith(f"{self.address}/")
        }


@pytest.fixture
def page(browser: Any, server: Playground) -> Iterator[Page]:
    found = Page(browser, server)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [("desktop", "light"), ("desktop", "dark"), ("phone", "dark"), ("small phone", "light")],
)
def test_it_fits_every_screen(browser: Any, server: Playground, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    screen = {"width": width, "height": height}
    page = Page(browser, server, viewport=screen, color_scheme=scheme)
    for tab in ("why", "layouts", "code", "simulate", "run"):
        page.open(tab)
        page.settled()
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width, tab
    outside = page.tab.evaluate(OUTSIDE)
    assert not outside, f"beyond the right edge: {outside}"
    paper, ink = page.tab.evaluate(COLOURS)
    assert (sum(paper) < sum(ink)) == (scheme == "dark")
    low = {kind: ratio for kind, ratio in page.tab.evaluate(CONTRASTS).items() if ratio < 4.5}
    assert not low, "WCAG asks for 4.5 to 1"
    page.close()


# what stands beyond the window's right edge and is in nothing that scrolls or cuts it off
OUTSIDE = """[...document.querySelectorAll('main *, header *')].filter(e => {
  if (!e.checkVisibility() || e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible') return false;
  return true; }).map(e => e.tagName + '.' + e.className).slice(0, 5)"""
COLOURS = """(() => { const style = getComputedStyle(document.body);
  return [style.backgroundColor, style.color]
    .map(c => c.match(/[0-9]+/g).slice(0, 3).map(Number)); })()"""
CONTRASTS = """(() => {
  const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const found = {};
  const kinds = ['comment', 'string', 'value', 'op', 'type', 'keyword', 'number'];
  const row = document.querySelector('.row');
  for (const kind of kinds) { const s = document.createElement('span'); s.className = 't-' + kind;
    row.append(s); found[kind] = ratio(getComputedStyle(s).color, behind(s)); s.remove(); }
  const others = ['.about', '.channels li', '.deepcount', '[role=tab]', '#status', '.gutter span'];
  for (const selector of others) {
    const e = document.querySelector(selector);
    if (e) found[selector] = ratio(getComputedStyle(e).color, behind(e)); }
  return found; })()"""


def test_an_edit_changes_all_forms(page: Page, example: Example) -> None:
    program = example("attention")
    forms = {form: page.text(f"#{form} .body") for form in ("tensor", "stream", "tile")}
    other = program.replace("0.125", "0.0625")
    page.after(lambda: page.tab.fill("#text", other))
    for form, before in forms.items():
        now = page.text(f"#{form} .body")
        assert now != before, form
        assert "0.0625" in now or (form == "tile" and "0.0625" not in before)
    assert page.tab.input_value("#example") == ""
    page.after(lambda: page.tab.fill("#text", program))
    assert page.text("#stream .body") == forms["stream"]


def test_a_mistake_is_marked_where_it_is(page: Page, example: Example) -> None:
    program = example("attention").replace("%dots, %scale", "%dotz, %scale")
    line = program.splitlines().index("  %scores = math.mul %dotz, %scale") + 1
    page.tab.fill("#text", program)
    page.tab.wait_for_selector("#mistake .problem")
    assert page.text("#numbers .wrong") == str(line)
    assert page.text("#under .wrong u") == "%dotz"
    said = page.text("#mistake")
    assert "TW001" in said and f"line {line}:22" in said
    assert page.tab.get_attribute("#text", "aria-invalid") == "true"
    page.tab.click("#mistake button.link")  # the caret goes there
    caret = page.tab.evaluate("document.getElementById('text').selectionStart")
    assert program[caret:].startswith("%dotz")
    assert "stale" in (page.tab.get_attribute("body", "class") or "")
    page.after(lambda: page.tab.fill("#text", example("attention")))
    assert page.tab.locator("#numbers .wrong").count() == 0
    assert page.text("#mistake") == ""


def test_the_deep_channel_of_the_naive_program(page: Page) -> None:
    """Marked as the program is written; gone after the rules that move the division."""
    page.choose("naive")
    assert page.tab.locator(".channels .deep").count() == 0
    page.switch("partition")
    page.switch("reorder")
    deep = page.tab.locator(".channels .deep")
    assert deep.count() == 1 and page.text("#stream .deepcount") == "1 deep channel"
    assert re.search(r"→ %p N \+ \d = \d+\s*deep", deep.inner_text(), re.IGNORECASE)
    assert deep.get_attribute("data-channel") == "e->p"
    page.after(lambda: page.tab.fill("#sizes [data-name=N]", "100"))
    assert re.search(r"= 10\d", page.tab.locator(".channels .deep").inner_text())
    page.switch("reorder")
    assert page.tab.locator(".channels .deep").count() == 0
    assert page.text("#stream .deepcount") == "no deep channel"


def test_what_a_pass_changed(page: Page) -> None:
    page.tab.click("#passes li[data-name=reorder] .delta")
    dialog = page.tab.locator("dialog[open]")
    assert dialog.locator("h2").inner_text() == "reorder"
    assert "stream.scan" in dialog.locator(".put").all_inner_texts().__str__()
    assert dialog.locator(".taken").count() > 0
    page.tab.keyboard.press("Escape")
    assert page.tab.locator("dialog[open]").count() == 0
    assert page.tab.is_disabled("#passes li[data-name=join_halves] .delta")
    page.switch("to_stream")  # off
    assert "switched off" in page.text("#stream .body")
    assert "switched off" in page.text("#tile .body")


def test_generated_code(page: Page) -> None:
    page.open("code")
    page.tab.wait_for_selector("#panel .code")
    assert "func.func @attention" in page.text("#panel .code pre >> nth=0")
    page.after(lambda: page.tab.click("#panel .choices >> text=Triton"))
    assert "Triton is for GPUs" in page.text("#panel .whynot")
    page.after(lambda: page.tab.click("#panel .whynot button"))
    assert page.tab.input_value("#target") == "cuda-sm90"
    assert "@triton.jit" in page.tab.text_content("#panel .code")
    assert "cuda-sm90" in page.text("#tile .about")


def test_layouts(page: Page) -> None:
    page.open("layouts")
    page.tab.wait_for_selector("svg.layout")
    assert page.tab.locator(".layoutpick[aria-pressed=true]").count() == 1
    page.tab.fill("#expression", "local(2, 1).spatial(8, 4).local(1, 2)")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector(".drawn >> text=local(2, 1).spatial(8, 4).local(1, 2)")
    cells = page.tab.locator("svg.layout g:last-of-type rect")
    assert cells.count() == 16 * 8
    cells.nth(0).hover(position={"x": 4, "y": 4})  # beside its label
    assert page.tab.locator("svg.layout rect.same").count() == 4  # the registers of lane 0
    page.tab.fill("#expression", "spatial(3")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#panel .problem")


def test_the_simulator(page: Page) -> None:
    page.choose("naive")
    page.switch("reorder")
    page.switch("partition")
    page.open("simulate")
    page.tab.wait_for_selector("svg.occupancy")
    channels = page.tab.locator(".occupancy .band")
    assert channels.count() == page.tab.locator(".channels li").count()
    assert page.tab.text_content(".occupancy .band.deep .name") == "e->p"
    page.tab.locator("svg.occupancy").hover(position={"x": 300, "y": 20})
    assert re.match(r"cycles [\d,]+\u2013[\d,]+: e->p \d", page.text(".plot figcaption"))
    assert page.tab.text_content(".band.over .name") == "e->p"
    before = page.text(".plot figcaption")
    page.tab.focus("svg.occupancy")
    page.tab.keyboard.press("ArrowRight")
    assert page.text(".plot figcaption") != before
    page.after(lambda: page.tab.fill("#depths", "short=2,long=N-3"))
    assert "e waits for room in e->p" in page.text("#panel .problem")
    assert page.tab.evaluate("document.activeElement.id") == "depths", "one can go on typing"
    page.after(lambda: page.tab.fill("#depths", "short=many"))
    assert "--depth short=many" in page.text("#panel .problem")


def test_a_run(page: Page) -> None:
    page.choose("variance")
    page.open("run")
    page.after(lambda: page.tab.select_option("#backend", "interpreter"))
    asked = len(page.fetched)
    assert page.tab.locator("#panel table").count() == 0, "nothing runs before one says so"
    page.tab.click("#go")
    page.tab.wait_for_selector("#panel table")
    assert len(page.fetched) == asked + 1
    assert page.text("#panel .cards").count("by interpreter") == 1
    assert page.text("#panel table").count("as it should be") == 6  # two results of three forms


def test_a_link_brings_everything_back(
    browser: Any, server: Playground, page: Page, example: Example
) -> None:
    program = example("variance").replace("variance", "other")
    page.after(lambda: page.tab.fill("#text", program))
    page.switch("reorder")
    page.after(lambda: page.tab.select_option("#target", "x86-64-v3"))
    page.after(lambda: page.tab.fill("#sizes [data-name=N]", "9"))
    page.open("simulate")
    page.tab.wait_for_selector("svg.occupancy")
    fragment = page.tab.url.partition("#")[2]
    assert fragment and len(fragment) < 2000
    copy = Page(browser, server, f"#{fragment}")
    assert copy.tab.input_value("#text") == program
    assert copy.tab.input_value("#target") == "x86-64-v3"
    assert copy.tab.input_value("#sizes [data-name=N]") == "9"
    assert not copy.tab.is_checked("#passes li[data-name=reorder] input")
    assert copy.tab.get_attribute("#tab-simulate", "aria-selected") == "true"
    assert copy.text("#stream .body") == page.text("#stream .body")
    copy.close()


@pytest.mark.parametrize("fragment", ["#1AAAA", "#x", "#1" + "A" * 3000, "#%00"])
def test_a_broken_link_is_said(browser: Any, server: Playground, fragment: str) -> None:
    page = Page(browser, server, fragment)
    assert "The link cannot be read" in page.text("#status")
    assert "graph attention" in page.tab.input_value("#text")
    page.close()


def test_what_a_program_says_stays_text(page: Page) -> None:
    hostile = '<img src=x onerror=alert(1)><script>alert(1)</script><b id="x">'
    program = (
        f"// {hostile}\ngraph g<N>(%x: tensor<N x f32>) {{\n"
        f'  %y = tensor.reduce %x {{kind = "{hostile.replace(chr(34), "")}", axis = 0}}\n'
        "  return %y\n}\n"
    )
    page.tab.fill("#text", program)
    page.tab.wait_for_selector("#mistake .problem")
    assert "<img src=x" in page.text("#mistake") or "<img src=x" in page.text("#under")
    assert page.tab.locator("img, #x, #under script").count() == 0


def test_a_hang_costs_a_message(browser: Any, hasty: Playground) -> None:
    """Children of this server take their first word for what to do."""
    tab = browser.new_page()
    tab.set_default_timeout(MS)
    tab.goto(hasty.url)
    tab.fill("#text", "hang")
    tab.wait_for_selector("#mistake .problem >> text=stopped after 1 s")
    tab.close()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    """Tab visits the choices in order; arrows change the tabs; colours can be chosen."""
    page.tab.keyboard.press("Tab")
    assert page.tab.evaluate("document.activeElement.id") == "skip"
    page.tab.keyboard.press("Enter")
    assert page.tab.evaluate("document.activeElement.closest('.form').id") == "tensor"
    page.tab.focus("#tab-why")
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.evaluate("document.activeElement.id") == "tab-layouts"
    unnamed = page.tab.evaluate(UNNAMED)
    assert not unnamed
    for expected in ("light", "dark", None):
        page.tab.click("#theme")
        assert page.tab.get_attribute("html", "data-scheme") == expected
    page.tab.click("#stream .widen")
    assert page.tab.is_hidden("#tile") and page.tab.is_visible("#stream")
    page.tab.click("#stream .widen")
    assert page.tab.is_visible("#tile")


UNNAMED = """[...document.querySelectorAll('button, input, select, textarea')]
  .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
  .map(e => e.outerHTML)"""
