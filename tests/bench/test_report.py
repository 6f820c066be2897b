"""Reports as JSON, Markdown and a page: what is in them, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.bench.report_documents import make_document, make_problem
from tilewright import BenchError
from tilewright.bench.method.statistics import Estimate
from tilewright.bench.report import document as d
from tilewright.bench.report import terminal
from tilewright.bench.report.charts import charts, styles
from tilewright.bench.report.compare import agreement, compare
from tilewright.bench.report.markdown import markdown
from tilewright.bench.report.page import page
from tilewright.bench.report.shapes import DASHES, SHAPES, LogAxis, around
from tilewright.bench.report.words import seconds_text, verdict, verdicts

EVIL = 'x"><script>alert(1)</script>&|`*_[a](http://evil.example)'


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def schema() -> Any:
    return json.loads(d.SCHEMA.read_text(encoding="utf-8"))


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    document = make_document()
    path = tmp_path / "report.json"
    path.write_text(document.to_json(), encoding="utf-8")
    assert d.load(path).to_json() == document.to_json()


def test_a_report_from_before_sittings_had_processes_can_be_read() -> None:
    data = json.loads(make_document().to_json())
    del data["method"]["processes"]
    assert not d.parse(json.dumps(data), "old.json").method.processes


def test_a_report_of_a_system_that_tells_no_load_can_be_read() -> None:
    data = json.loads(make_document().to_json())
    data["machine"]["load_at_start"], data["noise"]["loads"] = -1.0, [-1.0]
    assert d.parse(json.dumps(data), "windows.json").noise.loads == [-1.0]


def test_the_json_is_what_the_schema_says() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema())
    data = json.loads(make_document().to_json())
    jsonschema.validate(data, schema())
    for broken in (
        {**data, "version": 2},
        {**data, "more": 1},
        {k: v for k, v in data.items() if k != "noise"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema())


def test_the_schema_knows_every_field_and_describes_it() -> None:
    """So that the classes and the schema cannot part."""
    classes = {
        "estimate": Estimate,
        "times": d.Times,
        "result": d.Result,
        "problem": d.ProblemResults,
    }
    classes |= {"provider": d.ProviderState, "launch": d.Launch, "machine": d.Machine}
    parts = schema()["$defs"] | {"": schema()}
    for name, cls in ({"": d.Document} | classes).items():
        fields = {field.name for field in dataclasses.fields(cls)}
        assert set(parts[name]["properties"]) == fields == set(parts[name]["required"]), name
        assert all(
            p.get("description") or {"$ref", "oneOf"} & set(p)
            for p in parts[name]["properties"].values()
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no report, or is damaged"),
        ("[1", "no report, or is damaged"),
        ("[]", '"format" is not tilewright-bench'),
        ('{"comparisons": []}', "bench figures"),
        ('{"format": "tilewright-bench", "version": 2}', "version 2 of the format.*update it"),
        ('{"format": "tilewright-bench", "version": 0}', "measure again"),
        ('{"format": "tilewright-bench", "version": 1}', "damaged: report has no about"),
    ],
)
def test_what_is_no_report_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=f"(?s)given.json.*{said}"):
        d.parse(text, "given.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("seconds",), "x"),
        (("problems",), {}),
        (("noise", "loads"), [None, "y"]),
        (("machine",), 3),
    ],
)
def test_a_damaged_part_is_named(place: tuple[str, ...], value: Any) -> None:
    data = json.loads(make_document().to_json())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(BenchError, match=rf"damaged: report\.{'.'.join(place)}"):
        d.parse(json.dumps(data), "given.json")


VALUES = (None, True, 0, -1, 1e308, 1e-320, 10**400, float("nan"), float("inf"), "x", "\ud800")
SHAPES_OF_JSON: tuple[Any, ...] = ([], {}, [[]], [None], {"warm": None})


def altered(data: Any) -> Iterator[tuple[str, Any]]:
    """Every place within ``data``, with what stands there instead; ``data`` is as it was after."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        kept = data[key]
        for value in (*VALUES, *SHAPES_OF_JSON):
            data[key] = value
            yield f"{key} = {value!r:.20}", data
        data[key] = kept
        if isinstance(data, dict):
            del data[key]
            yield f"no {key}", data
            data[key] = kept
        else:
            yield f"no [{key}]", data.pop(key)
            data.insert(key, kept)
        if isinstance(kept, dict | list):
            yield from ((f"{key}.{what}", x) for what, x in altered(kept))


