"""Routing kernels for GPUs run in the tile interpreter, one after another as a call runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.ir.core import Graph, Module
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.fuse_reroute import share_counts
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import routing_programs

TARGET = "cuda-sm90"


def check(text: str, *inputs: Any, parts: int = 0, target: str = TARGET) -> None:
    """Kernels give what the text means: integers equal, floats close. ``parts``: counts are shared
    out over so many (0: they are not)."""
    arrays = [np.asarray(x) for x in inputs]
    found = run(text, *arrays, parts=parts, target=target)
    wanted = evaluate(parse(text), *arrays)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
        else:
            assert np.array_equal(ours, theirs)


def run(text: str, *inputs: Any, parts: int = 0, target: str = TARGET) -> list[Any]:
    """What the programs of all kernels of a text give, which has to be routing alone."""
    module = parse(text)
    known = {p.hint: x for p, x in zip(module.main.params, inputs, strict=True)}
    for graph in run_passes(module, TO_KERNELS).graphs:
        given = [known[p.hint] for p in graph.params]
        found = _shared(graph, given, parts, target) if parts else _run(graph, given, target)
        known.update(zip((v.hint for v in graph.results), found, strict=True))
    hints = [v.hint for v in module.main.results]  # a kernel that is all of it keeps them
    return [
        next(x for name, x in known.items() if name == hint or name.endswith(f"_out{at}"))
        for at, hint in enumerate(hints)
    ]


def programs(graph: Graph, target: str = TARGET) -> tuple[Graph, ...]:
    """The programs of a stream graph whose inputs are contiguous."""
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    made = routing_programs(graph, named_target(target), units)
    for program in made:
        assert parse(str(Module((program,)))) == Module((program,))
    return made


def _run(graph: Graph, given: Sequence[Any], target: str) -> list[Any]:
    *first, last = programs(graph, target)
    counts = [x for program in first for x in evaluate_graph(program, *given)]
    return list(evaluate_graph(last, *given, *counts))


def _shared(graph: Graph, given: Sequence[Any], parts: int, target: str) -> list[Any]:
    """The results of a kernel that may count, as two kernels where it does."""
    shared = share_counts(graph, parts)
    if shared is None:
        return _run(graph, given, target)
    first = _run(shared.loop, given, target)
    kept = len(shared.loop_results)
    late = _run(shared.after, [*first[kept:], *(given[i] for i in shared.after_inputs)], target)
    places = *shared.loop_results, *shared.after_results
    both = dict(zip(places, [*first[:kept], *late], strict=True))
    return [both[at] for at in range(len(graph.results))]
