"""A program of threads as CUDA C++ with one kernel.

The kernel takes a pointer for every buffer (inputs, then outputs), the strides that are not known
to be one, and the sizes; its grid has one dimension, of which the program's last runs fastest. The
text includes ``tilewright_kernel.h``, which gives it the device's instructions, or, under a C++
compiler for the host, their emulation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tilewright.backends.cuda.bits import BitOps
from tilewright.backends.cuda.bulk import BulkMap, Role, RoleOps
from tilewright.backends.cuda.control import ControlOps
from tilewright.backends.cuda.fragments import FragmentOps
from tilewright.backends.cuda.memory import MemoryOps
from tilewright.backends.cuda.parameters import parameters, size_text
from tilewright.backends.cuda.pointwise import (
    HALVES,
    expression,
    literal,
    scalar_type,
)
from tilewright.backends.cuda.scans import ScanOps
from tilewright.backends.cuda.text import (
    CText,
    added,
    atom,
    register_of,
    register_part,
)
from tilewright.backends.cuda.tiles import Buffer, Shared, Tile
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BOOL, I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.matrix_units import WARP
from tilewright.ir.ops_tile_memory import Wait
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, IndexType, RegisterType, SharedType

PACKED: dict[type[Op], str] = {m.Add: "hadd2", m.Sub: "hsub2", m.Mul: "hmul2", m.Fma: "hfma2"}


@dataclass(frozen=True)
class CudaSource:
    """A kernel's text and how to call it: after the pointers come descriptions of tensors that are
    copied in bulk (``maps``), ``strides`` as (buffer, dimension), 64-bit integers, then the sizes,
    64-bit integers, too."""

    text: str
    symbol: str
    threads: int
    shared_bytes: int
    pointers: tuple[str, ...]
    strides: tuple[tuple[int, int], ...]
    sizes: tuple[str, ...]
    maps: tuple[BulkMap, ...] = ()
    wide: frozenset[int] = frozenset()  # buffers that must lie at multiples of 16 bytes


def emit_cuda(graph: Graph, symbol: str, odd: Collection[int] = ()) -> CudaSource:
    """The text of a program of threads (passes/to_threads).

    Buffers start, and have strides, at multiples of 16 bytes, but for ``odd`` ones: threads move up
    to 16 bytes of the others at once. Raises UnsupportedError for operations that it lacks.
    """
    return _Program(graph, symbol, odd).run()


class _Program(BitOps, ControlOps, FragmentOps, MemoryOps, RoleOps, ScanOps):
    """Writes one kernel."""

    def __init__(self, graph: Graph, symbol: str, odd: Collection[int]) -> None:
        self.graph, self.symbol, self.odd, self.wide = graph, symbol, odd, set()
        self.made = {v: op for op in graph.body.walk() for v in op.results}
        loops = [op for op in graph.body.walk() if isinstance(op, t.For)]
        self.counters = {op.regions[0].params[0]: op for op in loops}
        self.users: dict[Value, list[Op]] = {}
        for op in graph.body.walk():
            for value in op.operands:
                self.users.setdefault(value, []).append(op)
        self.text = CText()
        self.values: dict[Value, Any] = {}
        self.head: list[str] = []
        self.named: dict[str, str] = {}
        self.anew: dict[str, str] | None = None
        self.shared = iter(graph.attrs.get("shared", ()))
        self.exchanged = 0  # bytes through which warps exchange what they have reduced
        self.blocks: list[str] = []
        self.pointers: list[str] = []
        self.strides: list[tuple[int, int]] = []
        self.sizes: dict[str, str] = {}
        self.maps: dict[BulkMap, str] = {}
        self.role: Role | None = None

    def run(self) -> CudaSource:
        pointers, numbers = self._parameters()
        self._position()
        self.region(self.graph.body)
        maps = [f"TW_TENSOR_MAP {name}" for name in self.maps.values()]
        parameters = [*pointers, *maps, *numbers]
        threads = int(self.graph.attrs["warps"]) * WARP
        at_once = int(self.graph.attrs.get("at_once", 1))
        shared = int(self.graph.attrs.get("shared_bytes", 0)) + self.exchanged
        lines = [
            '#include "tilewright_kernel.h"',
            "",
            f"TW_KERNEL({self.symbol}, {threads}, {at_once})({', '.join(parameters)}) {{",
        ]
        if shared:
            lines.append(f"  TW_SHARED({shared});")
        lines += ["  const int thread = tw::thread(), lane = thread % 32;", "  (void)lane;"]
        lines += [*self.head, *self.text.lines, "}", ""]
        return CudaSource(
            "\n".join(lines),
            self.symbol,
            threads,
            shared,
            tuple(self.pointers),
            tuple(self.strides),
            tuple(self.sizes),
            tuple(self.maps),
            frozenset(self.wide | {x.buffer for x in self.maps}),
        )

    # ---- arguments and position

    def _parameters(self) -> tuple[list[str], list[str]]:
        """Pointers, and numbers."""
        made = parameters(self.graph, self.text)
        self.pointers, self.strides, self.sizes = made.pointers, made.strides, made.sizes
        named = zip(made.pointers, made.steps.items(), strict=True)
        for number, (name, (param, steps)) in enumerate(named):
            type_, lines = param.type, number not in self.odd
            assert isinstance(type_, BufferType)
            self.values[param] = Buffer(number, name, type_.dtype, steps, type_.unit, lines)
        return made.declared

    def _position(self) -> None:
        """The block's position on the grid; the last dimension runs fastest."""
        grid = [(Size.of(size), int(tile)) for size, tile in self.graph.attrs["grid"]]
        several = [size.constant is None or size.constant > tile for size, tile in grid]
        self.blocks = ["0"] * len(grid)
        rest = "tw::block()"
        for dim in reversed(range(len(grid))):
            if not several[dim]:
                continue
            size, tile = grid[dim]
            if not any(several[:dim]):
                self.blocks[dim] = self.bind("long long", "block", rest)
                break
            rest = self.bind("const int", "item", rest)
            count = self._size(size)
            if tile != 1:
                count = f"({atom(count)} + {tile - 1}) / {tile}"
            count = self.bind("const int", "blocks", f"static_cast<int>({count})")
            self.blocks[dim] = self.bind("const long long", "block", f"{rest} % {count}")
            rest = f"{rest} / {count}"

    def _size(self, size: Size) -> str:
        return size_text(size, self.sizes)

    # ---- operations

    def region(self, region: Region) -> None:
        for op in region.ops:
            self._op(op)

    def _op(self, op: Op) -> None:
        handler: Callable[[Any], Any] | None = getattr(self, "_" + op.name.replace(".", "_"), None)
        result = None
        if handler is not None:
            result = handler(op)
        elif "pointwise" not in op.traits:
            raise UnsupportedError(f"{op.name} in the cuda back end", op.loc)
        elif isinstance(op.results[0].type, IndexType):
            result = expression(op, [atom(self.index(v)) for v in op.operands])
        else:
            self._pointwise(op)
        if result is not None:
            self._keep_index(op.results[0], result)

    def _keep_index(self, value: Value, text: str) -> None:
        """A name for a run-time integer, unless it is one already."""
        plain = text.isidentifier() or text.isdigit()
        self.values[value] = text if plain else self.bind("const long long", value.hint, text)

    def _pointwise(self, op: Op) -> None:
        inputs = [self.tile(v) for v in op.operands]
        out = self.declare(op.results[0])
        if out.dtype in HALVES and type(op) in PACKED and not out.scalar:
            alike = [x for x in inputs if x.scalar or x.layout.registers == out.layout.registers]
            if len(alike) == len(inputs) and out.layout.registers % 2 == 0:
                self._packed(op, inputs, out)
                return

        def element(register: str) -> str:
            texts = [
                atom(
                    self.element(
                        x, "0" if x.scalar else register_of(x.layout, out.layout, register)
                    )
                )
                for x in inputs
            ]
            return expression(op, texts)

        self.fill(out, element)

    def _packed(self, op: Op, inputs: list[Tile], out: Tile) -> None:
        """Two 16-bit floats at once, each rounded once."""
        kind = out.dtype.name
        with self.text.each("w", out.layout.registers // 2) as w:
            words = [
                f"tw::pack_{kind}({x.name}, {x.name})" if x.scalar else f"{x.name}[{w}]"
                for x in inputs
            ]
            call = f"tw::{PACKED[type(op)]}_{kind}({', '.join(words)})"
            self.text.line(f"{out.name}[{w}] = {call};")

    def _math_const(self, op: m.Const) -> str | None:
        if isinstance(op.type, IndexType):
            return str(int(op.value))
        assert isinstance(op.type, RegisterType)
        text = literal(op.value, op.type.dtype)
        if op.type.layout.lanes == 1 and op.type.layout.registers == 1:
            self.values[op.result] = Tile(text, op.type.dtype, op.type.layout, True)
            return None
        if not self.only_begins(op.result):
            self.fill(self.declare(op.result), lambda register: text)
        return None

    def _math_cast(self, op: m.Cast) -> str | None:
        if isinstance(op.x.type, IndexType):
            return self.index(op.x)
        self._pointwise(op)
        return None

    def _tile_block(self, op: t.BlockId) -> str:
        return self.blocks[op.dim]

    def _tile_size(self, op: t.SizeOf) -> str:
        return self._size(op.size)

    def _tile_stride(self, op: t.StrideOf) -> str:
        held: Buffer = self.values[op.buffer]
        return held.strides[op.dim]

    def _tile_less(self, op: t.Less) -> str:
        lhs, rhs = (atom(self.index(v)) for v in op.operands)
        return f"{lhs} < {rhs} ? 1 : 0"

    def _tile_splat(self, op: t.Splat) -> None:
        self.fill(self.declare(op.result), lambda register: self.index(op.x))

    def _tile_integer(self, op: t.Integer) -> str:
        return self.element(self.tile(op.x), "0")

    def _tile_coordinate(self, op: t.Coordinate) -> None:
        users = self.users.get(op.result, [])
        if users and all(isinstance(u, m.Cast) and u.dtype == I32 for u in users):
            made = Tile(self.text.name(op.result.hint), I32, op.layout, False)
            self.values[op.result] = made
            self.text.line(f"{self.declaration(made)};")
        else:
            made = self.declare(op.result)
        thread = self.thread(op.layout, op.dim)
        self.fill(
            made, lambda register: added([thread, register_part(op.layout, op.dim, register)])
        )

    # ---- threads together

    def _tile_reduce(self, op: t.Reduce) -> None:
        x = self.tile(op.x)
        out = self.declare(op.result)
        dtype = x.dtype
        if dtype in HALVES or dtype == BOOL:
            raise UnsupportedError(f"a reduction of {dtype} in the cuda back end", op.loc)
        kind = scalar_type(dtype)
        start = {"sum": "0", "max": "-tw::infinity()", "min": "tw::infinity()"}[op.kind]
        if not dtype.is_float:
            start = self._least(op)
        self.fill(
            out, lambda register: start if dtype.is_float else f"static_cast<{kind}>({start})"
        )
        count = x.layout.registers
        with self.text.each("i", count) as i:
            at = register_of(out.layout, x.layout, i) if out.layout.registers > 1 else "0"
            here = f"{out.name}[{at}]"
            self.text.line(
                f"{here} = {_combined(op.kind, dtype.is_float, here, self.element(x, i))};"
            )
        inner = 1
        for dim, stride, size in x.layout.digits()[1]:
            counts = dim == op.dim and stride  # copies are no part of the sum
            for step in (inner << bit for bit in range(size.bit_length() - 1) if counts):
                if step < WARP:
                    self._across(op, out, step)
                else:
                    self._across_warps(op, out, step)
            inner *= size

    def _least(self, op: t.Reduce) -> str:
        if op.kind == "sum":
            return "0"
        wide = op.x.type.dtype.bits  # type: ignore[union-attr]
        most = f"{2 ** (wide - 1) - 1}LL"
        return most if op.kind == "min" else f"-{most} - 1"

    def _across(self, op: t.Reduce, out: Tile, step: int) -> None:
        """Combines with the lane whose number differs in one bit."""
        with self.text.each("i", out.layout.registers) as i:
            here = f"{out.name}[{i}]"
            other = f"tw::shuffle_xor_any({here}, {step})"
            self.text.line(f"{here} = {_combined(op.kind, out.dtype.is_float, here, other)};")

    def _across_warps(self, op: t.Reduce, out: Tile, step: int) -> None:
        """Combines with the thread of another warp, through shared memory of every thread's own."""
        count, kind = out.layout.registers, scalar_type(out.dtype)
        size = out.dtype.bits // 8
        threads = int(self.graph.attrs["warps"]) * WARP
        self.exchanged = max(self.exchanged, threads * count * size)
        whole = int(self.graph.attrs.get("shared_bytes", 0))
        places = [
            f"tw_shared + {whole} + ({who} * {count} + i) * {size}"
            for who in ("thread", f"(thread ^ {step})")
        ]
        self.text.line(self.block_barrier())
        self.text.line("#pragma unroll")
        with self.text.block(f"for (int i = 0; i < {count}; ++i)"):
            self.text.line(f"tw::shared_store<{kind}>({places[0]}, {out.name}[i]);")
        self.text.line(self.block_barrier())
        self.text.line("#pragma unroll")
        with self.text.block(f"for (int i = 0; i < {count}; ++i)"):
            other = f"tw::shared_load<{kind}>({places[1]})"
            here = f"{out.name}[i]"
            self.text.line(f"{here} = {_combined(op.kind, out.dtype.is_float, here, other)};")

    def _tile_barrier(self, op: Op) -> None:
        self.text.line(self.block_barrier())

    def _tile_commit(self, op: Op) -> None:
        self.text.line("tw::commit();")

    def _tile_wait(self, op: Wait) -> None:
        self.text.line(f"tw::wait<{op.pending}>();")

    def _tile_alloc(self, op: t.Alloc) -> None:
        if not isinstance(op.type, SharedType):
            raise UnsupportedError(f"{op.type} in the cuda back end", op.loc)
        name = self.text.name(f"{op.result.hint}_shared")
        self.text.line(f"unsigned char* const {name} = tw_shared + {next(self.shared)};")
        self.values[op.result] = Shared(name, op.type)


def _combined(kind: str, is_float: bool, a: str, b: str) -> str:
    if kind == "sum":
        return f"{a} + {b}"
    if is_float:
        return f"f{kind}f({a}, {b})"
    return f"tw::{'larger' if kind == 'max' else 'smaller'}({a}, {b})"
