"""What placements cost on a trace: ours, and those it is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints, Trace
from tilewright.runtime.placement.traffic import coherent_rows, exchange_rows

RANDOM_SEEDS = 10
_SAMPLE = 20_000  # tokens that rows are counted on


@dataclass(frozen=True)
class Evaluation:
    """Means per token, over all steps between layers of one forward pass.

    ``hops``: moves to another device; ``far``: those to another node; ``cost``: hops with their
    prices. A hop is counted for a token that goes from one of its k experts to one of the next
    layer's k, all equally likely, so there are at most layers - 1 for any k. ``exchange_rows`` and
    ``coherent_rows`` are what the two ways of execution send (``traffic``).
    """

    name: str
    cost: float
    hops: float
    far: float
    exchange_rows: float
    coherent_rows: float


class Judge:
    """Evaluates placements on one trace, whose counts are made once."""

    def __init__(self, trace: Trace, topology: Topology) -> None:
        self.trace = trace
        self.topology = topology
        self.affinity = trace.affinity()
        step = max(1, -(-trace.tokens // _SAMPLE))
        self._sample = Trace(trace.ids[::step], trace.experts)

    def per_token(self, cost: int) -> float:
        """A cost summed over all pairs of choices, as a mean per token."""
        return cost / (self.trace.tokens * self.trace.pairs)

    def __call__(self, name: str, *placements: Ints) -> Evaluation:
        """One placement, or the mean of several, each int64 [layers, experts]."""
        gpus, nodes = self.topology.gpus, self.topology.nodes
        costs = {
            "cost": self.topology.costs(),
            "hops": Topology(gpus).costs(),
            "far": Topology(gpus, nodes).costs() - Topology(gpus, nodes, 1).costs(),
        }
        means = {
            key: _mean(self.per_token(Problem.whole(self.affinity, c).cost(p)) for p in placements)
            for key, c in costs.items()
        }
        sample = self._sample
        for key, count in (("exchange_rows", exchange_rows), ("coherent_rows", coherent_rows)):
            means[key] = _mean(count(sample, p, gpus).total / sample.tokens for p in placements)
        return Evaluation(name, **means)

    def references(self) -> tuple[Evaluation, ...]:
        """Round robin, in order, and the mean of several random placements."""
        shape = (self.trace.layers, self.topology, self.trace.experts)
        randoms = (random_placement(*shape, seed) for seed in range(RANDOM_SEEDS))
        return (
            self("round robin", round_robin(*shape)),
            self("in order", in_order(*shape)),
            self(f"random, mean of {RANDOM_SEEDS}", *randoms),
        )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def round_robin(layers: int, topology: Topology, experts: int) -> Ints:
    """Expert e on device e mod N, in every layer: int64 [layers, experts]."""
    return np.tile(np.arange(experts) % topology.gpus, (layers, 1))


def in_order(layers: int, topology: Topology, experts: int) -> Ints:
    """The first E/N experts on the first device and so on, as most frameworks do it."""
    each = topology.experts_per_gpu(experts)
    return np.tile(np.arange(experts) // each, (layers, 1))


def random_placement(layers: int, topology: Topology, experts: int, seed: int) -> Ints:
    """Balanced and otherwise random, another one for each layer."""
    generator = np.random.default_rng(seed)
    slots = in_order(1, topology, experts)[0]
    return np.stack([generator.permutation(slots) for _ in range(layers)])