def small_report() -> Any:
    """Of one problem with three providers: one that is ours, one timed, one that failed."""
    factors = {d.OURS: 1.0, "torch-sdpa": 2.0}
    problems = [make_problem("a", "prefill", 1e-3, 1, factors, series="s")]
    problems += [make_problem("b", "prefill", 1e-3, 2, factors, series="s", size=65.0)]
    whole = make_document()
    named = {*factors, "onnxruntime"}
    providers = [p for p in whole.providers if p.name in factors]
    providers += [d.ProviderState("onnxruntime", "ONNX Runtime", "failed", {})]
    launches = [launch for launch in whole.launches if launch.provider in named][:1]
    made = replace(whole, problems=problems, providers=providers, launches=launches)
    data = json.loads(made.to_json())
    for problem in data["problems"]:
        for result in problem["results"]:
            for state in d.STATES:
                if result[state]:
                    result[state]["samples"] = [[1e-3]]
    del data["problems"][1]["results"][1:]
    return data


def test_what_is_read_can_be_shown_drawn_and_compared() -> None:
    """Whatever stands in whichever field: refused by name, or shown and compared."""
    data, refused, shown = small_report(), 0, 0
    whole = d.parse(json.dumps(data), "whole.json")
    for what, _ in altered(data):
        try:
            document = d.parse(json.dumps(data), "given.json")
        except BenchError as error:
            assert str(error).startswith("given.json "), what
            refused += 1
            continue
        shown += 1
        try:
            show_and_compare(document, whole)
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    assert refused > 1000 and shown > 100


def show_and_compare(document: d.Document, whole: d.Document) -> None:
    terminal.show(document, Console(file=io.StringIO()))
    markdown(document).encode()
    page(document).encode()
    for pair in ((document, whole), (whole, document)):
        agreement(*pair)
        with suppress(BenchError):  # of another suite or machine
            terminal.show_comparison(compare(*pair), Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("problems", 0, "size"), 0, r"problems\[0\].size is 0.0; in a series a number"),
        (("problems", 0, "results", 0, "error_relative"), float("nan"), "error_relative is nan"),
        (("problems", 0, "results", 0, "error_relative"), 1e308, r"error_relative is 1e\+308"),
        (("problems", 0, "results", 0, "cold", "time", "low"), None, "cold.time.low is null"),
        (("problems", 0, "results", 0, "provider"), "zz", r"results\[0\].provider is 'zz', which"),
        (("problems", 0, "bounds"), {"warm": "bytes"}, r"problems\[0\].bounds has no cold"),
        (("problems", 0, "headline"), "hot", "headline is 'hot'; known: warm, cold"),
        (("providers",), [], r"launches\[0\].provider is 'tilewright', which is not among"),
        (("about",), "\ud800", r"about is no text: '\\ud800'"),
    ],
)
def test_a_value_that_no_report_has_is_named(
    place: tuple[str | int, ...], value: Any, said: str
) -> None:
    data = small_report()
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(BenchError, match=rf"given.json is damaged: report\..*{said}"):
        d.parse(json.dumps(data), "given.json")


