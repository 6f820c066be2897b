"""Tensor and stream forms: every pass with what it changed, every channel with its depth."""

from __future__ import annotations

import difflib
import time
from typing import Any

from tilewright.cli.explanation import rule_facts
from tilewright.ir.core import Graph, Module, Op, Region
from tilewright.ir.errors import TilewrightError
from tilewright.ir.printer import print_graph
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels.depth import Channel, channel_depths
from tilewright.passes.channels.nodes import find_nodes
from tilewright.passes.pipeline import TO_KERNELS, Pass
from tilewright.playground.answers.program import about, chosen_passes, parsed, sizes_for
from tilewright.playground.request import Request

LEVELS = {"graph": "tensor", "stream": "stream", "tile": "tile"}


def answer(request: Request) -> dict[str, Any]:
    """Everything up to kernels on streams. An error of a pass is told with what came before it."""
    module = parsed(request)
    begin = module.main
    tensors = module if begin.level == "graph" else None
    before_reorder = module if begin.level == "stream" else None
    steps, error = [], None
    chosen = chosen_passes(request)
    for step in TO_KERNELS:
        if step not in chosen or error:
            steps.append(_step(step, None, module, 0.0))
            continue
        start, before = time.perf_counter(), module
        try:
            module = step.run(module)
        except TilewrightError as problem:
            error = problem, step.name
        steps.append(_step(step, before, module, time.perf_counter() - start))
        if module.main.level == "graph":
            tensors = module
        if before.main.level == "graph" and module.main.level == "stream":
            before_reorder = module
    found: dict[str, Any] = {
        "name": begin.name,
        "level": LEVELS.get(begin.level, begin.level),
        "sizes": [] if begin.level == "tile" else _sizes(begin, request),
        "passes": steps,
        "tensor": [_graph(g) for g in tensors.graphs] if tensors else [],
        "stream": [_stream(g, request) for g in module.graphs if g.level == "stream"],
        "rules": _rules(before_reorder) if before_reorder else [],
    }
    if error:
        from tilewright.playground.work import error_facts

        found["error"] = {**error_facts(error[0]), "pass": error[1]}
    return found


def _step(step: Pass, before: Module | None, after: Module, seconds: float) -> dict[str, Any]:
    """One pass: whether it ran, and the lines that it took out (-), put in (+) and left."""
    facts: dict[str, Any] = {"name": step.name, "about": about(step), "on": before is not None}
    if before is None:
        return facts
    old, new = str(before).splitlines(), str(after).splitlines()
    facts |= {"ms": round(seconds * 1000, 2), "changed": old != new}
    if old != new:
        facts["diff"] = _diff(old, new)
    return facts


def _diff(old: list[str], new: list[str]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [(" ", line) for line in old[a:b]]
        else:
            lines += [("-", line) for line in old[a:b]]
            lines += [("+", line) for line in new[c:d]]
    return lines


def _sizes(graph: Graph, request: Request) -> list[dict[str, Any]]:
    return [{"name": n, "value": v} for n, v in sizes_for(graph, request).items()]


def _graph(graph: Graph) -> dict[str, Any]:
    return {"name": graph.name, "text": print_graph(graph)}


def _rules(module: Module) -> list[dict[str, Any]]:
    """The rules of ``reorder``, applied to the streams as written."""
    found = []
    for graph in module.graphs:
        for rule in rule_facts(canonicalise_graph(graph)):
            found.append(
                {
                    "graph": graph.name if len(module.graphs) > 1 else "",
                    "name": rule.name,
                    "algebra": rule.algebra,
                    "applied": rule.applied,
                    "before": rule.deep_before,
                    "after": rule.deep_after,
                }
            )
    return found


# ---- streams


def _stream(graph: Graph, request: Request) -> dict[str, Any]:
    """A kernel: its text, and for every channel the lines that it leads from and to."""
    facts: dict[str, Any] = _graph(graph)
    lines = facts["text"].splitlines()
    places = line_of_each(graph)
    sizes = sizes_for(graph, request)
    nodes = find_nodes(graph)
    general, here = channel_depths(nodes), channel_depths(nodes, sizes)
    facts["channels"] = [
        _channel(symbolic, numeric, sizes, places, lines)
        for symbolic, numeric in zip(general, here, strict=True)
    ]
    facts["deep"] = sum(c.deep for c in general)
    facts["places"] = sum(channel["here"] for channel in facts["channels"])
    return facts


def _channel(
    symbolic: Channel,
    numeric: Channel,
    sizes: dict[str, int],
    places: dict[Op, int],
    lines: list[str],
) -> dict[str, Any]:
    """Depths for full throughput and for no deadlock: expressions, and numbers at the sizes."""
    owner = next(op for op in places if symbolic.value in op.results)
    to = places[symbolic.consumer]
    return {
        "name": symbolic.name,
        "line": places[owner],
        "to": to,
        "consumer": lines[to].split("=")[0].strip() if "=" in lines[to] else symbolic.consumer.name,
        "op": symbolic.consumer.name,
        "depth": str(symbolic.full),
        "here": numeric.full.evaluate(sizes),
        "least": str(symbolic.least),
        "least_here": numeric.least.evaluate(sizes),
        "deep": symbolic.deep,
    }


def line_of_each(graph: Graph) -> dict[Op, int]:
    """The line of the printed graph (from 0) on which every operation begins."""
    places: dict[Op, int] = {}
    _number(graph.body, 1, places)
    return places


def _number(region: Region, line: int, places: dict[Op, int]) -> int:
    """Numbers a region's operations from ``line``; gives the line of what ends the region."""
    for op in region.ops:
        places[op] = line
        for inner in op.regions:  # its parameters' line, its operations, its yield
            line = _number(inner, line + 1, places) + 1
        line += 1
    return line
