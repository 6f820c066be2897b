"""What the page is told, beside what the passes, ``explain`` and the simulator say themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.playground.conftest import PROGRAMS
from tilewright.cli.explanation import explanation
from tilewright.ir.errors import SettingError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.channels import find_channels
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.playground.page import examples, page
from tilewright.playground.request import KINDS, Request
from tilewright.playground.work import work

Example = Callable[[str], str]
NAMES = sorted(p.relative_to(PROGRAMS).with_suffix("").as_posix() for p in PROGRAMS.rglob("*.tw"))
ALL = [p.name for p in TO_KERNELS]


def told(kind: str, program: str, **fields: Any) -> Any:
    return json.loads(work(json.dumps({"kind": kind, "program": program, **fields})))


def without(*names: str) -> list[str]:
    return [name for name in ALL if name not in names]


def test_every_example_is_packaged() -> None:
    packaged = {e["name"]: e["text"] for e in examples()}
    there = {p.stem: p.read_text(encoding="utf-8") for p in PROGRAMS.rglob("*.tw")}
    assert packaged == there


@pytest.mark.parametrize("name", NAMES)
def test_forms_of_every_example(name: str, example: Example) -> None:
    """Channels stand at the lines that they lead from and to; diffs give the text before and
    after."""
    program = example(name)
    answer = told("forms", program, sizes=dict.fromkeys("ABGKMNOTV", 4))
    assert "error" not in answer
    module = run_passes(parse(program), TO_KERNELS)
    assert "\n\n".join(k["text"] for k in answer["stream"]) + "\n" == str(module)
    for kernel, graph in zip(answer["stream"], module.graphs, strict=True):
        lines = kernel["text"].splitlines()
        expected = [(c.name, str(c.full), c.deep, c.consumer.name) for c in find_channels(graph)]
        assert [
            tuple(c[k] for k in ("name", "depth", "deep", "op")) for c in kernel["channels"]
        ] == expected
        for channel in kernel["channels"]:
            assert f"= {channel['op']} " in lines[channel["to"]]
            assert lines[channel["line"]].strip().startswith("%")
    before = str(parse(program)).splitlines()
    for step in answer["passes"]:
        if "diff" in step:
            assert [line for sign, line in step["diff"] if sign != "+"] == before
            before = [line for sign, line in step["diff"] if sign != "-"]
    assert before == str(module).splitlines()


def test_rules_are_those_of_explain(example: Example) -> None:
    program = example("attention")
    expected = explanation(parse(program), named_target("x86-64-v3"))
    rules = told("forms", program)["rules"]
    found = [(r["name"], r["algebra"], r["applied"], r["before"], r["after"]) for r in rules]
    assert found == [
        (r.name, r.algebra, r.applied, r.deep_before, r.deep_after) for r in expected.rules
    ]
    (kernel,) = told("why", program, target="x86-64-v3")["kernels"]
    (facts,) = expected.kernels
    assert (kernel["grid"], kernel["stream"]) == (list(facts.grid), facts.inner)
    assert [s["up_to"] for s in kernel["schedules"]] == [y.up_to_rows for y in facts.layouts]


def test_a_deep_channel_and_the_rule_against_it(example: Example) -> None:
    """The channel e->p of the naive program holds a row: N + 3, as docs/streams.md has it for the
    paper's nodes, one more where each operation is a node."""
    program = example("streams/naive")
    (kernel,) = told("forms", program, passes=without("reorder", "partition"))["stream"]
    (deep,) = [c for c in kernel["channels"] if c["deep"]]
    assert deep["name"] == "e->p" and deep["depth"].startswith("N + ")
    assert deep["here"] == 64 + int(deep["depth"].removeprefix("N + "))
    wider = told("forms", program, passes=without("reorder", "partition"), sizes={"N": 100})
    assert max(c["here"] for c in wider["stream"][0]["channels"]) == deep["here"] + 36
    (kernel,) = told("forms", program)["stream"]
    assert kernel["deep"] == 0
    cut = told("forms", program, passes=without("reorder"))["stream"]
    assert len(cut) == 2 and not any(k["deep"] for k in cut)


def test_sizes_that_the_program_lacks_are_no_mistake(example: Example) -> None:
    answer = told("forms", example("variance"), sizes={"N": 5, "Q": 7})
    assert answer["sizes"] == [{"name": "N", "value": 5}, {"name": "M", "value": 64}]


def test_mistakes_have_places(example: Example) -> None:
    program = example("attention").replace("%dots, %scale", "%dotz, %scale")
    error = told("forms", program)["error"]
    line = program.splitlines().index("  %scores = math.mul %dotz, %scale") + 1
    assert (error["code"], error["line"], error["column"]) == ("TW001", line, 22)
    assert "%dotz" in error["message"]


def test_a_pass_that_refuses_is_told_with_what_came_before() -> None:
    program = (
        "graph other<N>(%x: tensor<N x 4 x 6 x f32>) {\n"
        "  %y = tensor.reshape %x {shape = [size(N), 3, 8]}\n"
        "  %z = math.add %y, %y\n  return %z\n}\n"
    )
    answer = told("forms", program)
    error = answer["error"]
    assert (error["pass"], error["code"], error["line"]) == ("to_stream", "TW004", 2)
    assert answer["tensor"] and not answer["stream"]


