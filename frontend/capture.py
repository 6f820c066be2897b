"""The Dynamo backend: finds regions in a captured FX graph and puts kernels in their place.

Registered as ``torch.compile(model, backend="tilewright")``; ``tilewright.compile`` uses it too.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tilewright.frontend.build import Built, build_module
from tilewright.frontend.classify import Analysis, is_weight
from tilewright.frontend.exact import keep_level
from tilewright.frontend.functionalise import functionalise_scores
from tilewright.frontend.op_map import FILLED
from tilewright.frontend.op_map.kept import kept_reason, operation_name
from tilewright.frontend.op_map.registry import Kind, lookup
from tilewright.frontend.options import Options
from tilewright.frontend.provenance import location_of
from tilewright.frontend.region_call import RegionCall
from tilewright.frontend.regions import Region, find_regions
from tilewright.frontend.replace import Rewriter
from tilewright.frontend.report import GraphReport, LeftRow, RegionReport, Report
from tilewright.frontend.row_slices import slice_rows_first
from tilewright.frontend.strictness import is_bookkeeping, offences, refuse
from tilewright.frontend.symbols import settle_equal_products
from tilewright.frontend.translate import fake_of, operand_nodes
from tilewright.frontend.unused import drop_conversions, drop_unused
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.runtime.determinism import Level, in_force, using
from tilewright.runtime.logs import CAPTURE

assert FILLED, "importing the op map fills its registry"
_CALLS = ("call_function", "call_method", "call_module")


@dataclass
class CapturedGraph:
    """What became of one captured graph."""

    calls: list[RegionCall] = field(default_factory=list)
    refused: list[RegionReport] = field(default_factory=list)
    left: list[LeftRow] = field(default_factory=list)

    def report(self) -> GraphReport:
        """The state now, with the calls made so far."""
        return GraphReport([region_report(c) for c in self.calls] + self.refused, self.left)


class Capture:
    """A Dynamo backend with options that remembers the graphs it was given (the last ``keep``)."""

    __name__ = "tilewright"

    def __init__(self, options: Options, keep: int | None = None) -> None:
        self.options = options
        self.graphs: deque[CapturedGraph] = deque(maxlen=keep)

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Rewrites the graph in place and returns what runs it."""
        kept = self.options.level
        self.graphs.append(self._rewrite(gm, kept))
        gm.graph.lint()
        gm.recompile()
        return gm.forward if kept == in_force() else _keeping(kept, gm.forward)

    def report(self) -> Report:
        return Report([graph.report() for graph in self.graphs])

    def _rewrite(self, gm: GraphModule, kept: Level) -> CapturedGraph:
        functionalise_scores(gm)
        _call_directly(gm)
        drop_conversions(gm)
        drop_unused(gm)
        slice_rows_first(gm)
        settle_equal_products(_symbolic_sizes(gm))
        analysis = Analysis(gm.graph)
        captured = CapturedGraph()
        found = [_build(region) for region in find_regions(analysis)]
        built = [(r, b) for r, b in found if isinstance(b, Built)]
        refused = {n: b for r, b in found if isinstance(b, str) for n in r.core}
        if self.options.strict:
            broken = {n: b for r, b in found if r.attention and isinstance(b, str) for n in r.core}
            refuse(_all_offences(analysis, built, broken))
        captured.refused = [_refused_report(r, b) for r, b in found if isinstance(b, str)]
        inside = {n for region, _ in built for n in region.core}
        reasons = {n: _reason(analysis, n, refused) for n in analysis.nodes if n not in inside}
        rewriter = Rewriter(gm, self.options)
        for at, (region, result) in enumerate(built):
            name = f"{result.module.main.name}_{at}"
            captured.calls.append(rewriter.replace(region, result, name))
        _drop_unused_numbers(gm)
        captured.left = _left(gm, reasons)
        keep_level(kept, [n for n in gm.graph.nodes if n in reasons])
        _log(captured)
        if self.options.verify and not captured.calls:
            CAPTURE.warning("verify: no kernel in a graph, so nothing is checked; see .explain()")
        return captured


def _symbolic_sizes(gm: GraphModule) -> list[torch.SymInt]:
    """The sizes that a graph takes as inputs."""
    given = (fake_of(n) for n in gm.graph.nodes if n.op == "placeholder")
    return [x for x in given if isinstance(x, torch.SymInt)]


class Backend:
    """A capture as Dynamo gets it, which keeps every backend until it is reset: whoever compiled
    keeps the capture, and its graphs go with that."""

    __name__ = "tilewright"

    def __init__(self, capture: Capture) -> None:
        self._capture = weakref.ref(capture)

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        capture = self._capture()
        assert capture is not None, "a graph of a compiled function that is gone"
        return capture(gm, example_inputs)


