"""What the tests of the Numba back end share: lowering, arrays as it wants them, small kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.backends.numba.pointwise import dtype_of
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Builder, Graph, Op, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.layout import Layout
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.target import named_target
from tilewright.ir.types import INDEX, BufferType
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile


def lowered(text: str, unit: bool = True) -> Graph:
    """The one kernel of a tensor program as a tile program of one lane. ``unit`` promises that the
    last dimension of every input has stride one."""
    kernels = run_passes(parse(text), TO_KERNELS).graphs
    assert len(kernels) == 1, "the program takes more than one kernel"
    units = {
        p.hint: len(getattr(p.type, "shape", ())) - 1 if unit else -1 for p in kernels[0].params
    }
    return kernel_to_tile(kernels[0], named_target("scalar"), 0, units)


def to_memory(values: Any, dtype: DType) -> Any:
    """Values as the back end holds them in memory (bf16 as uint16 bits)."""
    if dtype.name == "bf16":
        wide = np.asarray(dtype.round(np.asarray(values, "float64")), "float32")
        return (wide.view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(all="ignore"):
        return np.asarray(values).astype("float16" if dtype.name == "f16" else dtype.host)


def from_memory(array: Any, dtype: DType) -> Any:
    """The values of an array of the back end's."""
    if dtype.name == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype.host)


class ElementKernel:
    """Builds a kernel that applies operations to whole buffers [N], two elements an item."""

    TILE = 2

    def __init__(self, inputs: Sequence[DType]) -> None:
        self.build = Builder()
        self.layout = Layout(2).local(1, self.TILE)
        block = self.build(t.BlockId, dim=0, hint="block")
        tile = self.build(m.Const, value=self.TILE, type=INDEX)
        self.start = self.build(m.Mul, block, tile, hint="start")
        self.size = self.build(t.SizeOf, size=Size.of("N"), hint="size")
        self.buffers = [Value(BufferType((Size.of("N"),), d, 0), f"in_{d}") for d in inputs]
        self.outputs: list[Value] = []
        self.inputs = [
            self.build(
                t.Load,
                buffer,
                self.start,
                self.size,
                dims=(1,),
                bounds=((1, "zero"),),
                layout=self.layout,
                hint="x",
            )
            for buffer in self.buffers
        ]

    def output(self, cls: type[Op], *operands: Value, **attrs: Any) -> None:
        """One more operation, whose result is an output."""
        result = self.build(cls, *operands, hint=cls.name.split(".")[1], **attrs)
        dtype = dtype_of(result.type)
        out = Value(BufferType((Size.of("N"),), dtype, 0), "out")
        store = t.Store(result, out, self.start, self.size, dims=(1,), bounds=((1, "zero"),))
        self.build.add(store)
        self.outputs.append(out)

    def graph(self) -> Graph:
        params = (*self.buffers, *self.outputs)
        attrs = {"grid": ((Size.of("N"), self.TILE),), "outputs": len(self.outputs)}
        body = Region(params, tuple(self.build.ops))
        return Graph("tile", "elements", ("N",), body, attrs)


def strided(array: Any, kind: str) -> Any:
    """The same values with other strides."""
    if kind == "transposed":
        return np.ascontiguousarray(array.T).T
    if kind == "every_other":
        wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if kind == "backwards":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if kind == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        out = raw.view(array.dtype).reshape(array.shape)
        out[...] = array
        return out
    assert kind == "plain"
    return array


def close(got: Any, want: Any, tolerance: float, what: str = "") -> None:
    """Outputs agree up to a tolerance that is relative to their largest magnitude."""
    assert got.shape == want.shape, what
    scale = max(1.0, float(np.max(np.abs(want), initial=0.0)))
    np.testing.assert_allclose(
        np.asarray(got, "float64"), want, rtol=0, atol=tolerance * scale, err_msg=what
    )
