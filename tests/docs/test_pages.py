"""The generated pages are what the code says now; what they need to be complete is checked."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.pages import WRITERS, errors, ir
from tests.docs.pages.markdown import sentence, table
from tilewright.bench.beside import PAGE as PEERS
from tilewright.bench.beside import beside_table
from tilewright.bench.readme import with_figures
from tilewright.bench.records import RESULTS
from tilewright.bench.results_page import PAGE, TOPICS, results_page
from tilewright.ir.core import REGISTRY, Op, Value, attribute, operand
from tilewright.ir.errors import TilewrightError
from tilewright.ir.ops_math import Pointwise

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("page", WRITERS)
def test_the_page_is_current(page: str, update_golden: bool) -> None:
    files = WRITERS[page]()
    for name, text in files.items() if update_golden else ():
        (ROOT / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        current = (ROOT / name).read_text(encoding="utf-8") == text
        assert current, f"{name}: if that is meant: python -m tests.docs.pages"


def test_pictures_of_the_gallery() -> None:
    drawn = sorted((ROOT / "docs" / "gallery").iterdir())
    programs = {path.stem for path in (ROOT / "examples").glob("*.tw")}
    assert {path.stem for path in drawn} == programs
    for path in drawn:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert path.stat().st_size < 16_000
    attention = (ROOT / "docs" / "gallery" / "attention.svg").read_text(encoding="utf-8")
    assert "2 of 17 channels hold a row or more" in attention and ": M + 3" in attention


def test_every_operation_and_error_has_its_section() -> None:
    text = (ROOT / "docs" / "reference" / "ir.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+\.\w+)$", text, re.MULTILINE) == sorted(
        REGISTRY, key=lambda n: (["math", "tensor", "stream", "tile"].index(n.split(".")[0]), n)
    )
    text = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    codes = {cls.code for cls in errors.classes()}
    assert set(re.findall(r"^## (TW\d{3})$", text, re.MULTILINE)) == codes
    assert set(errors.ADVICE) <= {cls.__name__ for cls in errors.classes()}, "advice for nothing"


def test_an_error_without_advice_is_refused() -> None:
    class NewError(TilewrightError):
        """Something new."""

        code = "TW999"

    with pytest.raises(AssertionError, match="NewError needs a few words"):
        errors.section(NewError)


def test_a_message_must_be_of_the_class_itself() -> None:
    def raises() -> None:
        raise errors.errors.ParseError("no")

    with pytest.raises(AssertionError, match="TilewrightError expected, ParseError raised"):
        errors.message(raises, TilewrightError)
    with pytest.raises(AssertionError, match="nothing raised"):
        errors.message(lambda: None, TilewrightError)


def test_rules_are_found_where_they_are_checked() -> None:
    class Some(Op):  # no name: not registered
        """One. And two."""

        x: Value = operand()
        k: int = attribute(default=3)

        def infer(self) -> None:  # type: ignore[override]
            self.require(self.k > 0, "k must be positive")
            self.require(self.k < 9, f"k is {self.k}, at most 8")
            if self.k == 5:
                raise self.error("five is not allowed")

    rules = ["k must be positive", "k is …, at most 8", "five is not allowed"]
    assert sorted(ir.found(Some.infer)) == sorted(rules)
    assert ir.attribute(Some, "k") == "an integer, `3` if not given"
    assert sentence(Some.__doc__) == "One."
    below = list(ir.found(Pointwise.infer))
    assert "streams must run in the same loops (repeat one)" in below  # of a function it calls


def test_a_cell_cannot_end_a_table() -> None:
    assert table(["a"], [["x | y\nz"]]) == "| a |\n|---|\n| x \\| y z |\n"


def test_results_and_ratios_are_the_newest() -> None:
    made = "if that is meant: tilewright bench readme"
    assert PAGE.read_text(encoding="utf-8") == results_page(), made
    peers = PEERS.read_text(encoding="utf-8")
    assert with_figures(peers, beside_table()) == peers, made


def test_no_measured_topic_is_left_out() -> None:
    records = [p for p in RESULTS.glob("*/*.json") if '"comparisons"' in p.read_text("utf-8")]
    topics = {re.sub(r"-\d{4}-\d\d-\d\d$", "", path.stem) for path in records}
    assert topics and topics <= set(TOPICS), topics - set(TOPICS)


def test_losses_are_told() -> None:
    text = beside_table()
    assert re.search(r"^\| torch cudnn \(GPU\) \|.*\| 4 \|$", text, re.MULTILINE)
    assert "**missed**" in results_page()
