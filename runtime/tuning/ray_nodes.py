"""Where on a Ray cluster trials can run, by what its nodes say that they offer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_KIND = "accelerator_type:"  # Ray's resource of a node with GPUs of that kind
_LITTLE = 0.001  # of it: it is there to be asked for, not to be used up


@dataclass(frozen=True)
class Place:
    """All processors of a node, or one of its GPUs with its share of the processors."""

    node: str  # Ray's id
    name: str
    number: int  # of the GPU
    cpus: float
    gpus: float
    resources: tuple[tuple[str, float], ...] = ()


def places(nodes: Iterable[Mapping[str, Any]], gpu: bool) -> tuple[list[Place], list[str]]:
    """The places that are there now, and the nodes with GPUs of other kinds than the most frequent
    one, in words. ``nodes`` as ray.nodes() gives them."""
    alive = [node for node in nodes if node["Alive"]]
    if not gpu:
        found = [(node, node["Resources"].get("CPU", 0.0)) for node in alive]
        return [Place(x["NodeID"], _name(x), 0, cpus, 0.0) for x, cpus in found if cpus >= 1], []
    kinds: dict[str, list[Place]] = {}
    for node in alive:
        kinds.setdefault(_kind(node), []).extend(_gpus(node))
    best = max(kinds, key=lambda kind: (len(kinds[kind]), kind), default="")
    other = [
        f"{len(some)} GPU{'s' * (len(some) > 1)} of kind {kind or '?'}"
        for kind, some in kinds.items()
        if kind != best and some
    ]
    return kinds.get(best, []), other


def _gpus(node: Mapping[str, Any]) -> list[Place]:
    offered = node["Resources"]
    count = int(offered.get("GPU", 0))
    share = float(offered.get("CPU", 0.0) // count) if count else 0.0
    kind = _kind(node)
    wanted = ((_KIND + kind, _LITTLE),) if kind else ()
    names = [f"GPU {at} of {_name(node)}" for at in range(count)]
    return [Place(node["NodeID"], name, at, share, 1.0, wanted) for at, name in enumerate(names)]


def _kind(node: Mapping[str, Any]) -> str:
    kinds = sorted(x.removeprefix(_KIND) for x in node["Resources"] if x.startswith(_KIND))
    return kinds[0] if kinds else ""


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