def _keeping(kept: Level, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A graph whose calls keep a level."""

    def run(*inputs: Any) -> Any:
        with using(kept):
            return forward(*inputs)

    return run


def _log(captured: CapturedGraph) -> None:
    """What became of a graph: a line, and with DEBUG one for each thing that stays with torch."""
    left = sum(row.count for row in captured.left)
    CAPTURE.info("a graph: %d kernel regions, %d operations left", len(captured.calls), left)
    for refused in captured.refused:
        CAPTURE.debug("no kernel for %s: %s", refused.name, refused.reason)
    for row in captured.left:
        CAPTURE.debug("left with torch: %d x %s, %s: %s", row.count, row.op, row.line, row.reason)


DEFAULT = Capture(Options(), keep=64)
_by_options: dict[Options, Capture] = {Options(): DEFAULT}


def dynamo_backend(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend ``"tilewright"`` of ``torch.compile``; ``last_report()`` tells what it did.

    ``options`` are those of ``tilewright.compile``: ``torch.compile(f, backend="tilewright",
    options={"strict": True})``. Raises SettingError for others, and for a ``mode``: modes are
    Inductor's.
    """
    if mode is not None:
        raise SettingError(
            f"torch.compile(mode={mode!r}): modes are those of backend='inductor'; "
            "backend='tilewright' takes options (schedules are tuned by `tilewright tune`)"
        )
    chosen = _options(options or {})
    return _by_options.setdefault(chosen, Capture(chosen, keep=64))(gm, example_inputs)


def _options(given: Mapping[str, Any]) -> Options:
    """Options by their names. Raises SettingError for unknown ones and for wrong types."""
    known = {field.name: field for field in fields(Options)}
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise SettingError(
            f"torch.compile(options=…): unknown option {unknown[0]!r}; "
            f"backend='tilewright' has {', '.join(known)}"
        )
    for name, value in given.items():
        default = known[name].default
        wanted = (str, type(None)) if default is None else (type(default),)
        if not isinstance(value, wanted):
            raise SettingError(
                f"torch.compile(options={{{name!r}: {value!r}}}): "
                f"a {wanted[0].__name__} is expected, not a {type(value).__name__}"
            )
    return Options(**given)


def last_report() -> Report:
    """The report of graphs captured through ``torch.compile(…, backend="tilewright")``."""
    graphs = [graph for capture in _by_options.values() for graph in capture.graphs]
    return Report([graph.report() for graph in graphs])


def register_backend() -> None:
    """Makes the name "tilewright" known to Dynamo (the entry point in pyproject does it too)."""
    from torch._dynamo.backends.registry import list_backends
    from torch._dynamo.backends.registry import register_backend as register

    if "tilewright" not in list_backends():
        register(dynamo_backend, name="tilewright")


def _build(region: Region) -> tuple[Region, Built | str]:
    """The module for a region (without rotations if it has none with), or why there is none."""
    if region.refused is not None:
        return region, region.refused
    try:
        return region, build_module(region)
    except UnsupportedError as error:
        return (region, str(error)) if region.plain is None else _build(region.plain)


def _all_offences(
    analysis: Analysis, built: list[tuple[Region, Built]], broken: dict[Node, str]
) -> list[tuple[Node, str]]:
    inside = {n for region, _ in built for n in region.nodes}
    return [*broken.items(), *offences(analysis, inside | set(broken))]


def _reason(analysis: Analysis, node: Node, refused: dict[Node, str]) -> str:
    entry = lookup(node)
    if node in refused:
        return refused[node]
    if entry is None:
        return kept_reason(node) or "not in the op map"
    if entry.kind is Kind.CONTRACTION:
        if any(is_weight(n) for n in operand_nodes(node)):
            return "a contraction with a parameter stays with torch"
        return analysis.known_reason(node) or "a single product stays with torch"
    by_design = f"{entry.kind.value} work outside a kernel region stays with torch"
    return analysis.known_reason(node) or by_design


def _left(gm: GraphModule, reasons: dict[Node, str]) -> list[LeftRow]:
    """What the rewritten graph still asks torch for, equal rows counted."""
    counted: Counter[tuple[str, str, str, str]] = Counter()
    for node in gm.graph.nodes:
        if node.op not in _CALLS or node not in reasons or is_bookkeeping(node):
            continue
        where = location_of(node)
        counted[operation_name(node), str(where), where.text, reasons[node]] += 1
    return [LeftRow(op, n, line, text, why) for (op, line, text, why), n in counted.items()]


def _call_directly(gm: GraphModule) -> None:
    """Ops on quantised weights as plain calls; what those need loads only if there are any."""
    if any(getattr(node.target, "namespace", "") == "tilewright" for node in gm.graph.nodes):
        from tilewright.frontend.quantize.direct import call_directly
        from tilewright.frontend.quantize.fuse import fuse_products

        fuse_products(gm)
        call_directly(gm)


def _drop_unused_numbers(gm: GraphModule) -> None:
    """``scale.item()`` that nothing uses since the scale is part of a kernel."""
    for node in reversed(list(gm.graph.nodes)):
        if node.op == "call_method" and node.target == "item" and not node.users:
            gm.graph.erase_node(node)


def region_report(call: RegionCall) -> RegionReport:
    """One region's report with its kernels, if they were built."""
    if call.instead is not None and call.failure is not None:
        return region_report(call.instead.call)
    status = "kernel" if call.program is not None else "not called yet"
    if call.failure is not None or (call.calls and call.program is None):
        status = "torch"
    report = RegionReport(
        name=call.__name__,
        status=status,
        reason=call.failure or "",
        lines=[f"{where}  {where.text}" for where in call.locations],
        ir=str(call.module),
        calls=call.calls,
        fallbacks=dict(call.fallbacks),
    )
    if call.program is not None:
        kernels = call.program.explain()
        report.kernels, report.kernels_text = kernels.to_dict(), str(kernels)
    return report


def _refused_report(region: Region, reason: str) -> RegionReport:
    places = dict.fromkeys(location_of(n) for n in region.nodes if n in region.core)
    name = operation_name(region.anchor)
    return RegionReport(name, "torch", reason, [f"{p}  {p.text}" for p in places], ir="")


__all__ = ["Backend", "Capture", "dynamo_backend", "last_report", "register_backend"]
