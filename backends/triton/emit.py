"""A tile program on whole blocks as the text of a Python module with one Triton kernel.

The kernel takes a pointer for every buffer (inputs, then outputs), the strides that are not known
to be one, and the sizes; its grid has one dimension, of which the program's last runs fastest.
Strides and sizes are run-time values: another length compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewright.backends.numba.text import PythonText, is_atom
from tilewright.backends.triton.blocks import BlockOps
from tilewright.backends.triton.halves import HalfOps
from tilewright.backends.triton.memory import Memory, MemoryOps
from tilewright.backends.triton.pointwise import (
    HELPERS,
    dtype_name,
    dtype_of,
    expression,
    literal,
)
from tilewright.backends.triton.words import atom, is_literal, view
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BF16, BOOL, F32, I32, I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, IndexType, RegisterType

RESERVED = ("tl", "triton", "pid", *HELPERS)


@dataclass(frozen=True)
class TritonSource:
    """A module's text and how to call its kernel: after the pointers come descriptors for bulk
    copies (``blocks``, of a buffer: the shape of a block), ``strides`` as (buffer, dimension), then
    the sizes."""

    text: str
    symbol: str
    pointers: tuple[str, ...]
    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    strides: tuple[tuple[int, int], ...]
    sizes: tuple[str, ...]


def emit_source(
    graph: Graph, symbol: str, wide_products: bool = False, bulk: bool = False
) -> TritonSource:
    """The module of a tile program; ``bulk``: loops read blocks by the bulk copy engine, for
    buffers that start, and have strides, at multiples of 16 bytes.

    ``wide_products`` computes with 16-bit floats in f32: the same numbers, for Triton's
    interpreter, whose bf16 arithmetic is wrong. Raises UnsupportedError for operations that it
    lacks.
    """
    return _Program(graph, symbol, wide_products, bulk).run()


class _Program(MemoryOps, BlockOps, HalfOps):
    """Writes one kernel."""

    def __init__(self, graph: Graph, symbol: str, wide_products: bool, bulk: bool) -> None:
        self.graph, self.symbol, self.wide, self.bulk = graph, symbol, wide_products, bulk
        self.descriptors: dict[tuple[int, tuple[int, ...]], str] = {}
        self.made = {v: op for op in graph.body.walk() for v in op.results}
        self.text = PythonText((*RESERVED, symbol))
        self.values: dict[Value, Any] = {}
        self.blocks: list[str] = []
        self.strides: list[tuple[int, int]] = []
        self.pointers: list[str] = []
        self.sizes: dict[str, str] = {}
        self.ranges: dict[int, str] = {}
        self.uses = _uses(graph.body)
        self.readers = _readers(graph.body)
        self.codes: dict[Value, list[str]] = {}

    def run(self) -> TritonSource:
        arguments = self._arguments()
        self.text.depth = 1
        self._position()
        for size in sorted({n for op in self.graph.body.walk() for n in _extents(op)}):
            name = self.ranges[size] = self.fixed(f"i_{size}")
            self.text.line(f"{name} = tl.arange(0, {size})")
        self._region(self.graph.body)
        body = "\n".join(self.text.lines)
        used = [code for name, code in HELPERS.items() if f"{name}(" in body]
        plain = ", ".join(f'"{n}"' for n in self.sizes.values())
        head = f"@triton.jit(do_not_specialize=[{plain}])\ndef {self.symbol}("
        lines = ["import triton", "import triton.language as tl", "", ""]
        lines += [code + "\n" for code in used]
        at = len(self.pointers)
        arguments[at:at] = self.descriptors.values()
        lines += [head + ", ".join(arguments) + "):", body, ""]
        return TritonSource(
            "\n".join(lines),
            self.symbol,
            tuple(self.pointers),
            tuple(self.descriptors),
            tuple(self.strides),
            tuple(self.sizes),
        )

    # ---- arguments and position

    def _arguments(self) -> list[str]:
        strides = []
        for number, param in enumerate(self.graph.params):
            type_ = param.type
            assert isinstance(type_, BufferType)
            dtype_name(type_.dtype)
            pointer = self.fixed(param.hint or "x")
            self.pointers.append(pointer)
            names = []
            for dim in range(len(type_.shape)):
                if dim == type_.unit:
                    names.append("1")
                    continue
                names.append(self.fixed(f"{pointer}_stride_{dim}"))
                strides.append(names[-1])
                self.strides.append((number, dim))
            self.values[param] = Memory(pointer, tuple(names))
        needed = {
            name: None for size, _ in self.graph.attrs["grid"] for name in Size.of(size).names
        }
        for name in (*self.graph.sizes, *needed):
            if name not in self.sizes:
                self.sizes[name] = self.fixed(name)
        return [*self.pointers, *strides, *self.sizes.values()]

    def _position(self) -> None:
        """The work item's position on the grid: 32-bit arithmetic, 64-bit positions."""
        grid = self.graph.attrs["grid"]
        used = {op.dim for op in self.graph.body.walk() if isinstance(op, t.BlockId)}
        rest = "tl.program_id(0)"
        self.blocks = [""] * len(grid)
        for dim in reversed(range(len(grid))):
            size, tile = Size.of(grid[dim][0]), grid[dim][1]
            if size.constant is not None and size.constant <= tile:
                self.blocks[dim] = "0"
                continue
            if any(self._needs(d) for d in range(dim)):
                rest = self.text.bind("item", rest)
            count = self._size(size)
            count = count if tile == 1 else self.text.bind("blocks", f"tl.cdiv({count}, {tile})")
            here = f"{rest} % {atom(count)}" if any(self._needs(d) for d in range(dim)) else rest
            if dim in used:
                self.blocks[dim] = self.text.bind("at", f"({here}).to(tl.int64)")
            rest = f"{rest} // {atom(count)}"

    def _needs(self, dim: int) -> bool:
        """True if a dimension of the grid may have more than one position."""
        size, tile = self.graph.attrs["grid"][dim]
        known = Size.of(size).constant
        return known is None or known > tile

    def _size(self, size: Size) -> str:
        """A size as text, in 64 bits where it is a product."""
        terms = []
        for monomial, coefficient in size.terms:
            factors = [self.sizes[name] for name in monomial]
            if len(factors) > 1:
                factors[0] = f"tl.cast({factors[0]}, tl.int64)"
            if coefficient != 1 or not factors:
                factors.append(str(coefficient))
            terms.append(" * ".join(factors))
        return " + ".join(terms) if terms else "0"

    # ---- operations

    def _region(self, region: Region) -> None:
        for op in region.ops:
            self._op(op)

    def _op(self, op: Op) -> None:
        handler: Callable[[Any], Any] | None = getattr(self, "_" + op.name.replace(".", "_"), None)
        if handler is not None:
            result = handler(op)
        elif "pointwise" in op.traits:
            result = self._pointwise(op)
        else:
            raise UnsupportedError(f"{op.name} in the triton back end", op.loc)
        if result is not None and len(op.results) == 1:
            self._keep(op.result, result)

    def _pointwise(self, op: Op) -> str:
        """An operation; of bf16 in f32 where the interpreter would get it wrong, which also takes
        denormals for zero."""
        inputs = [atom(self.values[v]) for v in op.operands]
        if not (self.wide and getattr(op.result.type, "dtype", None) == BF16):
            return expression(op, inputs)
        wide = [
            f"widened({x})" if _dtype(v) == BF16 and not is_literal(x.strip("()")) else x
            for x, v in zip(inputs, op.operands, strict=True)
        ]
        return f"({expression(op, wide)}).to(tl.bfloat16)"

    def _keep(self, value: Value, text: str) -> None:
        """A name for a value, unless it is an integer of the program that is read once."""
        inline = isinstance(value.type, IndexType) and self.uses.get(value, 0) == 1
        if (
            (inline and len(text) < 60 and "tl.load" not in text)
            or is_atom(text)
            or is_literal(text)
        ):
            self.values[value] = text
        else:
            self.values[value] = self.text.bind(value.hint, text)

    def _math_const(self, op: m.Const) -> str:
        if isinstance(op.type, IndexType):
            return str(int(op.value))
        assert isinstance(op.type, RegisterType)
        text = literal(op.value, op.type.dtype)
        if max(op.type.shape) == 1 and op.type.dtype != BOOL:
            return text
        return self.full(op.type.shape, op.value, text, dtype_name(op.type.dtype))

    def _math_cast(self, op: m.Cast) -> str:
        x = self.values[op.x]
        made = dtype_name(op.dtype)
        if is_literal(x):
            number = float(x) if "float(" not in x else float(x[7:-2])
            whole = float(int(number)) if op.dtype.is_int else number
            return literal(whole, op.dtype)
        if op.dtype == I32 and x.startswith("i_"):
            return str(x)  # a coordinate, which is i32 in Triton
        if op.dtype == BOOL:
            return f"{atom(x)} != 0"
        if max(_shape(op.x)) == 1:
            return f"tl.cast({x}, {made})"
        return f"{atom(x)}.to({made})"

    def _tile_block(self, op: t.BlockId) -> str:
        return self.blocks[op.dim]

    def _tile_size(self, op: t.SizeOf) -> str:
        return f"tl.cast({self._size(op.size)}, tl.int64)"

    def _tile_stride(self, op: t.StrideOf) -> str:
        memory: Memory = self.values[op.buffer]
        return memory.strides[op.dim]

    def _tile_splat(self, op: t.Splat) -> str:
        return str(self.values[op.x])

    def _tile_less(self, op: t.Less) -> str:
        lhs, rhs = (atom(self.values[v]) for v in op.operands)
        return f"({lhs} < {rhs}).to(tl.int64)"

    def _tile_coordinate(self, op: t.Coordinate) -> str:
        size = op.layout.shape[op.dim]
        text = f"{self.ranges[size]}{view(op.dim, op.layout.rank)}" if size > 1 else "0"
        narrow = all(
            isinstance(u, m.Cast) and u.dtype == I32 for u in self.readers.get(op.result, ())
        )
        if narrow:
            self.values[op.result] = text
            return str(text)
        return f"{text}.to(tl.int64)"

    def _tile_reduce(self, op: t.Reduce) -> str:
        return f"tl.{op.kind}({self.values[op.x]}, {op.dim}, keep_dims=True)"

    def _tile_scan(self, op: t.Scan) -> str:
        return f"tl.cumsum({self.values[op.x]}, {op.dim})"

    def _tile_reshape(self, op: t.Reshape) -> str:
        return f"tl.reshape({self.values[op.x]}, {op.layout.shape})"

    def _tile_alternate(self, op: t.Alternate) -> str:
        rows, columns = _shape(op.result)
        return f"tl.split(tl.reshape({self.values[op.x]}, ({rows}, {columns}, 2)))[{op.at}]"

    def _tile_integer(self, op: t.Integer) -> str:
        return f"tl.max({self.values[op.x]})"

    def _tile_product(self, op: t.Product) -> str:
        acc, a, b = (self.values[v] for v in op.operands)
        parts = self._in_turns(op)
        if len(parts) == 1:
            return self._dot(op, acc, a, b)
        *first, last = zip(self._planes(op.a, len(parts)), parts, strict=True)
        for left, right in first:
            text = self._dot(op, acc, left, right)
            acc = self.text.name(op.result.hint)
            self.text.line(f"{acc} = {text}")
        return self._dot(op, acc, *last)

    def _dot(self, op: t.Product, acc: Any, a: Any, b: Any) -> str:
        dtype = dtype_of(op.a.type)
        if self.wide and dtype != F32:
            a, b = f"{a}.to(tl.float32)", f"{b}.to(tl.float32)"
        more = "" if str(acc).startswith("tl.zeros") else f", {acc}"
        precise = ', input_precision="ieee"' if dtype == F32 or self.wide else ""
        return f"tl.dot({a}, {b}{more}{precise})"

    # ---- control flow

    def _tile_for(self, op: t.For) -> None:
        region = op.regions[0]
        counter, *params = region.params
        names = []
        for init, param in zip(op.inits, params, strict=True):
            name = self.text.name(param.hint)
            self.text.line(f"{name} = {self._typed(init)}")
            self.values[param] = name
            names.append(name)
        self.values[counter] = at = self.text.name(counter.hint)
        lo, hi = (self.values[v] for v in op.operands[:2])
        walk = self._walk(op, f"{lo}, {hi}, {op.step}")
        with self.text.block(f"for {at} in {walk}"):
            self._region(region)
            after = [self._typed(v) for v in region.yields]
            changed = [(n, x) for n, x in zip(names, after, strict=True) if n != x]
            if changed:
                left = ", ".join(n for n, _ in changed)
                self.text.line(f"{left} = {', '.join(x for _, x in changed)}")
        for result, name in zip(op.results, names, strict=True):
            self.values[result] = name

    def _walk(self, op: t.For, turns: str) -> str:
        """A loop's range. Triton copies what a look-up of positions reads (documents' numbers)
        ahead, too, in slots of its own beside those of the blocks. Where bulk copies bring these,
        shared memory is planned for them alone, and 56 bytes more let one work item less run at a
        time (documents on an H100: 1.10 ms for 0.87): such a loop has one block less under way."""
        stages = int(self.graph.attrs.get("stages", 1))
        looks_up = self.bulk and stages > 2 and looks_up_beside_blocks(op.regions[0])
        return f"tl.range({turns}, num_stages={stages - 1})" if looks_up else f"range({turns})"

    def _typed(self, value: Value) -> str:
        """A value as a loop carries it: of its full type from the start."""
        text = str(self.values[value])
        if isinstance(value.type, IndexType):
            return f"tl.cast({text}, tl.int64)"
        assert isinstance(value.type, RegisterType)
        if is_literal(text):
            return self.full(
                value.type.shape, float(value.type.dtype != I64), text, dtype_name(value.type.dtype)
            )
        return text

    def _tile_if(self, op: t.If) -> None:
        lo, hi = (atom(self.values[v]) for v in op.operands)
        with self.text.block(f"if {lo} < {hi}"):
            self._region(op.regions[0])