@pytest.mark.parametrize(
    ("language", "target", "mark"),
    [
        ("mlir", "x86-64-v3", "func.func @variance"),
        ("llvm", "x86-64-v3", "define"),
        ("asm", "x86-64-v3", "retq"),
        ("numba", "x86-64-v3", "def variance"),
        ("triton", "cuda-sm90", "@triton.jit"),
        ("triton", "hip-gfx942", "@triton.jit"),
        ("threads", "cuda-sm90", "tile variance"),
        ("cuda", "cuda-sm90", "TW_KERNEL(variance"),
    ],
)
def test_code(language: str, target: str, mark: str, example: Example) -> None:
    answer = told("code", example("variance"), language=language, target=target)
    assert mark in answer["text"], answer
    assert answer["lines"] == answer["text"].count("\n") + 1


@pytest.mark.parametrize(
    ("language", "target", "suggested"),
    [
        ("triton", "x86-64-v3", "cuda-sm90"),
        ("cuda", "x86-64-v3", "cuda-sm90"),
        ("mlir", "cuda-sm90", "x86-64-v3"),
        ("cuda", "hip-gfx942", "cuda-sm90"),
    ],
)
def test_why_a_target_has_no_code(
    language: str, target: str, suggested: str, example: Example
) -> None:
    answer = told("code", example("variance"), language=language, target=target)
    assert answer["why"] and answer["suggest"] == suggested and "text" not in answer


def test_the_simulator(example: Example) -> None:
    """The figures of docs/streams.md."""
    program, passes = example("streams/naive"), without("reorder", "partition")
    asked = {"passes": passes, "nodes": "paper", "sizes": {"N": 64}}
    run = told("simulate", program, depths="short=2,long=N+2", **asked)
    assert (run["cycles"], run["free"], run["wrong"]) == (4228, 4165, False)
    assert {c["name"]: c["capacity"] for c in run["channels"]}["e->p"] == 66
    for channel in run["channels"]:
        assert len(channel["bins"]) == -(-run["cycles"] // run["bin"])
        assert max(channel["bins"]) <= channel["peak"] <= channel["capacity"]
    stuck = told("simulate", program, depths="short=2,long=N-2", **asked)
    assert "e waits for room in e->p (all 62 places are taken)" in stuck["deadlock"]
    assert [c["name"] for c in stuck["channels"] if c["stuck"]] == ["e->p"]
    assert stuck["largest_error"] is None


def test_a_program_run(example: Example) -> None:
    answer = told("run", example("variance"), backend="interpreter", sizes={"N": 6, "M": 40})
    assert answer["where"].endswith("by interpreter")
    names = [form["form"] for form in answer["forms"]]
    assert names == ["kernels", "tensor form, interpreted", "stream form"]
    assert all(r["good"] for form in answer["forms"] for r in form["results"])
    refused = told("run", example("streams/naive"))
    assert "takes a program at the tensor level" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("local(2, 1).spatial(8, 4).local(1, 2)", "layout"),
        ("quads(4, 2) lanes 16 group 32", "packing"),
    ],
)
def test_layouts(text: str, kind: str) -> None:
    answer = told("layout", "", layout=text)
    assert answer["kind"] == kind and answer["svg"].startswith("<svg")


def test_layouts_of_a_kernel(example: Example) -> None:
    (kernel,) = told("tile", example("variance"), target="x86-64-v3")["kernels"]
    assert kernel["layouts"] and all(y["text"] in kernel["text"] for y in kernel["layouts"])
    counts = [y["count"] for y in kernel["layouts"]]
    assert counts == sorted(counts, reverse=True)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from([*Request.__dataclass_fields__, "other"])


@given(st.dictionaries(fields, anything, max_size=5), st.sampled_from(KINDS))
@settings(max_examples=80)
def test_requests_are_taken_or_refused(given_fields: dict[str, Any], kind: str) -> None:
    """Nothing but a SettingError comes of a request; what is taken has the types it should."""
    try:
        request = Request.from_json(json.dumps({**given_fields, "kind": kind}))
    except SettingError:
        return
    assert isinstance(request.program, str) and isinstance(request.target, str)
    assert all(isinstance(n, int) for n in (request.rows, request.kernel, *request.sizes.values()))


@given(st.text(max_size=60), st.sampled_from(KINDS[:-1]))
@settings(max_examples=40)
@hypothesis.example("graph g(%x: tensor<2 x f32>) { return %x }", "tile")
def test_any_program_gets_an_answer(program: str, kind: str) -> None:
    answer = told(kind, program, target="x86-64-v3", layout=program)
    assert answer.get("error", {}).get("code") != "bug", answer


HOSTILE = "// </script><script>alert(1)</script><!-- @SCRIPT@ @TOKEN@ @NONCE@"


def test_what_is_in_a_program_stays_data() -> None:
    text = page("the-token", "the-nonce", {"program": HOSTILE})
    plain = page("the-token", "the-nonce")
    assert text.count("<script") == plain.count("<script") == 2
    assert "alert(1)</script>" not in text and "@SCRIPT@" in text
    data = text.partition('<script type="application/json"')[2].partition(">")[2]
    assert json.loads(data.partition("</script>")[0])["opened"] == {"program": HOSTILE}
