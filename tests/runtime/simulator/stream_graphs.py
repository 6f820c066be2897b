"""Random stream graphs for Hypothesis: sources, maps, repeats, reductions and scans in one nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Builder, Graph, Module, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, StreamType, TensorType

AXES = tuple(Axis(name, Size.of(name.upper())) for name in "nmk")
STEPS = (
    *("source", "row_source", "map", "map", "join", "join", "join", "reduce", "reduce"),
    *("repeat", "repeat", "scan", "rescaled", "wide", "wait", "wait", "wait"),
)


@dataclass
class StreamSketch:
    """A stream graph under construction; ``levels`` is how many loops its nest has."""

    draw: st.DrawFn
    levels: int
    build: Builder = field(default_factory=Builder)
    params: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    @property
    def used(self) -> set[Value]:
        return {value for op in self.build.ops for value in op.operands}

    def level(self, value: Value) -> int:
        assert isinstance(value.type, StreamType)
        return len(value.type.loops)

    def pick(self, of: Sequence[Value]) -> Value | None:
        """One of the values; those that nothing reads yet, more often."""
        if not of:
            return None
        fresh = [v for v in of if v not in self.used]
        return self.draw(st.sampled_from([*of, *fresh, *fresh]))

    def at(self, level: int) -> list[Value]:
        return [v for v in self.values if self.level(v) == level]

    def add(self, cls: type, *operands: Value, **attrs: Any) -> Value:
        value = self.build(cls, *operands, hint=f"v{len(self.values)}", **attrs)
        self.values.append(value)
        return value

    def source_at(self, level: int) -> None:
        loops = AXES[:level]
        tensor = Value(TensorType(tuple(a.size for a in loops), F32), f"in{len(self.params)}")
        self.params.append(tensor)
        dims = tuple((a.name,) for a in loops)
        self.add(s.Source, tensor, dims=dims, type=StreamType(loops, (), F32))

    # ---- steps

    def on_source(self) -> None:
        self.source_at(self.levels)

    def on_row_source(self) -> None:
        self.source_at(self.draw(st.integers(1, self.levels)))

    def on_map(self) -> None:
        x = self.pick(self.values)
        if x is not None:
            self.add(m.Tanh, x)

    def on_join(self) -> None:
        x = self.pick(self.values)
        y = x and self.pick([v for v in self.at(self.level(x)) if v is not x])
        if x is not None and y is not None:
            self.add(self.draw(st.sampled_from([m.Add, m.Sub])), x, y)

    def on_wide(self) -> None:
        x = self.pick(self.values)
        others = [v for v in self.at(self.level(x)) if v is not x] if x else []
        y, z = (self.pick(others) for _ in range(2))
        if x is not None and y is not None and z is not None:
            self.add(m.Fma, x, y, z)

    def on_reduce(self) -> None:
        x = self.pick([v for v in self.values if self.level(v) > 1])
        if x is not None:
            kind = self.draw(st.sampled_from(["sum", "max"]))
            self.add(s.Reduce, x, kind=kind, axis=AXES[self.level(x) - 1].name)

    def on_rescaled(self) -> None:
        x = self.pick([v for v in self.values if self.level(v) > 1])
        scale = x and self.pick(self.at(self.level(x)))
        if x is not None and scale is not None:
            half = self.build(m.Tanh, scale, hint=f"h{len(self.values)}")
            self.add(s.Reduce, x, half, kind="sum", axis=AXES[self.level(x) - 1].name)

    def on_repeat(self) -> None:
        x = self.pick([v for v in self.values if self.level(v) < self.levels])
        if x is not None:
            self.add(s.Repeat, x, axis=AXES[self.level(x)])

    def on_wait(self) -> None:
        """Something with the sum of its row, or of another's, on paths of any length."""
        x = self.pick([v for v in self.values if self.level(v) > 1])
        y = x and self.pick(self.at(self.level(x)))
        if x is None or y is None:
            return
        level = self.level(x)
        row = self.add(s.Reduce, x, kind="sum", axis=AXES[level - 1].name)
        for _ in range(self.draw(st.sampled_from([0, 0, 1, 2]))):
            row = self.add(m.Tanh, row)
        wide = self.add(s.Repeat, row, axis=AXES[level - 1])
        for _ in range(self.draw(st.sampled_from([0, 0, 1, 3]))):
            y = self.add(m.Tanh, y)
        pair = [y, wide] if self.draw(st.booleans()) else [wide, y]
        self.add(self.draw(st.sampled_from([m.Sub, m.Mul])), *pair)

    def on_scan(self) -> None:
        x = self.pick(self.values)
        if x is not None:
            op = s.Scan(x, kind="max", axis=AXES[self.level(x) - 1].name)
            self.build.add(op)
            for value in op.results:
                value.hint = f"v{len(self.values)}"
                self.values.append(value)

    def finish(self) -> Graph:
        """Every value that nothing reads goes into a sink."""
        sinks = []
        for value in [v for v in self.values if v not in self.used]:
            loops = AXES[: self.level(value)]
            type_ = TensorType(tuple(a.size for a in loops), F32)
            dims = tuple((a.name,) for a in loops)
            hint = f"out{len(sinks)}"
            sinks.append(self.build(s.Sink, value, dims=dims, type=type_, hint=hint))
        body = Region(tuple(self.params), tuple(self.build.ops), tuple(sinks))
        names = tuple(a.size.terms[0][0][0] for a in AXES[: self.levels])
        return Graph("stream", "random", names, body)


@st.composite
def stream_graphs(draw: st.DrawFn, levels: int = 2, most: int = 9) -> Graph:
    """A random stream graph over the loops n=N, m=M (, k=K); N is the number of rows."""
    sketch = StreamSketch(draw, levels)
    sketch.on_source()
    for name in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=most)):
        getattr(sketch, f"on_{name}")()
    for level in range(levels, 0, -1):  # what is left of a level meets again
        while (ends := [v for v in sketch.at(level) if v not in sketch.used])[1:]:
            if draw(st.integers(0, 3)) == 0:
                break
            sketch.add(m.Add, *draw(st.permutations(ends[:2])))
    return sketch.finish()


def inputs_of(graph: Graph, sizes: dict[str, int], seed: int = 0) -> list[np.ndarray]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal([n.evaluate(sizes) for n in p.type.shape])  # type: ignore[union-attr]
        for p in graph.params
    ]


def as_module(graph: Graph) -> Module:
    return Module((graph,))