def test_a_cut_file_is_damaged_wherever_it_was_cut() -> None:
    text = make_document().to_json()
    for at in range(0, len(text) - 2, len(text) // 50):
        with pytest.raises(BenchError):
            d.parse(text[:at], "cut.json")


# ---- the page


def test_the_page_needs_nothing_else() -> None:
    text = page(make_document())
    found = Page(text)
    assert not {tag for tag, _ in found.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "base",
    }
    assert not re.search(r"(?:https?:)?//[a-z]|url\(|@import|javascript:", text)
    assert not [
        a for _, attrs in found.tags for a in attrs if a.startswith("on") or a in ("src", "href")
    ]
    assert len(text) < 400_000
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_page_escapes_what_it_is_given() -> None:
    problem = make_problem(EVIL, EVIL, 1e-3, 1, parameters={EVIL: EVIL}, series=EVIL)
    other = make_problem("2", EVIL, 2e-3, 2, series=EVIL, size=2.0)
    state = d.ProviderState(EVIL, EVIL, "absent", {EVIL: EVIL}, EVIL, EVIL)
    document = make_document(
        problems=[problem, other],
        about=EVIL,
        suite=EVIL,
        providers=[*make_document().providers, state],
    )
    found = Page(page(document))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(EVIL) >= 6
    assert EVIL not in markdown(document) and "\\<script\\>" in markdown(document)


def test_every_number_drawn_is_in_a_table() -> None:
    document = make_document()
    found = Page(page(document))
    for problem in document.problems:
        for result in problem.results:
            for times in filter(None, (result.warm, result.cold)):
                assert seconds_text(times.time.median) in found.text
    assert sum(tag == "svg" and attrs.get("role") == "img" for tag, attrs in found.tags) == 2 * len(
        charts(document)
    )
    assert all(
        attrs.get("aria-label") for tag, attrs in found.tags if tag == "svg" and "role" in attrs
    )


def test_drawings_lie_within_their_pictures() -> None:
    wild = {"tilewright": 1.0, "torch-eager": 5000.0, "torch-sdpa": 1e-4, "flex": 1.0}
    odd = make_problem("odd", "prefill", 1e-9, 7, wild)
    for document in (make_document(), make_document(problems=[odd])):
        for chart in charts(document):
            for drawing in (chart.wide, chart.narrow):
                places = [p for line in (*drawing.grid, *drawing.lines) for p in line.points]
                places += [(x.x, x.y) for x in (*drawing.marks, *drawing.labels, *drawing.boxes)]
                places += [(b.x + b.width, b.y + b.height) for b in drawing.boxes]
                assert all(-1 <= x <= drawing.width + 1 for x, _ in places), chart.title
                assert all(-1 <= y <= drawing.height + 1 for _, y in places), chart.title


def test_colour_is_never_alone() -> None:
    """Shapes, dashes and names tell providers apart, too."""
    looks = styles(make_document()).values()
    assert (
        len({look.shape for look in looks}) == len({look.dash for look in looks}) == len(looks) == 4
    )
    assert len(SHAPES) == len(set(SHAPES.values())) >= 11 <= len(set(DASHES))


def test_axes_of_logarithms() -> None:
    axis = LogAxis(1.0, 100.0, 0.0, 10.0)
    assert [axis(v) for v in (1.0, 10.0, 100.0, 1e9, 1e-9)] == pytest.approx([0, 5, 10, 10, 0])
    assert axis.ticks(3) == pytest.approx([1, 10, 100])
    assert all(
        len(LogAxis(lo, hi, 0, 1).ticks(8)) <= 8 for lo, hi in ((1, 1.2), (1e-9, 1e9), (0.9, 2))
    )
    low, high = around([])
    assert low < high


# ---- words


def test_verdicts_come_from_intervals() -> None:
    assert verdict(Estimate(1.1, 1.01, 1.2, 9)) == "faster"
    assert verdict(Estimate(0.9, 0.8, 0.99, 9)) == "slower"
    assert verdict(Estimate(1.5, 0.99, 2.0, 9)) == "undecided"


def with_floats(problem: d.ProblemResults) -> d.ProblemResults:
    """The same, where everybody else has floats for weights."""
    results = [replace(r, float_weights=r.provider != d.OURS) for r in problem.results]
    return replace(problem, results=results)


@pytest.mark.parametrize("floats", [0, 1, 2])
def test_means_count_like_with_like(floats: int) -> None:
    """Of two problems, 1.5 and 6 times as fast; ``floats`` of them have floats beside codes."""
    given = [
        make_problem("u4", "prefill", 1e-3, 1, {d.OURS: 1.0, "torch-sdpa": 6.0}),
        make_problem("bf16", "prefill", 1e-3, 2, {d.OURS: 1.0, "torch-sdpa": 1.5}),
    ]
    given[:floats] = [with_floats(problem) for problem in given[:floats]]
    document = d.parse(make_document(problems=given).to_json(), "its own file")
    expected, counted = {0: (3.0, 2), 1: (1.5, 1), 2: (3.0, 2)}[floats]
    assert document.mean_ratio("torch-sdpa") == pytest.approx(expected, rel=0.05)
    assert verdicts(document, "torch-sdpa")["faster"] == counted
    assert not document.with_floats(d.OURS)
    name = "torch-sdpa, float weights" if floats == 2 else "torch-sdpa"
    shown = f"{document.mean_ratio('torch-sdpa'):.3g}"
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show(document, console)
    assert re.search(rf"^{name} +{shown}", console.export_text(), re.M)
    assert re.search(rf"^\| {name} \| {shown}", markdown(document), re.M)
    assert (", float weights</span>" in page(document)) == (floats == 2)


def test_the_terminal_shows_names_as_they_are() -> None:
    problem = make_problem("L[bold]1[/]", "prefill", 1e-3, 1)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show(make_document(problems=[problem]), console)
    text = console.export_text()
    assert "L[bold]1[/]" in text and "openvino: absent" in text
    quick = replace(make_document().method, quick=True)
    terminal.show(make_document(method=quick), console)
    assert "these numbers mean nothing" in console.export_text()


def test_markdown_has_a_row_for_each_time() -> None:
    document = make_document()
    lines = markdown(document).splitlines()
    rows = [
        line for line in lines if (line.startswith("| ") and " µs ±" in line) or " ms ±" in line
    ]
    assert len(rows) == sum(len(p.results) - 1 for p in document.problems)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert columns == {15}
