"""A program of one lane in a fixed order as CUDA C++: a thread is a work item.

The same tile program as Numba's, so that the same operations follow each other in the same order.
Scratch memory is the thread's own: the device keeps it so that neighbouring threads' words are
neighbours. Nothing is shared, no matrix unit is used. The kernel takes what ``emit.py``'s takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tilewright.backends.cuda.emit import CudaSource
from tilewright.backends.cuda.ordered_text import dtype_of, expression, literal
from tilewright.backends.cuda.ordered_values import Index, Memory, Tile, indices, shape
from tilewright.backends.cuda.parameters import parameters, size_text
from tilewright.backends.cuda.pointwise import scalar_type
from tilewright.backends.cuda.text import CText, added, times
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import View
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, IndexType, ScratchType

THREADS = 64


def emit_ordered(graph: Graph, symbol: str) -> CudaSource:
    """The text of a program of one lane. Raises UnsupportedError for operations that it lacks."""
    return _Program(graph, symbol).run()


class _Program:
    """Writes one kernel."""

    def __init__(self, graph: Graph, symbol: str) -> None:
        self.graph, self.symbol = graph, symbol
        self.text = CText()
        self.values: dict[Value, Any] = {}
        self.pointers: list[str] = []
        self.strides: list[tuple[int, int]] = []
        self.sizes: dict[str, str] = {}
        self.blocks: list[str] = []

    def run(self) -> CudaSource:
        parameters = self._parameters()
        self._position()
        with self.text.block("if (item < items)"):
            self._region(self.graph.body)
        head = f"TW_KERNEL({self.symbol}, {THREADS}, 1)({', '.join(parameters)}) {{"
        lines = ['#include "tilewright_ordered.h"', "", head, *self.text.lines, "}", ""]
        return CudaSource(
            "\n".join(lines),
            self.symbol,
            THREADS,
            0,
            tuple(self.pointers),
            tuple(self.strides),
            tuple(self.sizes),
        )

    def _parameters(self) -> list[str]:
        """Pointers, then numbers."""
        made = parameters(self.graph, self.text)
        self.pointers, self.strides, self.sizes = made.pointers, made.strides, made.sizes
        for name, (param, steps) in zip(made.pointers, made.steps.items(), strict=True):
            assert isinstance(param.type, BufferType)
            self.values[param] = Memory(name, steps, param.type.dtype, True)
        pointers, numbers = made.declared
        return [*pointers, *numbers]

    def _position(self) -> None:
        """The thread's item on the grid; the last dimension runs fastest."""
        bind = self._bind
        counts = []
        for size, tile in self.graph.attrs["grid"]:
            whole = self._size(Size.of(size))
            count = whole if tile == 1 else f"({whole} + {int(tile) - 1}) / {int(tile)}"
            counts.append(bind("long long", "count", count))
        self.text.line(f"const long long items = {' * '.join(counts) or '1'};")
        here = f"static_cast<long long>(tw::block()) * {THREADS} + tw::thread()"
        self.text.line(f"const long long item = {here};")
        rest = "item"
        for count in reversed(counts):
            self.blocks.append(bind("long long", "at", f"{rest} % {count}"))
            rest = bind("long long", "rest", f"{rest} / {count}")
        self.blocks.reverse()

    def _size(self, size: Size) -> str:
        return f"({size_text(size, self.sizes)})"

    # ---- operations

    def _bind(self, kind: str, hint: str, text: str) -> str:
        name = self.text.name(hint)
        self.text.line(f"const {kind} {name} = {text};")
        return name

    def _region(self, region: Region) -> None:
        for op in region.ops:
            handler: Callable[[Any], Any] | None = getattr(
                self, "_" + op.name.replace(".", "_"), None
            )
            if handler is not None:
                handler(op)
            elif "pointwise" not in op.traits:
                raise UnsupportedError(f"{op.name} in a fixed order in the cuda back end", op.loc)
            elif isinstance(op.result.type, IndexType):
                inputs = [self.values[v] for v in op.operands]
                self.values[op.result] = self._bind(
                    "long long", op.result.hint, expression(op, inputs)
                )
            else:
                self._pointwise(op)

    def _pointwise(self, op: Op) -> None:
        if any(isinstance(v.type, IndexType) for v in op.operands):
            found = {i: self.values[op.operands[0]] for i in indices(op.result)}
            inputs = [Tile(shape(op.result), found)]
        else:
            inputs = [self.values[v] for v in op.operands]
        made = {i: expression(op, [x.at(i) for x in inputs]) for i in indices(op.result)}
        self._keep(op.result, made)

    def _keep(self, value: Value, elements: dict[Index, str]) -> None:
        """Variables for a tile's elements."""
        kind = scalar_type(dtype_of(value.type))
        named = {i: self._bind(kind, value.hint, text) for i, text in elements.items()}
        self.values[value] = Tile(shape(value), named)

    def _alias(self, value: Value, elements: dict[Index, str]) -> None:
        self.values[value] = Tile(shape(value), elements)

    def _math_const(self, op: m.Const) -> None:
        if isinstance(op.type, IndexType):
            self.values[op.result] = f"{int(op.value)}LL"
            return
        text = literal(op.value, dtype_of(op.type))
        self._alias(op.result, dict.fromkeys(indices(op.result), text))

    def _tile_block(self, op: t.BlockId) -> None:
        self.values[op.result] = self.blocks[op.dim]

    def _tile_size(self, op: t.SizeOf) -> None:
        self.values[op.result] = self._bind("long long", op.result.hint, self._size(op.size))

    def _tile_stride(self, op: t.StrideOf) -> None:
        self.values[op.result] = self.values[op.buffer].strides[op.dim]

    def _tile_less(self, op: t.Less) -> None:
        lhs, rhs = (self.values[v] for v in op.operands)
        self.values[op.result] = self._bind("long long", "less", f"{lhs} < {rhs} ? 1 : 0")

    def _tile_splat(self, op: t.Splat) -> None:
        self._alias(op.result, dict.fromkeys(indices(op.result), self.values[op.x]))

    def _tile_coordinate(self, op: t.Coordinate) -> None:
        self._alias(op.result, {i: f"{i[op.dim]}LL" for i in indices(op.result)})

    def _tile_prefetch(self, op: t.Prefetch) -> None:
        """Of no effect on values."""

    # ---- memory

    def _tile_alloc(self, op: t.Alloc) -> None:
        assert isinstance(op.type, ScratchType)
        name, inner, steps = self.text.name(op.result.hint or "own"), 1, list[str]()
        for size in reversed(op.type.shape):
            steps.append(str(inner))
            inner *= size
        self.text.line(f"{scalar_type(op.type.dtype)} {name}[{inner}];")
        self.values[op.result] = Memory(name, tuple(reversed(steps)), op.type.dtype, False)

    def _access(self, op: t.Load | t.Store, memory: Value, tile: Value) -> dict[Index, list[str]]:
        """Of every element its offset, and under which condition it is there."""
        place: Memory = self.values[memory]
        names = [self.values[v] for v in op.rest]
        rank = len(place.strides)
        limits = {d: (kind, names[rank + i]) for i, (d, kind) in enumerate(op.bounds)}
        found: dict[Index, list[str]] = {}
        for index in indices(tile):
            terms, inside = [], []
            for start, stride, dim in zip(names[:rank], place.strides, op.dims, strict=True):
                at = start if dim < 0 or not index[dim] else f"({start} + {index[dim]})"
                kind, limit = limits.get(dim, ("", "")) if dim >= 0 else ("", "")
                if kind == "clamp":
                    last = f"tw::larger(0LL, static_cast<long long>({limit}) - 1)"
                    at = f"tw::smaller(static_cast<long long>({at}), {last})"
                elif kind:
                    inside.append(f"{at} < {limit}")
                terms.append(times(at, stride))
            found[index] = [added(terms), " && ".join(inside)]
        return found

    def _tile_load(self, op: t.Load) -> None:
        place: Memory = self.values[op.source]
        zero, made = literal(0, place.dtype), {}
        for index, (at, inside) in self._access(op, op.source, op.result).items():
            value = place.read(at)
            made[index] = f"{inside} ? {value} : {zero}" if inside else value
        self._keep(op.result, made)

    def _tile_store(self, op: t.Store) -> None:
        place, value = self.values[op.target], self.values[op.value]
        for index, (at, inside) in self._access(op, op.target, op.value).items():
            guard = f"if ({inside}) " if inside else ""
            self.text.line(guard + place.write(at, value.at(index)))

    def _tile_gather(self, op: t.Gather) -> None:
        place, offset, offsets = (self.values[v] for v in op.operands)
        made = {i: place.read(f"{offset} + {offsets.at(i)}") for i in indices(op.result)}
        self._keep(op.result, made)

    def _tile_read(self, op: t.Read) -> None:
        place: Memory = self.values[op.source]
        terms = [times(self.values[v], s) for v, s in zip(op.at, place.strides, strict=True)]
        self.values[op.result] = self._bind("long long", "read", place.read(added(terms)))

    # ---- elements of several tiles

    def _tile_dot(self, op: t.Dot) -> None:
        acc, a, b = (self.values[v] for v in op.operands)
        if not op.fused:
            raise UnsupportedError(f"{op.name} of other than f32 in a fixed order", op.loc)
        fused = "tw::ordered::fused({}, {}, {})"
        found: dict[Index, str] = {
            (row, column): fused.format(a.at((row, 0, 0)), b.at((0, column, 0)), text)
            for (row, column), text in acc.elements.items()
        }
        self._keep(op.result, found)

    def _tile_reduce(self, op: t.Reduce) -> None:
        x: Tile = self.values[op.x]
        groups: dict[Index, list[str]] = {}
        for index, name in sorted(x.elements.items()):
            kept = tuple(0 if d == op.dim else i for d, i in enumerate(index))
            groups.setdefault(kept, []).append(name)
        if not op.halves and any(len(names) > 1 for names in groups.values()):
            raise UnsupportedError(f"{op.name} of {op.x.type} in any order", op.loc)
        cls = {"sum": m.Add, "max": m.Larger, "min": m.Smaller}[op.kind]
        kind = scalar_type(dtype_of(op.x.type))
        found = {}
        for index, names in groups.items():
            left = names
            while len(left) > 1:
                half = len(left) // 2
                pairs = zip(left[:half], left[half:], strict=True)
                like = cls(op.result, op.result)
                left = [self._bind(kind, op.kind, expression(like, pair)) for pair in pairs]
            found[index] = left[0]
        self._alias(op.result, found)

    def _tile_stack(self, op: t.Stack) -> None:
        parts = [self.values[v] for v in op.parts]
        self._alias(op.result, {i: parts[i[0]].at((0, *i[1:])) for i in indices(op.result)})

    def _tile_take(self, op: t.Take) -> None:
        x = self.values[op.x]
        self._alias(op.result, {i: x.at((op.at, *i[1:])) for i in indices(op.result)})

    def _tile_transpose(self, op: t.Transpose) -> None:
        x = self.values[op.x]
        self._alias(op.result, {i: x.at(i[::-1]) for i in indices(op.result)})

    def _tile_view(self, op: View) -> None:
        forms = {("f32", "i32"): "static_cast<int>(tw::float_to_bits({}))"}
        forms["i32", "f32"] = "tw::bits_to_float(static_cast<uint32_t>({}))"
        source = dtype_of(op.x.type)
        form = forms.get((source.name, op.dtype.name))
        if form is None:
            raise UnsupportedError(f"{source} seen as {op.dtype} in a fixed order", op.loc)
        x: Tile = self.values[op.x]
        self._keep(op.result, {i: form.format(x.at(i)) for i in indices(op.result)})

    # ---- control flow

    def _tile_for(self, op: t.For) -> None:
        region = op.regions[0]
        counter, *params = region.params
        self._carried(op.inits, params, op.results)
        name = self.values[counter] = self.text.name(counter.hint)
        lo, hi = (self.values[v] for v in op.operands[:2])
        head = f"for (long long {name} = {lo}; {name} < {hi}; {name} += {op.step})"
        with self.text.block(head):
            self._region(region)
            self._next(params, region.yields)

    def _tile_while(self, op: t.While) -> None:
        region, go = op.regions[0], self.text.name("go")
        self.text.line(f"long long {go} = {self.values[op.go]};")
        self._carried(op.inits, region.params, op.results)
        with self.text.block(f"while ({go} > 0)"):
            self._region(region)
            self.text.line(f"{go} = {self.values[region.yields[0]]};")
            self._next(region.params, region.yields[1:])

    def _tile_if(self, op: t.If) -> None:
        with self.text.block(f"if ({self.values[op.lo]} < {self.values[op.hi]})"):
            self._region(op.regions[0])

    def _carried(
        self, inits: Iterable[Value], params: Iterable[Value], results: Iterable[Value]
    ) -> None:
        """Variables for what a loop carries, with their first values; its results are those."""
        for init, param, result in zip(inits, params, results, strict=True):
            kind, given = scalar_type(dtype_of(param.type)), self.values[init]
            if isinstance(param.type, IndexType):
                name = self.text.name(param.hint)
                self.text.line(f"{kind} {name} = {given};")
                self.values[param] = self.values[result] = name
                continue
            named = {i: self.text.name(param.hint) for i in indices(param)}
            for index, name in named.items():
                self.text.line(f"{kind} {name} = {given.at(index)};")
            self.values[param] = self.values[result] = Tile(shape(param), named)

    def _next(self, params: Iterable[Value], yields: Iterable[Value]) -> None:
        """What a loop carries on: all read before one is written."""
        moves: list[tuple[str, str, str]] = []
        for param, value in zip(params, yields, strict=True):
            kind, to, given = (
                scalar_type(dtype_of(param.type)),
                self.values[param],
                self.values[value],
            )
            if isinstance(param.type, IndexType):
                moves.append((kind, to, given))
                continue
            moves += [(kind, name, given.at(i)) for i, name in to.elements.items()]
        moves = [x for x in moves if x[1] != x[2]]
        targets = {to for _, to, _ in moves}
        read = [
            (to, self._bind(kind, "next", given) if given in targets else given)
            for kind, to, given in moves
        ]
        for to, given in read:
            self.text.line(f"{to} = {given};")
