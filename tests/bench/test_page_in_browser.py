"""The page in a real browser: nothing overflows, nothing is fetched, both colour schemes are
there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.report_documents import make_document
from tests.browser import SIZES, needs_browser, opened_browser
from tilewright.bench.report.page import page

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "report.html"
    made.write_text(page(make_document()), encoding="utf-8")
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_fetches_nothing(browser: Any, path: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said: list[str] = []
    fetched: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: fetched.append(request.url))
    tab.goto(path.as_uri())
    assert fetched == [path.as_uri()] and said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shown = tab.evaluate(SHOWN)
    assert set(shown) == {"wide" if width > 640 else "narrow"}
    smallest = tab.evaluate(TEXT_PIXELS)
    assert smallest >= 9, f"text of {smallest} px cannot be read"
    paper, ink = tab.evaluate(COLOURS)
    assert (sum(paper) < sum(ink)) == (scheme == "dark")
    tab.close()


TEXT_PIXELS = """Math.min(...[...document.querySelectorAll('svg[role=img] text')]
  .filter(t => t.checkVisibility()).map(t => parseFloat(getComputedStyle(t).fontSize)
    * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width))"""
COLOURS = """(() => { const style = getComputedStyle(document.body);
  return [style.backgroundColor, style.color]
    .map(c => c.match(/[0-9]+/g).slice(0, 3).map(Number)); })()"""
SHOWN = """[...document.querySelectorAll('svg[role=img]')]
  .filter(s => s.checkVisibility()).map(s => s.classList[0])"""
CONTRASTS = """(() => {
  const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const card = getComputedStyle(document.querySelector('figure')).backgroundColor;
  const found = {};
  for (let n = 0; n < 11; n++) {
    const svg = document.querySelector('svg[role=img]');
    const mark = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    mark.setAttribute('class', 'mark p' + n); svg.append(mark);
    found['p' + n] = ratio(getComputedStyle(mark).fill, card); mark.remove();
  }
  for (const kind of ['tick', 'faster', 'slower', 'undecided']) {
    const text = document.querySelector('text.' + kind);
    if (text) found[kind] = ratio(getComputedStyle(text).fill, card);
  }
  found.note = ratio(getComputedStyle(document.querySelector('.note')).color,
                     getComputedStyle(document.body).backgroundColor);
  return found; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(browser: Any, path: Path, scheme: str) -> None:
    """WCAG: 3 to 1 for what is drawn, 4.5 to 1 for text."""
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(path.as_uri())
    found = tab.evaluate(CONTRASTS)
    low = {key: ratio for key, ratio in found.items() if ratio < (3 if key[0] == "p" else 4.5)}
    assert not low
    tab.close()


def test_details_open_without_a_script(browser: Any, path: Path) -> None:
    tab = browser.new_page(java_script_enabled=False)
    tab.goto(path.as_uri())
    closed = tab.locator("details:not([open])").first
    table = closed.locator("table")
    assert table.count() == 0 or not table.is_visible()
    name = closed.locator("summary span").first.inner_text()
    closed.locator("summary").click()
    assert tab.locator("details[open]", has_text=name).locator("table").first.is_visible()
    tab.close()
