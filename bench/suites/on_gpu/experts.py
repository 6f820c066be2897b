"""Mixtures of experts on a GPU: the layer whose tuned Triton kernels vLLM published (128 experts,
704 x 2,816, top 8), in bf16 and four bits, and its router with adapters."""

from __future__ import annotations

from tilewright.bench.experts import Layer
from tilewright.bench.routing_cases import Routing
from tilewright.bench.suites.experts import Experts, Routed, layer_problem, routing_problem
from tilewright.bench.suites.problem import FLOATS, Problem

LAYER = Layer(experts=128, hidden=2816, inter=704, top=8)
ROUTING = Routing(128, 2816, 704, 8, 20, 8)
TINY_LAYER, TINY_ROUTING = Layer(8, 64, 48, 2), Routing(8, 32, 16, 2, 3, 2)


def problems(device: str, floats: str, quick: bool) -> list[Problem]:
    """Layers of 1 to 4,096 tokens, four bits where weights are what counts, routers."""
    layer, routing = (TINY_LAYER, TINY_ROUTING) if quick else (LAYER, ROUTING)
    dtype = FLOATS[floats]
    counts = (1, 16) if quick else (1, 16, 128, 1024, 4096)
    found = [layer_problem(Experts(layer, n, dtype, device=device)) for n in counts]
    few = {"group": 16 if quick else 128, "activation": "float", "device": device}
    found += [layer_problem(Experts(layer, n, dtype, 4, **few)) for n in counts[:2]]  # type: ignore[arg-type]
    tokens = (1, 16) if quick else (1, 256, 4096)
    return found + [routing_problem(Routed(routing, n, False, device)) for n in tokens]


def smallest(device: str, floats: str, section: str) -> Problem:
    if section == "routing":
        case = Routed(Routing(8, 8, 8, 1, 1, 1), 1, False, device)
        return routing_problem(case, "next to nothing")
    layer = Experts(Layer(8, 32, 32, 1), 1, FLOATS[floats], device=device)
    return layer_problem(layer, "next to nothing")
