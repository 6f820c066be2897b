"""docs/streams.md: its tables are what the simulator and the analysis say now."""

from __future__ import annotations

import re

from tilewright.bench import streams


def test_the_page_is_current(update_golden: bool) -> None:
    if update_golden:
        streams.PAGE.write_text(streams.page(streams.PAGE.read_text("utf-8")), "utf-8")
    page = streams.PAGE.read_text(encoding="utf-8")
    assert streams.page(page) == page, "if that is meant: python -m tilewright.bench.streams"
    assert "(differs)" not in page


def test_its_pictures_are_there() -> None:
    page = streams.PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert shown == [f"streams/{name}.svg" for name in streams.PROGRAMS]
    for name in shown:
        assert (streams.PAGE.parent / name).read_text(encoding="utf-8").startswith("<?xml")
