"""Depths by analysis against depths by search: the simulator finds the least with which a run ends,
and the least with which it takes no cycle longer than without limits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tilewright
from tests.passes import depth_graphs as known
from tests.runtime.simulator.stream_graphs import stream_graphs
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.passes.channels.compare import Depth, Regime
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import Edge, NodeRules, find_nodes
from tilewright.passes.channels.throughput import Times
from tilewright.runtime.simulator import Machine
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.run import Simulation, run_plan

RULES = st.builds(NodeRules, st.booleans(), st.booleans())
SHORT = st.fixed_dictionaries({n: st.sampled_from([0, 1, 1, 2, 2, 3, 4, 6]) for n in "NMK"})
Depths = Mapping[Edge, int | None]


def least_for(plan: Plan, others: Depths, edge: Edge, cycles: int | None) -> int:
    """The least depth of one channel, while the others are as given, with which the program ends
    (in so many cycles), by bisection."""

    def good(depth: int) -> bool:
        run = run_plan(plan, {**others, edge: depth})
        return not run.stuck and (cycles is None or run.cycles == cycles)

    low, high = 0, 1
    while not good(high):
        low, high = high, 2 * high
        assert high < 1 << 20, "no depth is enough"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


@given(stream_graphs(2), RULES)
@example(parse(known.REPEATED_TWICE).main, NodeRules())
@example(parse(known.ANOTHER_ORDER).main, NodeRules(paper=True, repeat_nodes=True))
@example(parse(known.ONE_AFTER_THE_OTHER).main, NodeRules(paper=False, repeat_nodes=False))
@example(parse(known.NO_LATER_THAN_THE_END).main, NodeRules())
@example(parse(known.BUSY_FOR_A_ROUND).main, NodeRules(paper=True, repeat_nodes=True))
@example(parse(known.HELD_UP_WITHOUT_HARM).main, NodeRules(paper=True, repeat_nodes=True))
@settings(max_examples=60)
def test_depths_are_the_least_that_a_search_finds(graph: Graph, rules: NodeRules) -> None:
    """Loops longer than the graph has nodes, and rows enough for a cycle a row to be seen."""
    nodes = find_nodes(graph, rules)
    long = 2 * len(nodes.nodes) + 5
    sizes = {"N": 3 * long, "M": long}
    plan = Plan(nodes, Machine(rules), sizes)
    found = channel_depths(nodes)
    full: Depths = {e: c.full.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    least: Depths = {e: c.least.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    cycles = run_plan(plan, dict.fromkeys(nodes.edges)).cycles
    assert run_plan(plan, full).cycles == cycles
    assert not run_plan(plan, least).stuck
    for edge in nodes.edges:
        assert least_for(plan, full, edge, cycles) == full[edge], edge.name
        assert least_for(plan, least, edge, None) == least[edge], edge.name
    for symbolic, numeric in zip(found, channel_depths(nodes, sizes), strict=True):
        assert symbolic.full.evaluate(sizes) == numeric.full.evaluate(sizes)
        assert symbolic.least.evaluate(sizes) == numeric.least.evaluate(sizes)


# Found by Hypothesis. In a steady state an element of the second part comes every K cycles, so that
# one place is enough in each of its channels. Two elements with K = 2 end before there is one, and
# with one place a cycle later than without limits.
NO_STEADY_STATE = """stream f<N, M, K>(%x: tensor<N x M x K x f32>, %y: tensor<N x M x f32>) {
  %v = stream.source %x {dims = [["n"], ["m"], ["k"]], type = stream<n=N, m=M, k=K; f32>}
  %w = math.tanh %v
  %a = stream.source %y {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %b = math.tanh %a
  %c = math.add %a, %b
  %d = math.add %c, %c
  %o = stream.sink %w {dims = [["n"], ["m"], ["k"]], type = tensor<N x M x K x f32>}
  %p = stream.sink %d {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %o, %p
}"""


@given(st.integers(1, 3).flatmap(stream_graphs), RULES, SHORT)
@example(parse(NO_STEADY_STATE).main, NodeRules(), {"N": 1, "M": 2, "K": 2})
@settings(max_examples=100)
def test_depths_for_given_sizes_are_enough(
    graph: Graph, rules: NodeRules, sizes: dict[str, int]
) -> None:
    """At any sizes, short loops and deeper nests included: enough, and with any place less too
    little."""
    nodes = find_nodes(graph, rules)
    plan = Plan(nodes, Machine(rules), sizes)
    found = channel_depths(nodes, sizes)
    full = {e: c.full.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    least = {e: c.least.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    free = run_plan(plan, dict.fromkeys(nodes.edges))
    run = run_plan(plan, full)
    assert not run.stuck and run.cycles == free.cycles
    assert not run_plan(plan, least).stuck
    for edge in nodes.edges:
        if full[edge] > 1:
            run = run_plan(plan, {**full, edge: full[edge] - 1})
            assert run.stuck or run.cycles > free.cycles, edge.name


@st.composite
def machine_times(draw: st.DrawFn, names: list[str]) -> Times:
    small = st.integers(1, 3)
    latencies = draw(st.dictionaries(st.sampled_from(names), st.integers(0, 6), max_size=2))
    return Times(draw(st.integers(0, 4)), draw(small), draw(small), latencies)


@given(stream_graphs(2), RULES, st.data())
@settings(max_examples=30)
def test_other_latencies(graph: Graph, rules: NodeRules, data: st.DataObject) -> None:
    """Enough, and with any place less too little, on machines of other latencies, too."""
    nodes = find_nodes(graph, rules)
    times = data.draw(machine_times([node.name for node in nodes.nodes]))
    machine = Machine(rules, times.latency, 1, times.send, times.response, times.latencies)
    long = sum(1 + times.forward(node) for node in nodes.nodes) + times.response + 4
    sizes = {"N": 3 * long, "M": long}
    plan = Plan(nodes, machine, sizes)
    found = channel_depths(nodes, None, times)
    full = {e: c.full.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    cycles = run_plan(plan, dict.fromkeys(nodes.edges)).cycles
    assert run_plan(plan, full).cycles == cycles
    for edge in nodes.edges:
        if full[edge] > 1:
            run = run_plan(plan, {**full, edge: full[edge] - 1})
            assert run.stuck or run.cycles > cycles, edge.name


HEAD = """stream f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %b = stream.source %y {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
"""
TAIL = """
  %out = stream.sink %z {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %out
}"""


def depths_of(body: str, **rules: bool) -> dict[str, tuple[str, str]]:
    """Both depths of every channel, as they are printed."""
    graph = parse(HEAD + body + TAIL).main
    found = channel_depths(find_nodes(graph, NodeRules(**rules)))
    return {c.name: (str(c.full), str(c.least)) for c in found}


MEAN = (
    '%s = stream.reduce {x} {{kind = "sum", axis = "m"}} '
    "%r = stream.repeat %s {{axis = axis(m, M)}} "
)


def mean(x: str) -> str:
    return MEAN.format(x=x)


@pytest.mark.parametrize(
    ("body", "channel", "full", "least"),
    [
        # the row waits for its sum; the one that is read first lies in its consumer
        (mean("%a") + "%z = math.sub %a, %r", "a->z", "M + 3", "M - 1"),
        (mean("%a") + "%z = math.sub %r, %a", "a->z", "M + 3", "M"),
        # what waits may be later on the path: two more lie in the channel and the node before
        (mean("%a") + "%c = math.neg %a %z = math.sub %c, %r", "c->z", "M + 2", "M - 3"),
        (mean("%a") + "%c = math.neg %a %z = math.sub %c, %r", "a->c", "2", "1"),
        # a row of its own starts later
        (mean("%b") + "%z = math.sub %a, %r", "a->z", "2", "1"),
        # paths of different lengths
        ("%c = math.neg %a %d = math.neg %c %z = math.sub %a, %d", "a->z", "4", "1"),
        ("%c = math.add %a, %b %z = math.sub %c, %c", "c->z", "2", "1"),
        # a scan gives at once
        ('%c, %d = stream.scan %a {kind = "max", axis = "m"} %z = math.sub %a, %d',
         "a->z", "3", "1"),
        # a value per row
        (mean("%a") + "%z = math.sub %a, %r", "s->r", "ceil(2/M)", "1"),
        (
            '%s = stream.reduce %a {kind = "sum", axis = "m"} %t = math.tanh %s '
            "%r = stream.repeat %t {axis = axis(m, M)} %z = math.sub %a, %r",
            "s->t", "ceil(2/M)", "1",
        ),
        # two reductions one after the other: twice the row for full throughput, once for ending
        (mean("%a") + "%c = math.sub %b, %r "
         '%t = stream.reduce %c {kind = "sum", axis = "m"} '
         "%q = stream.repeat %t {axis = axis(m, M)} "
         "%z = math.sub %a, %q", "a->z", "2*M + 5", "M - 1"),
    ],
)  # fmt: skip
def test_depth_of(body: str, channel: str, full: str, least: str) -> None:
    assert depths_of(body)[channel] == (full, least)


def test_repeats_as_wiring() -> None:
    """The division reads its row's sum itself: a cycle earlier, and before it takes the element."""
    found = depths_of(mean("%a") + "%z = math.sub %a, %r", repeat_nodes=False)
    assert found["a->z"] == ("M + 2", "M") and found["s->z"] == ("ceil(2/M)", "1")


def test_two_rows_that_wait_for_each_other() -> None:
    """Each waits for the other's sum. At full rate both are kept; to end, one is enough."""
    other = MEAN.replace("%s", "%t").replace("%r", "%q").format(x="%b")
    body = mean("%a") + other + "%c = math.sub %a, %q %d = math.sub %b, %r %z = math.add %c, %d"
    found = depths_of(body)
    assert {found["a->c"][0], found["b->d"][0]} == {"M + 3"}
    assert sorted([found["a->c"][1], found["b->d"][1]]) == ["1", "M - 1"]


def test_a_vector_of_its_own() -> None:
    """Without a loop around it there is no next row: all of it is the most that waits."""
    graph = parse(
        "stream f<N>(%x: tensor<N x f32>) {\n"
        '  %a = stream.source %x {dims = [["n"]], type = stream<n=N; f32>}\n'
        '  %s = stream.reduce %a {kind = "sum", axis = "n"}\n'
        "  %r = stream.repeat %s {axis = axis(n, N)}\n"
        "  %z = math.sub %a, %r\n"
        '  %out = stream.sink %z {dims = [["n"]], type = tensor<N x f32>}\n'
        "  return %out\n}"
    ).main
    found = {c.name: c for c in channel_depths(find_nodes(graph))}
    assert str(found["a->z"].full) == str(found["a->z"].least) == "N - 1" and found["a->z"].deep


def alone(plan: Plan, edge: Edge, run: Simulation, search: bool) -> int:
    return least_for(plan, dict.fromkeys(plan.nodes.edges), edge, run.cycles if search else None)


@pytest.mark.parametrize("rules", [NodeRules(True, True), NodeRules(True, False)])
@pytest.mark.parametrize("program", ["naive", "safe_softmax", "reordered_division", "memory_free"])
def test_the_papers_programs_channel_by_channel(program: str, rules: NodeRules) -> None:
    """In these, each depth is also the least while all other channels are without limit."""
    with open(f"examples/streams/{program}.tw", encoding="utf-8") as file:
        graph = parse(file.read()).main
    nodes, sizes = find_nodes(graph, rules), {"N": 40}
    plan = Plan(nodes, Machine(rules), sizes)
    run = run_plan(plan, dict.fromkeys(nodes.edges))
    for edge, found in zip(nodes.edges, channel_depths(nodes), strict=True):
        assert alone(plan, edge, run, True) == found.full.evaluate(sizes), edge.name
        assert alone(plan, edge, run, False) == found.least.evaluate(sizes), edge.name


# ---- the comparison of symbolic times


SIZES = st.builds(
    lambda n, m, c: Size.of("N") * n + Size.of("M") * m + c,
    st.integers(-2, 3), st.integers(-2, 3), st.integers(-9, 9),
)  # fmt: skip
VALUES = st.fixed_dictionaries({"N": st.integers(8, 60), "M": st.integers(8, 60)})


@given(st.lists(SIZES, min_size=1, max_size=4), VALUES)
def test_latest_and_earliest_bound_what_they_are_of(
    sizes: list[Size], values: dict[str, int]
) -> None:
    regime = Regime(8)
    numbers = [size.evaluate(values) for size in sizes]
    assert regime.latest(sizes).evaluate(values) >= max(numbers)
    assert regime.earliest(sizes).evaluate(values) <= min(numbers)
    assert not regime.at_least(sizes[0], sizes[-1]) or numbers[0] >= numbers[-1]


def test_long_loops_decide() -> None:
    regime, n = Regime(8), Size.of("N")
    assert regime.latest([n, Size.of(7)]) == n and regime.earliest([n, Size.of(7)]) == 7 + Size()
    assert not regime.at_least(n, Size.of(9)) and regime.positive(n * "M" - n - "M")


@given(SIZES, st.sampled_from(["M", "1"]), VALUES)
def test_the_bound_of_a_depth_is_enough(tokens: Size, per: str, values: dict[str, int]) -> None:
    depth = Depth(tokens, Size.of("M") if per == "M" else Size.of(1))
    if min(dict(tokens.terms).values(), default=0) >= 0:
        assert depth.bound.evaluate(values) >= depth.evaluate(values)


@pytest.mark.parametrize(
    ("tokens", "text", "at_four"),
    [
        (Size.of(2), "ceil(2/M)", 1),
        (Size.of("M") + 2, "1 + ceil(2/M)", 2),
        (Size.of("M") * 3, "3", 3),
        (Size.of("M") * "N" + "N" + 1, "N + ceil((N + 1)/M)", 7),
        (Size(), "0", 1),
    ],
)
def test_depths_as_text(tokens: Size, text: str, at_four: int) -> None:
    depth = Depth(tokens, Size.of("M"))
    assert str(depth) == text and depth.evaluate({"M": 4, "N": 5}) == at_four


def test_barriers_open_in_the_order_that_holds_least() -> None:
    """The sum of %a opens first: then %c has not sent all of its row, and less of it is held."""
    body = "%c = math.tanh %a " + (
        '%s = stream.reduce %c {kind = "sum", axis = "m"} '
        "%r = stream.repeat %s {axis = axis(m, M)} %d = math.sub %r, %a "
        '%t = stream.reduce %a {kind = "sum", axis = "m"} '
        "%q = stream.repeat %t {axis = axis(m, M)} %e = math.sub %q, %c %z = math.add %d, %e"
    )
    graph = parse(HEAD + body + TAIL).main
    nodes, sizes = find_nodes(graph), {"N": 3, "M": 40}
    plan = Plan(nodes, Machine(), sizes)
    found = channel_depths(nodes)
    least: Depths = {e: c.least.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    assert {c.name: str(c.least) for c in found if c.least.evaluate(sizes) > 1} == {
        "a->d": "M",
        "c->e": "M - 2",
    }
    for edge in nodes.edges:
        assert least_for(plan, least, edge, None) == least[edge], edge.name


@pytest.mark.parametrize("size", ["0", "1"])
def test_axes_of_no_elements_have_depths(size: str) -> None:
    """A program for calls without keys can be explained, too."""
    text = (
        f"graph g<B, N>(%q: tensor<B x N x 8 x f32>, %k: tensor<B x {size} x 8 x f32>, "
        f"%v: tensor<B x {size} x 4 x f32>) {{\n"
        '%s = tensor.contract %q, %k {equation = "bnd,bmd->bnm"}\n'
        "%p = tensor.softmax %s {axis = 2}\n"
        '%o = tensor.contract %p, %v {equation = "bnm,bme->bne"}\nreturn %o }'
    )
    for kernel in tilewright.Program(parse(text)).explain().kernels:
        assert not any("depth 0" in channel for channel in kernel.channels)
