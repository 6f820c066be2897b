"""The documentation site builds without a warning, reads without a network, and every page of it
can be found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import needs_browser, opened_browser

pytest.importorskip("material", reason="MkDocs Material is not installed (pip install '.[docs]')")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
# What a browser fetches by itself when it meets the element; a link (<a href>) is the reader's.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
}
MAYBE = {"canonical", "alternate", "edit"}  # <link rel=…> that names a page and fetches nothing


class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
    """Of mkdocs.yml, whose Python names are not looked up."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, name, node: None)


def config() -> dict[str, Any]:
    loaded = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    assert isinstance(loaded, dict)
    return loaded


def in_nav(nav: Any) -> Iterator[str]:
    """Every page that a part of the navigation names."""
    for entry in nav if isinstance(nav, list) else [nav]:
        if isinstance(entry, dict):
            for below in entry.values():
                yield from in_nav(below)
        else:
            yield entry


class Page(HTMLParser):
    """What a page defines (ids), links to, fetches, and whether text looks like a lost list."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.lost: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = [*self.open[-8:], tag]
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        for name, value in attrs:
            if tag == "a" and name == "href" and value:
                self.links.append(value)
            if (tag, name) in FETCHED and value and values.get("rel") not in MAYBE:
                self.fetched.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            self.open = self.open[: len(self.open) - self.open[::-1].index(tag) - 1]

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["p"] and re.search(r"^(?:[-*] |\d+\. |\| |```)", data, re.MULTILINE):
            self.lost.append(data.strip())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, elsewhere."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # the theme's notice about its successor
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "WARNING" not in said and "ERROR" not in said, said
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_every_page_is_in_the_navigation_once() -> None:
    named = list(in_nav(config()["nav"]))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == there, "mkdocs.yml and docs/ differ"


def test_every_page_has_one_title() -> None:
    for path in DOCS.rglob("*.md"):
        text = re.sub(r"^(````?).*?^\1$", "", path.read_text("utf-8"), flags=re.M | re.S)
        assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, path.name
        assert re.search(r"^# |^---\n", text), path.name


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 30
    found = [f"{name}: {url}" for name, page in pages.items() for url in page.fetched if ":" in url]
    found = [each for each in found if ": data:" not in each]
    for path in site.rglob("*.css"):
        urls = re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)", path.read_text("utf-8")
        )
        found += [f"{path.name}: {url}" for url in urls]
    assert not found, "\n".join(found)


def test_links_inside_the_site_lead_somewhere(site: Path, pages: dict[str, Page]) -> None:
    found = []
    for name, page in pages.items():
        if name == "404.html":
            continue
        for link in page.links + page.fetched:
            if re.match(r"[a-z]+:|//", link):
                continue
            target, _, anchor = link.partition("#")
            path = (site / name).parent / target.partition("?")[0] if target else site / name
            there = path.resolve().relative_to(site.resolve()).as_posix()
            if not path.exists():
                found.append(f"{name}: {link}")
            elif anchor and there in pages and anchor not in pages[there].ids | {"__skip", "top"}:
                found.append(f"{name}: {link} has no such anchor")
    assert not found, "\n".join(found)


def test_no_list_or_table_is_lost_in_a_paragraph(pages: dict[str, Page]) -> None:
    """On GitHub a list may follow a line directly; in the site it would run on as text."""
    found = [f"{name}: {text}" for name, page in pages.items() for text in page.lost]
    assert not found, "\n".join(found)


def test_files_outside_docs_are_shown(pages: dict[str, Page]) -> None:
    shown = "source/examples/masks/causal.py.html"
    assert shown in pages
    assert shown in pages["masks.html"].links
    assert not [link for link in pages["masks.html"].links if link.startswith("../")]


def test_the_search_works_from_files(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "streaming machine" in index
    assert "source/" not in index
    vendored = (site / "assets" / "iframe-worker.js").read_text(encoding="utf-8")
    assert "MIT" in vendored or "Permission is hereby granted" in vendored


@needs_browser
def test_a_reader_without_a_network_finds_a_page(site: Path) -> None:
    with opened_browser() as browser:
        tab = browser.new_page()
        asked: list[str] = []
        said: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto((site / "index.html").as_uri())
        tab.fill("input.md-search__input", "deadlock")
        found = tab.locator(".md-search-result__link").first
        found.wait_for(timeout=30_000)
        assert ".html" in (found.get_attribute("href") or "")
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))], asked
    assert not said


def test_the_reader_of_pages_itself() -> None:
    page = Page(
        '<p id="a">words\n- one\n- two</p><ul><li>- fine</li></ul><p>1 - 2 is <b>not</b> one</p>'
        '<a href="x.html#a">x</a><img src="https://b.c/d.png"><link rel="canonical" href="//e">'
    )
    assert page.ids == {"a"} and page.links == ["x.html#a"]
    assert page.fetched == ["https://b.c/d.png"]
    assert page.lost == ["words\n- one\n- two"]
    assert list(in_nav([{"A": "a.md"}, {"B": [{"C": "c.md"}, "d.md"]}])) == ["a.md", "c.md", "d.md"]
