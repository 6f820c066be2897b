"""A failing case made smaller by changes of its program: fewer results, operations, inputs, sizes.

Hypothesis would make the drawing smaller, which is not the same: an operation that the failure does
not need may be one that the drawing needs, and a value cannot become an input. Each change is kept
if the case still fails in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tilewright.ir.core import Graph, Module, Op, Region, Value
from tilewright.ir.errors import TilewrightError
from tilewright.ir.parser import parse
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalise import drop_dead
from tilewright.runtime.verification.case import Call, Case
from tilewright.runtime.verification.check import Outcome
from tilewright.runtime.verification.values import InputSpec

Check = Callable[[Case], Outcome]
MESSAGE = 40  # characters of an error's message that say which it is
SMALL = (0, 1, 2, 3)


def same_failure(a: Outcome, b: Outcome) -> bool:
    """Whether two failures are of one kind."""
    raised = a.status == "error"
    return a.status == b.status and (not raised or a.message[:MESSAGE] == b.message[:MESSAGE])


def reduced(case: Case, outcome: Outcome, check: Check, until: float) -> tuple[Case, Outcome]:
    """The smallest case of one call that is found before ``until`` (of time.monotonic), and what
    becomes of it."""
    changed = True
    while changed:
        changed = False
        for candidate in _candidates(case):
            if time.monotonic() > until:
                return case, outcome
            found = check(candidate)
            if found.failed and same_failure(found, outcome):
                case, outcome, changed = candidate, found, True
                break
    return case, outcome


def _candidates(case: Case) -> Iterator[Case]:
    """Smaller cases, those that take most away first."""
    (call,) = case.calls
    graph = parse(case.text).main
    for made in _programs(graph):
        try:
            yield _with_graph(case, call, made)
        except TilewrightError:
            continue  # no program: another change of it may be one
    yield from (replace(case, calls=(c,)) for c in _calls(call))


def _programs(graph: Graph) -> Iterator[Graph]:
    body = graph.body
    if len(body.yields) > 1:
        for value in body.yields:
            yield graph.with_body(Region(body.params, body.ops, (value,)))
    live = drop_dead(graph)
    if len(live.body.ops) < len(body.ops):
        yield live
    for op in reversed(body.ops):
        yield from _without(graph, op)
    for op in reversed(body.ops):  # an operand as the result
        if any(result in body.yields for result in op.results):
            for value in (v for v in op.operands if v not in body.yields):
                yield graph.with_body(Region(body.params, body.ops, (value,)))


def _without(graph: Graph, op: Op) -> Iterator[Graph]:
    """An input or an operand instead of a result."""
    for result in op.results:
        if result not in graph.body.yields:
            yield _replaced(graph, result, Value(result.type, _free(graph)))
        for value in (v for v in op.operands if v.type == result.type):
            yield _replaced(graph, result, value)


def _free(graph: Graph) -> str:
    taken = {v.hint for v in graph.params} | {r.hint for op in graph.body.ops for r in op.results}
    return next(name for name in (f"x{n}" for n in range(len(taken) + 1)) if name not in taken)


def _replaced(graph: Graph, old: Value, new: Value) -> Graph:
    """The graph with one value for another; a value of its own is a new input."""
    values: dict[Value, Value] = {old: new}
    ops: list[Op] = []
    known = set(graph.params)
    for op in graph.body.ops:
        if any(v in values for v in op.operands):
            hints = [r.hint for r in op.results]
            operands = (values.get(v, v) for v in op.operands)
            fresh = type(op)(*operands, loc=op.loc, hints=hints, **op.attrs)
            values.update(
                {k: v for k, v in zip(op.results, fresh.results, strict=True) if k != old}
            )
            op = fresh  # noqa: PLW2901 (what is kept is either)
        ops.append(op)
        known.update(op.results)
    params = graph.params if new in known else (*graph.params, new)
    results = tuple(values.get(v, v) for v in graph.body.yields)
    return graph.with_body(Region(params, tuple(ops), results))


def _with_graph(case: Case, call: Call, graph: Graph) -> Case:
    """The case with another graph, without what that does not use."""
    graph = drop_dead(graph)
    used = {v for op in graph.body.ops for v in op.operands} | set(graph.body.yields)
    params = tuple(p for p in graph.params if p in used)
    names = [
        n for p in params if isinstance(p.type, TensorType) for s in p.type.shape for n in s.names
    ]
    sizes = tuple(dict.fromkeys(names))
    graph = replace(graph, sizes=sizes, body=Region(params, graph.body.ops, graph.body.yields))
    hints = {p.hint for p in params}
    inputs = {name: spec for name, spec in call.inputs.items() if name in hints}
    kept = Call({n: v for n, v in call.sizes.items() if n in sizes}, call.seed, inputs)
    text = str(Module((graph,)))
    parse(text)
    return replace(case, text=text, calls=(kept,))


def _calls(call: Call) -> Iterator[Call]:
    """Plainer calls of the same program."""
    for name, size in call.sizes.items():
        for smaller in (*SMALL, size // 2, size - 1):
            if 0 <= smaller < size:
                unlaid = {n: InputSpec(s.values) for n, s in call.inputs.items()}
                yield replace(call, sizes={**call.sizes, name: smaller}, inputs=unlaid)
    for name, spec in call.inputs.items():
        rest = {n: s for n, s in call.inputs.items() if n != name}
        yield replace(call, inputs=rest)
        if spec.strides is not None or spec.offset:
            yield replace(call, inputs={**rest, name: InputSpec(spec.values)})
    if call.seed:
        yield replace(call, seed=0)