def _dtype(value: Value) -> object:
    return getattr(value.type, "dtype", None)


def looks_up_beside_blocks(body: Region) -> bool:
    """Whether a loop multiplies blocks that are loaded, and gathers single numbers."""
    sides = {v for op in body.ops if isinstance(op, t.Product) for v in (op.a, op.b)}
    loaded = any(isinstance(op, t.Load) and op.result in sides for op in body.ops)
    gathers = [op.result for op in body.ops if isinstance(op, t.Gather)]
    return loaded and any(1 in _shape(x) and max(_shape(x)) > 1 for x in gathers)


def _shape(value: Value) -> tuple[int, ...]:
    return value.type.shape if isinstance(value.type, RegisterType) else (1, 1)


def _readers(region: Region) -> dict[Value, list[Op]]:
    """The operations that take a value."""
    found: dict[Value, list[Op]] = {}
    for op in region.walk():
        for value in dict.fromkeys(op.operands):
            found.setdefault(value, []).append(op)
    return found


def _uses(region: Region) -> dict[Value, int]:
    found: dict[Value, int] = {}
    for op in region.walk():
        for value in op.operands:
            found[value] = found.get(value, 0) + 1
        for inner in op.regions:
            for value in inner.yields:
                found[value] = found.get(value, 0) + 2
    return found


def _extents(op: Op) -> list[int]:
    """Sizes of tiles along which memory is read or positions are counted."""
    types = [v.type for v in (*op.operands, *op.results)]
    if not isinstance(op, t.Load | t.LoadRows | t.Store | t.Coordinate):
        return []
    return [n for x in types if isinstance(x, RegisterType) for n in x.shape if n > 1]
