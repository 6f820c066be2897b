"""A tile program as Python text: control flow, arguments, and each operation through its emitter.

The function takes ``lo, hi``, the sizes, and for every buffer a flat array and its strides in
elements; it works through the items lo <= item < hi of the grid (the last dimension fastest). A
dimension that the program knows to have stride one is indexed so, whatever stride is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tilewright.backends.float_mode import has_mxcsr
from tilewright.backends.numba.bits import BitEmitter
from tilewright.backends.numba.chains import ChainEmitter, is_chained, reads
from tilewright.backends.numba.functions import Functions
from tilewright.backends.numba.lanes import Elements, LaneEmitter
from tilewright.backends.numba.loops import LoopEmitter
from tilewright.backends.numba.memory import Access, Limit, MemoryEmitter, MemoryRef
from tilewright.backends.numba.pointwise import dtype_of, expression
from tilewright.backends.numba.registers import (
    Tile,
    check_lanes,
    indices,
    literal,
    memory_dtype,
    memory_name,
    numpy_name,
    tile_of,
)
from tilewright.backends.numba.text import Index, PythonText, is_atom, product, total
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import Lookup, LookupBytes, LookupHalves, View
from tilewright.ir.ops_tile_memory import refuse_gpu_ops
from tilewright.ir.rounding import has_fixed_order
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, IndexType, ScratchType

TYPES = ("f64", "f32", "i64", "i32", "i16", "i8", "u16", "u8")
FROM_MATH = ("erf", "inf", "nan")
NUMERICS = (
    "bf16_to_f32",
    "bits_f32",
    "bits_f64",
    "f16_to_f32",
    "f32_to_bf16",
    "f32_to_f16",
    "f32_bits",
    "f64_bits",
    "first_larger",
    "first_smaller",
    "floor_div",
    "floor_mod",
    "fraction_down",
    "fraction_f32",
    "fraction_f64",
    "fused",
    "ieee_mode",
    "largest_number",
    "maximum",
    "mode_before",
    "minimum",
    "narrowed",
    "round_bf16",
    "round_f16",
    "scale2_f32",
    "scale2_f64",
    "shift_right_i64",
    "smallest_number",
    "truncated",
)
RESERVED = ("np", "jit", "lo", "hi", "item", "mode", *TYPES, *FROM_MATH, *NUMERICS)


def emit_source(graph: Graph, symbol: str) -> str:
    """Text of a Python module with the function ``symbol``.

    Raises UnsupportedError for an operation or dtype that this back end lacks, and for a program
    that is not of one lane.
    """
    assert symbol.isidentifier() and symbol not in RESERVED, f"{symbol!r} cannot name a function"
    refuse_gpu_ops(graph, "numba")
    return _Program(graph, symbol).run()


class _Program:
    """Writes one function."""

    def __init__(self, graph: Graph, symbol: str) -> None:
        self.graph, self.symbol = graph, symbol
        self.text = PythonText((*RESERVED, symbol))
        self.values: dict[Value, Any] = {}
        self.functions = Functions(self.text)
        self.memory = MemoryEmitter(self.text)
        self.lanes = LaneEmitter(self.functions)
        self.bits = BitEmitter(self.functions)
        used = graph.users()
        self.chains = ChainEmitter(self.text, self.functions, self, used)
        self.loops = LoopEmitter(self.text, self.values, used, self._region)
        self.sizes: dict[str, str] = {}
        self.blocks: list[str] = []

    def run(self) -> str:
        text = self.text
        parameters = self._parameters()
        text.depth = 1
        self._allocate()
        extents = self._extents()
        fixed = has_fixed_order(self.graph) and has_mxcsr()
        if fixed:
            text.line("mode = ieee_mode()")
        with text.block("for item in range(lo, hi)"):
            self._position(extents)
            self._region(self.graph.body)
        if fixed:
            text.line("mode_before(mode)")
        head = ["@jit", f"def {self.symbol}(", *(f"    {line}," for line in parameters), "):"]
        body = "\n".join([*self.functions.source, *head, *text.lines])
        return f"{self._head(body)}\n\n\n{body}\n"

    def _head(self, body: str) -> str:
        """The docstring and the imports that the text needs."""
        words = set(re.findall(r"[A-Za-z_]\w*", body))
        types = ", ".join(f"{numpy_name(n)} as {n}" for n in TYPES if n in words)
        constants = ", ".join(n for n in FROM_MATH if n in words)
        numerics = ", ".join(n for n in NUMERICS if n in words)
        grid = ", ".join(f"{size}/{tile}" for size, tile in self.graph.attrs["grid"])
        lines = [
            f'"""{self.graph.name}: items lo <= item < hi of the grid [{grid}]."""',
            "",
            f"from math import {constants}" if constants else "",
            "import numpy as np" if "np" in words else "",
            f"from numpy import {types}" if types else "",
            "from tilewright.backends.numba.build import jit",
            f"from tilewright.backends.numba.numerics import {numerics}" if numerics else "",
        ]
        return "\n".join([*lines[:2], *filter(None, lines[2:])])

    # ---- arguments, scratch, the grid

    def _parameters(self) -> list[str]:
        lines = ["lo, hi"]
        self.sizes = {name: self.text.name(name) for name in self.graph.sizes}
        if self.sizes:
            lines.append(", ".join(self.sizes.values()))
        for param in self.graph.params:
            type_ = param.type
            assert isinstance(type_, BufferType)
            memory_dtype(type_.dtype)
            array = self.text.name(param.hint)
            dims = [(d,) for d in range(len(type_.shape))]
            strides = list(self.text.names(f"{array}_stride", dims).values()) if dims else []
            known = ["1" if d == type_.unit else s for d, s in enumerate(strides)]
            self.values[param] = MemoryRef(array, tuple(known), type_.dtype)
            lines.append(", ".join([array, *strides]))
        return lines

    def _allocate(self) -> None:
        """Scratch of the whole program, once per call: every item writes it before it reads."""
        for op in self.graph.body.walk():
            if not isinstance(op, t.Alloc):
                continue
            assert isinstance(op.type, ScratchType)
            memory_dtype(op.type.dtype)
            name, strides, inner = self.text.name(op.result.hint), [], 1
            for size in reversed(op.type.shape):
                strides.append(str(inner))
                inner *= size
            self.text.line(f"{name} = np.empty({inner}, {memory_name(op.type.dtype)})")
            self.values[op.result] = MemoryRef(name, tuple(reversed(strides)), op.type.dtype)

    def _extents(self) -> list[str]:
        """How many items each dimension of the grid has."""
        extents = []
        for size, tile in self.graph.attrs["grid"]:
            known = self._size(Size.of(size))
            counted = known if tile == 1 else f"({total([known, str(tile - 1)])}) // {tile}"
            extents.append(self.text.bind("extent", counted))
        return extents

    def _position(self, extents: list[str]) -> None:
        """The item's position on the grid, the last dimension fastest."""
        used = {op.dim for op in self.graph.body.walk() if isinstance(op, t.BlockId)}
        self.blocks = []
        for dim in range(len(extents)):
            inner = extents[dim + 1 :]
            here = f"item // ({' * '.join(inner)})" if inner else "item"
            if dim:
                here += f" % {extents[dim]}"
            self.blocks.append(self.text.bind("block", here) if dim in used else "")

    def _size(self, size: Size) -> str:
        terms = []
        for monomial, coefficient in size.terms:
            factors = [self.sizes[name] for name in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            terms.append(" * ".join(factors))
        return self.text.bind("size", total(terms))

    # ---- operations

    def _region(self, region: Region) -> None:
        for op in region.ops:
            for value in (*op.operands, *op.results):
                check_lanes(op, value)
            if is_chained(op):
                self.chains.add(op)
            else:
                self.chains.write(reads(op))
                self._op(op)
        self.chains.write(region.yields)

    def _op(self, op: Op) -> None:
        handler: Callable[[Any], Any] | None = getattr(self, "_" + op.name.replace(".", "_"), None)
        if handler is not None:
            result = handler(op)
        elif "pointwise" in op.traits and isinstance(op.result.type, IndexType):
            inputs = [self.values[v] for v in op.operands]
            result = self.text.bind(op.result.hint, expression(op, inputs))
        else:
            raise UnsupportedError(f"{op.name} in the numba back end", op.loc)
        if len(op.results) == 1 and result is not None:
            self.keep(op.result, result)

    def tile(self, value: Value) -> Tile:
        """What stands for a register tile."""
        held = self.values[value]
        assert isinstance(held, Tile), f"{value} is not a tile"
        return held

    def keep(self, value: Value, held: Any) -> None:
        """Says what stands for a value."""
        self.values[value] = held

    def names(self, value: Value) -> dict[Index, str]:
        """Names for a result's elements: new ones, or the loop variable's that it becomes."""
        return self.loops.chosen.get(value) or self.text.names(value.hint, indices(value.type))

    def assigned(self, value: Value, elements: dict[Index, str]) -> Tile:
        """A tile whose elements are given by expressions, written unless they are atoms."""
        shape = tile_of(value.type).shape
        if value not in self.loops.chosen and all(map(is_atom, elements.values())):
            return Tile(shape, elements)
        names = self.names(value)
        for index, name in names.items():
            self.text.line(f"{name} = {elements[index]}")
        return Tile(shape, names)

    def _math_const(self, op: m.Const) -> Any:
        if isinstance(op.type, IndexType):
            return str(int(op.value))
        text = literal(op.value, dtype_of(op.type))
        return Tile(tile_of(op.type).shape, dict.fromkeys(indices(op.type), text))

    def _math_cast(self, op: m.Cast) -> Tile:
        """A cast of an index, which gives a tile of one element."""
        text = expression(op, [self.values[op.x]])
        return self.assigned(op.result, {(0, 0): text})

    def _tile_block(self, op: t.BlockId) -> str:
        return self.blocks[op.dim]

    def _tile_size(self, op: t.SizeOf) -> str:
        return self._size(op.size)

    def _tile_stride(self, op: t.StrideOf) -> str:
        memory: MemoryRef = self.values[op.buffer]
        return memory.strides[op.dim]

    def _tile_alloc(self, op: t.Alloc) -> None:
        """Done at the top of the function."""

    def _access(self, op: t.Load | t.Store, memory: Value) -> Access:
        held: MemoryRef = self.values[memory]
        names = [self.values[v] for v in op.rest]
        rank = len(held.strides)
        limits = {d: Limit(k, names[rank + i]) for i, (d, k) in enumerate(op.bounds)}
        return Access(held, tuple(names[:rank]), op.dims, limits)

    def _tile_load(self, op: t.Load) -> Tile:
        hint = op.result.hint
        return self.memory.load(self._access(op, op.source), tile_of(op.result.type), hint)

    def _tile_store(self, op: t.Store) -> None:
        self.memory.store(self._access(op, op.target), self.tile(op.value))

    def _tile_gather(self, op: t.Gather) -> Tile:
        source, offset, offsets = (self.values[v] for v in op.operands)
        type_ = tile_of(op.result.type)
        return self.memory.gather(source, offset, offsets, type_, op.result.hint)

    def _tile_read(self, op: t.Read) -> str:
        held: MemoryRef = self.values[op.source]
        at = [self.values[v] for v in op.at]
        parts = [product(here, stride) for here, stride in zip(at, held.strides, strict=True)]
        name = self.text.name(op.result.hint)
        self.text.line(f"{name} = i64({held.read(total(parts))})")
        return name

    def _tile_less(self, op: t.Less) -> str:
        name = self.text.name(op.result.hint)
        self.text.line(f"{name} = i64({self.values[op.lhs]} < {self.values[op.rhs]})")
        return name

    def _tile_prefetch(self, op: t.Prefetch) -> None:
        """A hint to the processor, which Python has no word for: values are the same without."""

    def _tile_coordinate(self, op: t.Coordinate) -> Tile:
        found = {index: str(index[op.dim]) for index in indices(op.result.type)}
        return Tile(tile_of(op.result.type).shape, found)

    def _tile_splat(self, op: t.Splat) -> Tile:
        return Tile((1,) * op.rank, {(0,) * op.rank: self.values[op.x]})

    def _elements(self, op: Op, write: Callable[..., Elements], *given: object) -> Tile:
        return self.assigned(op.result, write(op, *given))

    def _tile_dot(self, op: t.Dot) -> Tile:
        return self._elements(op, self.lanes.dot, *map(self.tile, op.operands))

    def _tile_reduce(self, op: t.Reduce) -> Tile:
        return self._elements(op, self.lanes.reduce, self.tile(op.x))

    def _tile_stack(self, op: t.Stack) -> Tile:
        return self._elements(op, self.lanes.stack, [self.tile(v) for v in op.parts])

    def _tile_take(self, op: t.Take) -> Tile:
        return self._elements(op, self.lanes.take, self.tile(op.x))

    def _tile_transpose(self, op: t.Transpose) -> Tile:
        return self._elements(op, self.lanes.transpose, self.tile(op.x))

    def _tile_reduce_to_lanes(self, op: t.ReduceToLanes) -> Tile:
        return self._elements(op, self.lanes.reduce_to_lanes, self.tile(op.x))

    def _tile_pack_pairs(self, op: t.PackPairs) -> Tile:
        return self._elements(op, self.lanes.pack_pairs, self.tile(op.x))

    def _tile_split_pairs(self, op: t.SplitPairs) -> Tile:
        return self._elements(op, self.lanes.split_pairs, self.tile(op.x))

    def _tile_pair_dot(self, op: t.PairDot) -> Tile:
        return self._elements(op, self.lanes.pair_dot, *map(self.tile, op.operands))

    def _tile_rearrange(self, op: t.Rearrange) -> Tile:
        return self._elements(op, self.lanes.rearrange, self.tile(op.x))

    def _tile_view(self, op: View) -> Tile:
        return self._elements(op, self.bits.view, self.tile(op.x))

    def _tile_lookup(self, op: Lookup) -> Tile:
        return self._elements(op, self.bits.lookup, self.tile(op.index))

    def _tile_lookup_bytes(self, op: LookupBytes) -> Tile:
        return self._elements(op, self.bits.lookup_bytes, self.tile(op.index))

    def _tile_lookup_halves(self, op: LookupHalves) -> Tile:
        return self._elements(op, self.bits.lookup_halves, self.tile(op.index))

    # ---- control flow

    def _tile_for(self, op: t.For) -> None:
        self.loops.write(op)

    def _tile_while(self, op: t.While) -> None:
        self.loops.write_while(op)

    def _tile_if(self, op: t.If) -> None:
        with self.text.block(f"if {self.values[op.lo]} < {self.values[op.hi]}"):
            self._region(op.regions[0])
