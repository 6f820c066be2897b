"""The machine's parameters: which operations are nodes, latencies, initiation intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tilewright.ir.errors import SettingError
from tilewright.passes.channels.nodes import Node, NodeGraph, NodeRules

MOST_CYCLES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """The abstract machine of the streaming SDPA paper, with DAM's timing rules. Times in cycles.

    A firing at cycle t makes its results ready for their consumers at t + max(latency, send), and
    the node is free again at t + interval. A place in a channel that is emptied at t can be filled
    again at t + response. ``latencies`` and ``intervals`` are for single nodes, by name.
    Source: DAM-RS, src/channel and src/context. Raises SettingError for times below one cycle
    (a latency may be 0: the sending takes a cycle anyway).
    """

    rules: NodeRules = field(default_factory=NodeRules)
    latency: int = 1
    interval: int = 1
    send: int = 1
    response: int = 1
    latencies: Mapping[str, int] = field(default_factory=dict)
    intervals: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"latency": 0, "interval": 1, "send": 1, "response": 1}
        for name, low in least.items():
            _check(name, getattr(self, name), low)
        for given, name in ((self.latencies, "latency"), (self.intervals, "interval")):
            for node, cycles in given.items():
                _check(f"{name} of {node}", cycles, least[name])

    def check_names(self, nodes: NodeGraph) -> None:
        """SettingError if a latency or an interval is for a node that is not there."""
        known = {node.name for node in nodes.nodes}
        for name in (*self.latencies, *self.intervals):
            if name not in known:
                raise SettingError(f"there is no node {name!r}; nodes: {', '.join(sorted(known))}")

    def latency_of(self, node: Node) -> int:
        return self.latencies.get(node.name, self.latency)

    def interval_of(self, node: Node) -> int:
        return self.intervals.get(node.name, self.interval)


def _check(name: str, cycles: int, least: int) -> None:
    if not least <= cycles <= MOST_CYCLES:
        raise SettingError(f"{name} is {cycles} cycles; it has to be {least} to {MOST_CYCLES}")
