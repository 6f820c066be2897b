"""Mixtures of experts: layers in f32, bf16 and few bits, and the routers before them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tilewright.bench.experts import GptOss, Layer
from tilewright.bench.roofline import Work
from tilewright.bench.routing_cases import Routing
from tilewright.bench.suites.problem import Problem, Suite

CHECKED = 16  # tokens whose results are computed in float64, one expert at a time


@dataclass(frozen=True)
class Experts:
    """``tokens`` through a layer; ``bits``: the weights of ours in so few, in groups of ``group``,
    with these activations."""

    layer: Layer
    tokens: int
    dtype: torch.dtype
    bits: int = 0
    group: int = 32
    activation: str = "int8"
    device: str = "cpu"

    def work(self) -> Work:
        """Weights of every expert that gets a token, read once."""
        layer = self.layer
        touched = layer.experts * (1 - (1 - layer.top / layer.experts) ** self.tokens)
        size = self.bits / 8 + 2 / self.group if self.bits else self.dtype.itemsize
        weights = touched * 3 * layer.hidden * layer.inter * size
        moved = 2 * self.tokens * layer.hidden * self.dtype.itemsize
        return Work(weights + moved, 1e9 * layer.work(self.tokens))


@dataclass(frozen=True)
class Given:
    """The module of transformers' own class, and x [T, H], ids and weights [T, k]."""

    module: Any
    inputs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Routed:
    """``tokens`` through a router, from scores or (``product``) from hidden states."""

    routing: Routing
    tokens: int
    product: bool
    device: str = "cpu"

    def work(self) -> Work:
        r = self.routing
        width = r.hidden if self.product else r.experts
        moved = 4.0 * self.tokens * width + 16.0 * self.tokens * r.top
        gate = r.experts * r.hidden if self.product else 0
        return Work(moved + 4 * gate, 2.0 * self.tokens * gate)


@lru_cache(maxsize=1)
def _module(layer: Layer, dtype: torch.dtype, device: str) -> Any:
    return layer.module(dtype, device)


def inputs(case: Experts) -> Given:
    module = copy.deepcopy(_module(case.layer, case.dtype, case.device))
    return Given(module, case.layer.inputs(case.tokens, case.dtype, case.device))


def exact(case: Experts, given: Given) -> torch.Tensor:
    """The first tokens' sums over their experts in float64."""
    x, ids, weights = (part[:CHECKED] for part in given.inputs)
    found = []
    for row, chosen, scale in zip(x.double(), ids.tolist(), weights.double(), strict=True):
        each = torch.stack([case.layer.expert(given.module, e, row) for e in chosen])
        found.append(scale @ each)
    return torch.stack(found)


def first_tokens(result: torch.Tensor) -> torch.Tensor:
    """What ``exact`` is compared with."""
    return result[:CHECKED]


def first_result(results: Any) -> torch.Tensor:
    """A router's weights [T, k]: choices may differ where scores are nearly equal."""
    found: torch.Tensor = results[0]
    return found


def layer_problem(case: Experts, name: str = "") -> Problem:
    """A problem of this suite, or of its counterpart for GPUs."""
    floats = "f32" if case.dtype == torch.float32 else "bf16"
    kind = f"u{case.bits}, {case.activation}" if case.bits else str(case.dtype)[6:]
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[case.dtype]
    return Problem(
        suite="experts",
        section="layers",
        name=name or f"{case.layer.name}, {kind}, {case.tokens} tokens",
        case=case,
        work=case.work(),
        arithmetic="int8" if case.bits and case.activation == "int8" else floats,
        make=lambda: inputs(case),
        exact=lambda given: exact(case, given),
        tolerance=0.2 if case.bits else tolerance,  # beside the layer before its bits were taken
        parameters={
            "tokens": case.tokens,
            "experts": case.layer.experts,
            "top": case.layer.top,
            "hidden": case.layer.hidden,
            "inner": case.layer.inter,
            "weights": kind,
        },
        size=float(case.tokens),
        series="" if name else f"{case.layer.name}, {kind}",
        headline="cold" if case.tokens < 256 else "warm",
    )


def routing_problem(case: Routed, name: str = "") -> Problem:
    """A problem of this suite, or of its counterpart for GPUs."""
    kind = "from hidden states" if case.product else "from scores"
    r = case.routing
    return Problem(
        suite="experts",
        section="routing",
        name=name or f"{r.name}, {kind}, {case.tokens} tokens",
        case=case,
        work=case.work(),
        arithmetic="f32",
        make=lambda: tuple(x.to(case.device) for x in r.inputs(case.tokens, case.product)),
        exact=lambda given: _exact_routing(case, given),
        tolerance=1e-4,
        parameters={"tokens": case.tokens, "experts": r.experts, "top": r.top, "from": kind},
        size=float(case.tokens),
        series="" if name else f"routing, {kind}",
    )


def _exact_routing(case: Routed, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    wide = [part.double() if part.is_floating_point() else part for part in given]
    return case.routing.torch_side(case.product)(*wide)[0]


def problems(quick: bool) -> list[Problem]:
    """Layers of 1 to 2,048 tokens, routers of 1 to 4,096."""
    layer = Layer(8, 64, 48, 2) if quick else Layer()
    turned = GptOss(8, 64, 48, 2) if quick else GptOss()
    routing = Routing(8, 32, 16, 2, 3, 2) if quick else Routing()
    counts = (1, 16) if quick else (1, 16, 256, 2048)
    found = [layer_problem(Experts(layer, n, torch.float32)) for n in counts]
    found += [layer_problem(Experts(layer, n, torch.bfloat16)) for n in counts]
    found += [layer_problem(Experts(layer, n, torch.float32, 4)) for n in counts[:2]]
    found += [layer_problem(Experts(turned, n, torch.float32)) for n in counts[:2]]
    for product in (False, True):
        found += [routing_problem(Routed(routing, n, product)) for n in (1, 16 if quick else 256)]
    return found if quick else [*found, routing_problem(Routed(routing, 4096, False))]


def smallest(section: str) -> Problem:
    if section == "routing":
        return routing_problem(Routed(Routing(8, 8, 8, 1, 1, 1), 1, False), "next to nothing")
    return layer_problem(Experts(Layer(8, 32, 32, 1), 1, torch.float32), "next to nothing")


SUITE = Suite("experts", "Mixtures of experts and their routing", problems, smallest)
