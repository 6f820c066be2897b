"""The facts that ``tilewright explain`` shows, found by the passes themselves. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.ir.types import Axis
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels import Channel, find_channels
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.pipeline import kernel_passes, run_passes
from tilewright.passes.reorder import MOST_ROUNDS, RULES
from tilewright.passes.to_tile.cost.defaults import few_row_classes
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse, is_row_kernel
from tilewright.passes.to_tile.lowbit.choose import unpack_slots
from tilewright.passes.to_tile.lowbit.info import has_packed_weights, packed_products
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule, packed_schedule
from tilewright.passes.to_tile.lower import default_schedule, kernel_to_tile
from tilewright.passes.to_tile.mask_range import Bound, find_mask_range
from tilewright.passes.to_tile.schedule import (
    Schedule,
    row_classes,
    row_schedule,
)
from tilewright.passes.to_tile.spaces import kernel_info


@dataclass(frozen=True)
class ChannelFacts:
    """One channel: from a value to an operand of an operation. ``depth`` is for full throughput,
    ``least`` for ending at all."""

    name: str
    depth: str
    deep: bool
    least: str


@dataclass(frozen=True)
class RuleFacts:
    """A reorder rule, its algebra, and the number of deep channels before and after it."""

    name: str
    algebra: str
    applied: bool
    deep_before: int
    deep_after: int


@dataclass(frozen=True)
class LayoutFacts:
    """The schedule for up to ``up_to_rows`` rows (0: any number)."""

    up_to_rows: int
    schedule: Schedule


@dataclass(frozen=True)
class PackedFacts:
    """How weights of few bits are read: the schedule of every row class, the packings' costs."""

    up_to_rows: int
    schedule: PackedSchedule


@dataclass(frozen=True)
class KernelFacts:
    """One kernel: loops, channels, mask intervals, layouts; why it has no machine code, if so.

    ``inner`` is the loop that is streamed: "" where each row is computed by itself. With
    ``shared_out`` nothing is summed along it, and work items take parts of it.
    """

    name: str
    channels: tuple[ChannelFacts, ...]
    deepest: int
    grid: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    inner: str = ""
    shared_out: bool = False
    intervals: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    layouts: tuple[LayoutFacts, ...] = ()
    packed: tuple[PackedFacts, ...] = ()
    packings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Explanation:
    """Everything that ``explain`` prints, as data."""

    program: str
    target: str
    deep_channels: tuple[ChannelFacts, ...]
    rules: tuple[RuleFacts, ...]
    kernels: tuple[KernelFacts, ...]


def explanation(module: Module, target: Target) -> Explanation:
    """The facts about a tensor-level program. Raises UnsupportedError if it has no streams."""
    passes = kernel_passes(target)
    until = [step.name for step in passes].index("to_stream") + 1
    streams = canonicalise_graph(run_passes(module, passes[:until]).main)
    deep = tuple(_channel(c) for c in find_channels(streams) if c.deep)
    kernels = run_passes(module, passes).graphs
    return Explanation(
        module.main.name,
        target.name,
        deep,
        rule_facts(streams),
        tuple(kernel_facts(graph, target) for graph in kernels),
    )


def rule_facts(graph: Graph) -> tuple[RuleFacts, ...]:
    """What each rule does to the stream graph, one after the other; in later rounds only those that
    apply again."""
    out: list[RuleFacts] = []
    for number in range(MOST_ROUNDS):
        before = str(Module((graph,)))
        for rule in RULES:
            after = canonicalise_graph(rule.apply(graph))
            changed = str(Module((after,))) != str(Module((graph,)))
            if changed or not number:
                algebra = _first_sentence(rule.apply.__doc__ or "")
                deep = _count_deep(graph), _count_deep(after)
                out.append(RuleFacts(rule.name, algebra, changed, *deep))
            graph = after
        if str(Module((graph,))) == before:
            break
    return tuple(out)


def _first_sentence(docstring: str) -> str:
    """``sum x * c -> (sum x) * c`` of a rule's docstring."""
    for end in (";", " (see", ".\n"):
        docstring = docstring.partition(end)[0]
    return " ".join(docstring.split()).removesuffix(".")


def _count_deep(graph: Graph) -> int:
    return sum(channel.deep for channel in find_channels(graph))


def _channel(channel: Channel) -> ChannelFacts:
    name = f"%{channel.value.hint} -> {channel.consumer.name}[{channel.at}]"
    return ChannelFacts(name, str(channel.depth), channel.deep, str(channel.least))


def kernel_facts(graph: Graph, target: Target) -> KernelFacts:
    channels = find_channels(graph)
    deepest = max((c.depth.constant or 0 for c in channels), default=0)
    facts = tuple(_channel(c) for c in channels)
    try:
        info = analyse(graph)
        kernel_to_tile(graph, target, 0, {})
    except UnsupportedError as error:
        return KernelFacts(graph.name, facts, deepest, problem=error.message)
    mask = find_mask_range(info)
    return KernelFacts(
        graph.name,
        facts,
        deepest,
        _axes(info.grid),
        _axes(info.rows),
        str(info.inner) if info.inner.name else "",
        info.splits,
        tuple(_interval(info, bound) for bound in mask.bounds),
        tuple(f"%{test.hint}" for test in mask.tests),
        _layouts(graph, target),
        _packed(graph, target),
        _packings(graph, target),
    )


def _layouts(graph: Graph, target: Target) -> tuple[LayoutFacts, ...]:
    """The schedule of every row class; rows computed by themselves have one class."""
    if has_packed_weights(graph):
        return ()
    if is_row_kernel(graph):
        return (LayoutFacts(0, row_schedule(target)),)
    info = kernel_info(graph)
    classes = few_row_classes(info, target)
    found = ((rows, default_schedule(info, target, rows)) for rows in classes)
    return tuple(LayoutFacts(rows, y) for rows, y in found if isinstance(y, Schedule))


def _packed(graph: Graph, target: Target) -> tuple[PackedFacts, ...]:
    """The schedule of every row class of a kernel with packed weights."""
    if not has_packed_weights(graph):
        return ()
    products = packed_products(graph)
    count, unpack = len(products), unpack_slots(products, target)
    classes = row_classes(target)
    return tuple(
        PackedFacts(rows, packed_schedule(target, rows, count, unpack)) for rows in classes
    )


def _packings(graph: Graph, target: Target) -> tuple[str, ...]:
    """For every packed weight its packing, and what the alternatives cost."""
    if not has_packed_weights(graph):
        return ()
    found = []
    for product in packed_products(graph):
        activation = "int8" if product.integer else "float"
        dtype, group = product.weights.dtype, product.packing.group
        choice = choose_layout(dtype, group, target, activation=activation)
        found.append(f"packed as {product.packing}; the costs of all packings:\n{choice.explain()}")
    return tuple(found)


def _axes(axes: tuple[Axis, ...]) -> tuple[str, ...]:
    return tuple(str(axis) for axis in axes)


def _interval(info: KernelInfo, bound: Bound) -> str:
    """``m <= n + 1`` of a bound on the inner axis."""
    text = f"{info.inner.name} {'<=' if bound.upper else '>='}"
    parts = [(name if c == 1 else f"{c}*{name}") for name, c in bound.terms]
    if bound.constant.terms or not parts:
        parts.append(str(bound.constant))
    return f"{text} {' + '.join(parts)}".replace("+ -", "- ")
