"""Loads and stores of tiles in Triton: pointers and masks, or blocks for the bulk copy engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.backends.numba.text import PythonText
from tilewright.backends.triton.pointwise import dtype_name, literal
from tilewright.backends.triton.words import VIEWS, atom, is_literal, left, product, view
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import BOOL, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import BufferType, RegisterType


@dataclass(frozen=True)
class Memory:
    """A buffer: its pointer, and a stride for every dimension (a name or "1")."""

    pointer: str
    strides: tuple[str, ...]


class MemoryOps:
    """What of a program's writer concerns memory; ``emit.py`` has the rest."""

    graph: Graph
    text: PythonText
    bulk: bool
    values: dict[Value, Any]
    made: dict[Value, Op]
    ranges: dict[int, str]
    pointers: list[str]
    descriptors: dict[tuple[int, tuple[int, ...]], str]

    def fixed(self, name: str) -> str:
        """A name as it is, number and all, or one like it if it is taken."""
        if name.isidentifier() and name not in self.text.taken:
            self.text.taken.add(name)
            return name
        return self.text.reserve(name)

    def full(self, shape: tuple[int, ...], value: float, text: str, dtype: str) -> str:
        """A tile of one number."""
        if value == 0:
            return f"tl.zeros({shape}, {dtype})"
        return f"tl.full({shape}, {text}, {dtype})"

    def _address(self, op: t.Load | t.Store, memory: Value, tile: RegisterType) -> tuple[str, str]:
        """The pointers of a tile, and the mask of those within its limits ("": all)."""
        held: Memory = self.values[memory]
        rank = len(held.strides)
        at = [self.values[v] for v in op.rest]
        along, start, masks = [], [], []
        limits = {d: at[rank + i] for i, (d, _) in enumerate(op.bounds)}
        for index, stride, dim in zip(at[:rank], held.strides, op.dims, strict=True):
            if index != "0":
                start.append(product(index, stride))
            if dim < 0:
                continue
            size = tile.shape[dim]
            here = f"{self.ranges[size]}{view(dim, len(tile.shape))}" if size > 1 else "0"
            if size > 1:
                along.append(product(here, stride))
            if dim in limits:
                here = here if size > 1 or tile.shape == (1, 1) else "tl.zeros((1, 1), tl.int32)"
                masks.append(f"({here} < {left(limits[dim], index)})")
        base = f"({' + '.join(start)})" if start else ""
        if max(tile.shape) == 1 and isinstance(op, t.Store):
            along.append(f"tl.zeros({tile.shape}, tl.int32)")
        pointers = " + ".join([held.pointer, *([base] if base else []), *along])
        return pointers, " & ".join(masks)

    def _tile_load(self, op: t.Load) -> str:
        assert isinstance(op.result.type, RegisterType)
        if self.bulk and self.text.depth > 1 and self._is_block(op):
            return self._block(op)
        pointers, mask = self._address(op, op.source, op.result.type)
        if any(kind == "clamp" for _, kind in op.bounds):
            raise UnsupportedError("a clamped load in the triton back end", op.loc)
        other = literal(0, op.result.type.dtype) if op.result.type.dtype != BOOL else "0"
        read = (
            f"tl.load({pointers}, mask={mask}, other={other})" if mask else f"tl.load({pointers})"
        )
        return truth(read, op.result.type.dtype)

    def _is_block(self, op: t.Load) -> bool:
        """True for a matrix of memory's last dimension and another, cut by memory's ends only."""
        type_ = op.source.type
        assert isinstance(type_, BufferType)
        last = len(type_.shape) - 1
        known = sorted(d for d in op.dims if d >= 0) == [0, 1] and op.dims[last] >= 0
        if not known or type_.unit != last or last > 4 or min(op.layout.shape) < 16:
            return False
        for limit, (dim, _) in zip(op.rest[last + 1 :], op.bounds, strict=True):
            made, size = self.made.get(limit), type_.shape[op.dims.index(dim)]
            if isinstance(made, m.Const) and size.constant == made.value:
                continue
            if not isinstance(made, t.SizeOf) or made.size != size:
                return False
        return max(op.layout.shape) <= 256

    def _block(self, op: t.Load) -> str:
        """A block read by the bulk copy engine: zero past memory's ends."""
        number = self.graph.params.index(op.source)
        shape = tuple(op.layout.shape[d] if d >= 0 else 1 for d in op.dims)
        key = number, shape
        if key not in self.descriptors:
            self.descriptors[key] = self.fixed(f"{self.pointers[number]}_blocks")
        at = [self.values[v] for v in op.rest[: len(shape)]]
        at = [x if x.isdigit() else f"tl.cast({x}, tl.int32)" for x in at]
        sizes = [n for n, d in zip(shape, op.dims, strict=True) if d >= 0]
        turned = ".T" if next(d for d in op.dims if d >= 0) == 1 else ""
        name = self.descriptors[key]
        assert isinstance(op.source.type, BufferType)
        read = f"{name}.load([{', '.join(at)}]).reshape({sizes[0]}, {sizes[1]}){turned}"
        return truth(read, op.source.type.dtype)

    def _tile_store(self, op: t.Store) -> None:
        assert isinstance(op.value.type, RegisterType)
        pointers, mask = self._address(op, op.target, op.value.type)
        more = f", mask={mask}" if mask else ""
        value = self.values[op.value]
        if is_literal(value):
            value = self.full(op.value.type.shape, 1, value, dtype_name(op.value.type.dtype))
        self.text.line(f"tl.store({pointers}, {value}{more})")

    def _tile_gather(self, op: t.Gather) -> str:
        source, offset, offsets = (self.values[v] for v in op.operands)
        first = "" if offset == "0" else f" + {atom(offset)}"
        read = f"tl.load({source.pointer}{first} + {atom(offsets)})"
        return truth(read, getattr(op.result.type, "dtype", I64))

    def _tile_load_rows(self, op: t.LoadRows) -> str:
        assert isinstance(op.result.type, RegisterType)
        held: Memory = self.values[op.source]
        rows, start, *limit = (self.values[v] for v in op.operands[1:])
        dim = 1 - op.dim
        along = f"{self.ranges[op.layout.shape[dim]]}{VIEWS[dim]}"
        first = "" if start == "0" else f" + {product(start, held.strides[1])}"
        pointers = f"{held.pointer} + {product(rows, held.strides[0])}{first}"
        pointers += f" + {product(along, held.strides[1])}"
        if not limit:
            return f"tl.load({pointers})"
        other = literal(0, op.result.type.dtype)
        return f"tl.load({pointers}, mask={along} < {left(limit[0], start)}, other={other})"

    def _tile_scatter(self, op: t.Scatter) -> None:
        value, target, offset, offsets, inside = (self.values[v] for v in op.operands)
        assert isinstance(op.value.type, RegisterType)
        if is_literal(value):
            value = self.full(op.value.type.shape, 1, value, dtype_name(op.value.type.dtype))
        first = "" if offset == "0" else f" + {atom(offset)}"
        pointers = f"{target.pointer}{first} + {atom(offsets)}"
        self.text.line(f"tl.store({pointers}, {value}, mask={inside})")

    def _tile_last_of(self, op: t.LastOf) -> str:
        """Whoever comes adds 1. Before it, all threads' stores are over (the barrier), and made
        known to the whole GPU (release); the last one sees those of the others (acquire)."""
        place = self.text.bind("counter", self._element(op.counters, op.at))
        self.text.line("tl.debug_barrier()")
        came = f'tl.atomic_add({place}, 1, sem="acq_rel", scope="gpu")'
        last = self.text.bind("last", f"{came} == {op.count - 1}")
        self.text.line(f"tl.store({place}, 0, mask={last})")
        return f"{last}.to(tl.int64)"

    def _tile_barrier(self, op: Op) -> None:
        self.text.line("tl.debug_barrier()")

    def _tile_read(self, op: t.Read) -> str:
        return f"tl.load({self._element(op.source, op.at)}).to(tl.int64)"

    def _element(self, memory: Value, at: Sequence[Value]) -> str:
        """The pointer of one element."""
        held: Memory = self.values[memory]
        each = zip((self.values[v] for v in at), held.strides, strict=True)
        return " + ".join([held.pointer, *(product(i, s) for i, s in each if i != "0")])


def truth(read: str, dtype: DType) -> str:
    """What was read of memory: truth values lie there as bytes, which kernels get as such, since
    neither the bulk copy engine nor shared memory has single bits."""
    return f"({read} != 0)" if dtype == BOOL else read
