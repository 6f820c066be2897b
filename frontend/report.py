"""The report of ``explain()``: every region with its kernels, everything that stayed with torch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LeftRow:
    """An operation that stayed with torch: how often, from which line, why."""

    op: str
    count: int
    line: str
    text: str
    reason: str


@dataclass
class RegionReport:
    """One region: ``status`` is "kernel", "torch" (see ``reason``) or "not called yet"."""

    name: str
    status: str
    reason: str
    lines: list[str]
    ir: str
    calls: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    kernels: Any = None
    kernels_text: str = ""


@dataclass
class GraphReport:
    """One graph that Dynamo captured: a function may give several (other dtypes, graph breaks)."""

    regions: list[RegionReport]
    left: list[LeftRow]


@dataclass
class Report:
    """All graphs captured so far. ``str(report)`` is for people, ``to_dict()`` for programs."""

    graphs: list[GraphReport]

    @property
    def regions(self) -> list[RegionReport]:
        """The regions of all graphs."""
        return [region for graph in self.graphs for region in graph.regions]

    def to_dict(self) -> dict[str, Any]:
        """Lists, dictionaries, strings and numbers only."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.graphs:
            return "nothing captured yet: call the compiled function once, then ask again"
        parts = []
        for at, graph in enumerate(self.graphs):
            parts.append(f"graph {at}: {_count(len(graph.regions), 'region')}")
            parts.extend(_region_text(same) for same in _grouped(graph.regions))
            parts.append(_left_text(graph.left))
        return "\n".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _grouped(regions: list[RegionReport]) -> list[list[RegionReport]]:
    """Regions of one text and outcome together: the layers of a model."""
    groups: dict[tuple[str, ...], list[RegionReport]] = {}
    for region in regions:
        key = (region.ir, region.status, region.reason, *region.lines, *region.fallbacks)
        groups.setdefault(key, []).append(region)
    return list(groups.values())


def _region_text(same: list[RegionReport]) -> str:
    first = same[0]
    times = f" ({_count(len(same), 'region')} alike)" if len(same) > 1 else ""
    calls = _count(sum(r.calls for r in same), "call")
    lines = [f"  region {first.name}{times}: {first.status}, {calls}"]
    if first.reason:
        lines.append(f"    reason: {first.reason}")
    for reason in first.fallbacks:
        number = sum(r.fallbacks.get(reason, 0) for r in same)
        lines.append(f"    with torch {_count(number, 'time')}: {reason}")
    lines.extend(f"    from {shown(line, '')}" for line in first.lines)
    lines.extend(f"    | {line}" for line in first.ir.splitlines())
    lines.extend(f"    {line}" for line in first.kernels_text.splitlines())
    return "\n".join(lines)


def _left_text(left: list[LeftRow]) -> str:
    if not left:
        return "  nothing stayed with torch"
    lines = ["  stayed with torch:"]
    for reason in dict.fromkeys(row.reason for row in left):
        lines.append(f"    {reason}:")
        rows = [r for r in left if r.reason == reason]
        for place in dict.fromkeys((r.line, r.text) for r in rows):
            ops = ", ".join(f"{r.count} x {r.op}" for r in rows if (r.line, r.text) == place)
            lines.append(f"      {ops}: {shown(*place)}")
    return "\n".join(lines)


def shown(line: str, text: str) -> str:
    """A source line for people: paths from the working folder or from site-packages, text cut."""
    path = line.rpartition("site-packages/")[2].removeprefix(os.getcwd() + os.sep)
    return f"{path}  {text if len(text) <= 80 else text[:77] + '...'}".rstrip()
