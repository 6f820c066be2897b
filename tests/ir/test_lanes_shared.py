"""Shared memory, barriers and copies beside the block: races are refused, and what is accepted does
not depend on the order of lanes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.ir.examples import T
from tests.ir.shared_programs import ACROSS, ALLOCATE, COPIED, COPY, STORE, THROUGH_SHARED
from tests.ir.test_lanes import program, refused
from tilewright.ir.errors import EvaluationError, UnsupportedError, VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.layout import Layout, local, spatial
from tilewright.ir.parser import parse

WRITE = "tile.store %a, %s, %c0, %c0 {dims = [0, 1]}\n"
NEGATIVE = "%n = math.neg %a\n"
OVERWRITE = "tile.store %n, %s, %c0, %c0 {dims = [0, 1]}\n"
READ_ROWS = f"%r = tile.load %s, %c0, %c0 {ACROSS}\n"
READ_COLUMNS = "%r = tile.load %s, %c0, %c0 {dims = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
ROWS = f"%b = tile.load %x, %c0, %c0 {ACROSS}\n"
WRITE_ROWS = "tile.store %b, %s, %c0, %c0 {dims = [0, 1]}\n"
BARRIER, COMMIT = "tile.barrier {}\n", "tile.commit {}\n"
WAIT, WAIT_ONE = "tile.wait {pending = 0}\n", "tile.wait {pending = 1}\n"


def runs(lines: str, wanted: Any = T) -> None:
    """Both ways, with one result."""
    for lanes in (False, True):
        (got,) = evaluate(program(lines), T, lanes=lanes)
        np.testing.assert_array_equal(got, wanted)


def test_legal_programs() -> None:
    runs(THROUGH_SHARED)
    runs(COPIED)
    runs(ALLOCATE + WRITE + READ_COLUMNS + STORE)  # every lane its own
    runs(ALLOCATE + WRITE + ROWS + WRITE_ROWS + BARRIER + READ_ROWS + STORE)  # the same values
    runs(ALLOCATE + WRITE + BARRIER + READ_ROWS + BARRIER + NEGATIVE + OVERWRITE + STORE)
    runs(ALLOCATE + WRITE + READ_COLUMNS + NEGATIVE + OVERWRITE + STORE)  # its own, again
    runs(ALLOCATE + COPY + COMMIT + WAIT + READ_COLUMNS + STORE)  # what this lane itself copied


RACES = {
    "lane 1 reads [1, 0] of shared<4 x 8 x f64>, which lane 0 wrote, without a tile.barrier": (
        WRITE + READ_ROWS
    ),
    "lane 1 writes [0, 1] of shared<4 x 8 x f64>, which lane 0 read, without a tile.barrier": (
        WRITE + BARRIER + READ_ROWS + NEGATIVE + OVERWRITE
    ),
    "lane 1 writes [0, 1] of shared<4 x 8 x f64>, which lane 0 wrote, without a tile.barrier": (
        ROWS + WRITE_ROWS + NEGATIVE + OVERWRITE
    ),
    "tile.load: lane 0 reads [0, 0] into register 0, which nothing wrote": READ_ROWS,
    "lane 0 reads [0, 0] of shared<4 x 8 x f64> while a copy of lane 0 into it is under way": (
        COPY + COMMIT + BARRIER + READ_ROWS
    ),
    "tile.load: lane 0 reads [0, 0] of shared<4 x 8 x f64> while a copy": COPY + WAIT + READ_ROWS,
    "which lane 0 wrote, without": COPY + COMMIT + WAIT + READ_ROWS,
    "tile.store: lane 0 writes [0, 0] of shared<4 x 8 x f64> while a copy": COPY + WRITE,
    "tile.copy_async: lane 0 copies to [0, 0] of shared<4 x 8 x f64> while a copy": COPY + COPY,
    "lane 1 copies to [0, 1] of shared<4 x 8 x f64>, which lane 0 read": (
        WRITE + BARRIER + READ_ROWS + COPY
    ),
    "lane 1 copies to [0, 1] of shared<4 x 8 x f64>, which lane 0 wrote": ROWS + WRITE_ROWS + COPY,
    "lane 1 reads [0, 0] of shared<4 x 8 x f64>, which lane 0 wrote": (
        WRITE + "%one = tile.load %s, %c0, %c0 {dims = [-1, -1], layout = local(1, 1)}\n"
    ),
    "tile.gather: lane 1 reads [0, 0] of shared<4 x 8 x f64>, which lane 0 wrote": (
        WRITE
        + "%i = tile.coordinate {dim = 0, layout = local(8).replicate(8)}\n"
        + "%g = tile.gather %s, %c0, %i\n"
    ),
}


@pytest.mark.parametrize("message", RACES)
def test_races_are_refused_by_name(message: str) -> None:
    assert message in refused(ALLOCATE + RACES[message])


def test_integers_read_by_all_lanes() -> None:
    lines = (
        "%s = tile.alloc {type = shared<4 x 8 x i64>}\n%i = math.cast %a {dtype = i64}\n"
        "tile.store %i, %s, %c0, %c0 {dims = [0, 1]}\nSYNC"
        "%k = tile.read %s, %c3, %c0\n%t = tile.splat %k\n%f = math.cast %t {dtype = f64}\n"
        "%r = math.add %a, %f\n" + STORE
    )
    runs(lines.replace("SYNC", BARRIER), T + int(T[3, 0]))
    assert "lane 1 reads [3, 0]" in refused(lines.replace("SYNC", ""))


SUM = "reg<1 x 1 x f64, local(1, 1).replicate(8)>"
ROW = "layout = spatial(1, 8)"
PIPELINE = f"""
%s = tile.alloc {{type = shared<2 x 8 x f64>}}
tile.copy_async %x, %s, %c0, %c0, %c0, %c0 {{dims = [0, 1], to = [0, 1], {ROW}}}
tile.commit {{}}
%zero = math.const {{value = 0.0, type = {SUM}}}
%two = math.const {{value = 2, type = index}}
%four = math.const {{value = 4, type = index}}
%one = math.const {{value = 1, type = index}}
%sum = tile.for %c0, %four, %zero {{step = 1}} (%i: index, %t: {SUM}) {{
  %next = math.add %i, %one
  %stage = math.mod %next, %two
  tile.copy_async %x, %s, %next, %c0, %stage, %c0, %four
    {{dims = [0, 1], to = [0, 1], bounds = [[0, "zero"]], {ROW}}}
  tile.commit {{}}
  tile.wait {{pending = 1}}
  tile.barrier {{}}
  %here = math.mod %i, %two
  %row = tile.load %s, %here, %c0 {{dims = [0, 1], layout = local(1, 8).replicate(8)}}
  %part = tile.reduce %row {{kind = "sum", dim = 1}}
  %more = math.add %t, %part
  tile.barrier {{}}
  yield %more
}}
tile.store %sum, %o, %c0, %c0 {{dims = [0, 1]}}
"""


def test_a_ring_of_two_stages() -> None:
    """Copies of the next row run beside the sum of this one; every line of it is needed."""
    for lanes in (False, True):
        (got,) = evaluate(program(PIPELINE, "1 x 1 x f64"), T, lanes=lanes)
        np.testing.assert_allclose(got, [[T.sum()]])
    lines = PIPELINE.splitlines()
    needed = [
        at for at, line in enumerate(lines) if line.strip().startswith("tile.") and "{}" in line
    ]
    needed += [at for at, line in enumerate(lines) if "tile.wait" in line]
    assert len(needed) == 5
    for at in needed:
        refused("\n".join(lines[:at] + lines[at + 1 :]), out="1 x 1 x f64")
    refused(PIPELINE.replace("pending = 1", "pending = 2"), out="1 x 1 x f64")


@pytest.mark.parametrize("kind", ["zero", "clamp"])
def test_copies_past_the_end(kind: str) -> None:
    copy = COPY.replace("%c0 {dims", f'%c0, %c3 {{bounds = [[0, "{kind}"]], dims')
    last = np.zeros((1, 8)) if kind == "zero" else T[2:3]
    lines = ALLOCATE + copy + COMMIT + WAIT + BARRIER + READ_ROWS + STORE
    runs(lines, np.concatenate([T[:3], last]))


# ---- against random orders of lanes


@dataclass(frozen=True)
class Step:
    """``store``, ``load`` or ``barrier`` of the tile [4] under a layout."""

    kind: str
    layout: Layout = field(default_factory=lambda: spatial(4))


LAYOUTS = [spatial(4), spatial(2).local(2), local(2).spatial(2), local(4).replicate(2)]
LAYOUTS += [Layout(1).replicate(2).spatial(2).local(2), spatial(2).local(2).replicate(2)]


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    kinds = st.sampled_from(["store", "load", "load", "barrier"])
    drawn = draw(st.lists(st.builds(Step, kinds, st.sampled_from(LAYOUTS)), max_size=6))
    return [Step("store"), Step("barrier"), *drawn, Step("barrier"), Step("load", local(4))]


def text_of(program: list[Step]) -> str:
    """The steps on shared memory; store k writes 10 k + index, loads go to the rows of %o."""
    rows = sum(step.kind == "load" for step in program)
    lines = [
        f"tile f(%o: buffer<{rows} x 4 x f64, unit 1>) with {{grid = [[1, 1]], outputs = 1}} {{",
        "%s = tile.alloc {type = shared<4 x f64>}\n%c0 = math.const {value = 0, type = index}",
    ]
    stored = row = 0
    for at, step in enumerate(program):
        if step.kind == "barrier":
            lines.append("tile.barrier {}")
        elif step.kind == "store":
            type_ = f"reg<4 x f64, {step.layout}>"
            lines.append(f"%i{at} = tile.coordinate {{dim = 0, layout = {step.layout}}}")
            lines.append(f"%f{at} = math.cast %i{at} {{dtype = f64}}")
            lines.append(f"%k{at} = math.const {{value = {10 * stored}, type = {type_}}}")
            lines.append(f"%v{at} = math.add %f{at}, %k{at}")
            lines.append(f"tile.store %v{at}, %s, %c0 {{dims = [0]}}")
            stored += 1
        else:
            lines.append(f"%r{at} = math.const {{value = {row}, type = index}}")
            lines.append(f"%l{at} = tile.load %s, %c0 {{dims = [0], layout = {step.layout}}}")
            lines.append(f"tile.store %l{at}, %o, %r{at}, %c0 {{dims = [-1, 0]}}")
            row += 1
    return "\n".join([*lines, "return }"])


def in_some_order(program: list[Step], rng: np.random.Generator) -> dict[Any, float]:
    """What lanes read, if between barriers one after the other runs, in a random order."""
    memory, seen, epochs = [float("nan")] * 4, {}, [[]]  # type: ignore[var-annotated]
    stored = 0
    for at, step in enumerate(program):
        if step.kind == "barrier":
            epochs.append([])
        else:
            epochs[-1].append((at, step, 10 * stored))
            stored += step.kind == "store"
    for epoch in epochs:
        for lane in rng.permutation(4):
            for at, step, base in epoch:
                if lane >= step.layout.lanes:
                    continue
                for register in range(step.layout.registers):
                    (index,) = step.layout.index(int(lane), register)
                    if step.kind == "load":
                        seen[at, int(lane), register] = memory[index]
                    elif step.layout.holders((index,))[0] == (lane, register):
                        memory[index] = base + index
    return seen


@given(steps(), st.integers(0, 2**20))
@settings(max_examples=300)
def test_what_is_accepted_does_not_depend_on_the_order_of_lanes(
    program: list[Step], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    orders = [in_some_order(program, rng) for _ in range(12)]
    try:
        (got,) = evaluate(parse(text_of(program)), lanes=True)
    except EvaluationError as error:
        event("refused")
        assert "without a tile.barrier between" in error.message
        return
    event("accepted")
    rows = [at for at, step in enumerate(program) if step.kind == "load"]
    for order in orders:
        for (at, lane, register), value in order.items():
            (index,) = program[at].layout.index(lane, register)
            assert got[rows.index(at), index] == value
    (whole,) = evaluate(parse(text_of(program)))
    np.testing.assert_array_equal(got, whole)


def test_every_pair_of_accesses() -> None:
    """Exhaustively: two accesses between two barriers are refused just if the order matters."""
    for a, b in itertools.product(["store", "load"], repeat=2):
        for one, other in itertools.product(LAYOUTS, LAYOUTS):
            pair = [Step("store"), Step("barrier"), Step(a, one), Step(b, other), Step("barrier")]
            pair.append(Step("load", local(4)))
            rng = np.random.default_rng(0)
            orders = [in_some_order(pair, rng) for _ in range(24)]
            differ = any(order != orders[0] for order in orders)
            try:
                evaluate(parse(text_of(pair)), lanes=True)
                refused_ = False
            except EvaluationError:
                refused_ = True
            assert refused_ == differ, (a, str(one), b, str(other))


# ---- rules


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (COPY.replace("%x, %s", "%s, %x"), "copies from a buffer"),
        (COPY.replace("%x, %s", "%x, %x"), "copies to shared memory"),
        (COPY.replace("to = [0, 1]", "to = [0]"), "to needs 2 entries"),
        (COPY.replace("to = [0, 1]", "to = [0, 0]"), "runs along one dimension of to"),
        (COPY.replace("to = [0, 1]", "to = [0, -1]"), "to names every tile dimension"),
        (COPY.replace("to = [0, 1]", "to = [0, 2]"), "to names every tile dimension"),
        (COPY.replace(", %c0, %c0 {", " {"), "one index per dimension of both memories"),
        (COPY.replace("dims = [0, 1]", "dims = [0]"), "dims needs 2 entries"),
        (COPY.replace("%c0 {", "%c0, %c0 {"), "one index per dimension, then limits"),
        ("tile.wait {pending = -1}", "pending is a number of groups"),
        ("%u = tile.undefined {type = index}", "type must be a register tile"),
        ("%u = tile.alloc {type = index}", "type must be scratch or shared"),
    ],
)
def test_rules(wrong: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        program(ALLOCATE + wrong)


def test_dtypes_of_copies_agree() -> None:
    with pytest.raises(VerifyError, match="dtypes must agree"):
        program(ALLOCATE.replace("f64", "f32") + COPY)


def test_text_parses_back() -> None:
    for lines in (THROUGH_SHARED, COPIED):
        module = program(lines)
        assert parse(str(module)) == module and "shared<4 x 8 x f64>" in str(module)
    with pytest.raises(Exception, match="shared memory has constant sizes"):
        program("%s = tile.alloc {type = shared<N x f64>}")


@pytest.mark.parametrize("lines", [ALLOCATE, BARRIER, WAIT, COMMIT])
def test_back_ends_for_cpus_say_who_takes_them(lines: str) -> None:
    from tilewright.backends.mlir.emit import emit_module
    from tilewright.backends.numba.emit import emit_source
    from tilewright.ir.target import named_target

    graph = program(lines).main
    for write in (
        lambda: emit_module(graph, named_target("x86-64-v3"), "f"),
        lambda: emit_source(graph, "f"),
    ):
        with pytest.raises(UnsupportedError, match="GPU back ends have it; on a CPU use scratch"):
            write()


def test_the_mlir_back_end_refuses_layouts_that_are_no_products() -> None:
    from tilewright.backends.mlir.emit import emit_module
    from tilewright.ir.target import named_target

    odd = "modes((4), (2, 4), lanes (2, 1), registers (0))"
    graph = program(f"%b = tile.load %x, %c0, %c0 {{dims = [0, 1], layout = {odd}}}").main
    with pytest.raises(UnsupportedError, match="use a layout that is a product"):
        emit_module(graph, named_target("x86-64-v3"), "f")
