"""Products of rows with packed weights of few bits."""

from __future__ import annotations

from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir.dtypes import BF16, F16, F32, I32, TABLE, U8, DType
from tilewright.ir.ops_lowbit import Dequantize
from tilewright.ir.packing import ORDERS, TILES, Packing
from tilewright.ir.sizes import Size
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES as BLOCK_LANES
from tilewright.runtime.verification.grammar.sketch import TAME, Draw, Drawn, Known, Sketch

# floats whose codes are all numbers: kernels take codes of infinities and NaN for numbers
DTYPES = ("u4", "u8", "u1", "u2", "u3", "u5", "u6", "u7", "f4e2m1", "f6e3m2", "f6e2m3")
LENGTHS = (32, 64, 96, 128, 160, 1, 33, 100)
GROUPS = (32, 64, 16, 7, 100)


class LowBitSketch(Sketch):
    """x [M, length] and weights of ``lanes`` * N rows."""

    lanes: int = 8

    def packed(
        self, operands: list[Known], length: int, packing: Packing, dtype: DType, **attrs: object
    ) -> Known:
        form: dict[str, Any] = {
            "packing": str(packing),
            "dtype": dtype,
            "length": Size.of(length),
            **attrs,
        }
        return self.op(Dequantize, *operands, bound=40, **form)

    def activation(self, length: int, group: int) -> Known:
        """Rows of bytes, as the runtime rounds them."""
        packing = Packing.quads(8, 1, group)
        groups = packing.groups(length)
        words = packing.chunks(length) * packing.words
        at = len(self.params)
        q = self.param(["M", words], I32, ("bits", "constant:16843009", "constant:0"))
        step = self.param(["M", groups], F32, ("positive", "normal", "mixed:6"))
        sums = self.param(["M", groups], I32, (f"bytesums:{at}:{group}",))
        return self.packed([q, step, sums], length, packing, U8, signed=True, extra="sums")

    def weight(self, length: int, group: int) -> Known:
        dtype = TABLE[self.pick(DTYPES)]
        orders = (TILES,) if self.lanes == BLOCK_LANES else ORDERS  # blocks of GPUs have one
        packing = getattr(Packing, self.pick(orders))(dtype.bits, self.lanes, group)
        groups = packing.groups(length)
        words = packing.chunks(length) * packing.words * self.lanes
        scale = self.pick(["f16", "f32", "bf16", "e8m0"])
        w = self.param(["N", words], I32, ("bits", "constant:0", "constant:-1"))
        encoded = TABLE[scale].bits == 8
        kinds = ("between:117:137",) if encoded else TAME
        s = self.param(["N", groups * self.lanes], U8 if encoded else TABLE[scale], kinds)
        attrs: dict[str, object] = {"scale": TABLE[scale] if encoded else F32}
        operands = [w, s]
        if dtype.is_int and self.chance(2):
            zeros = self.pick([U8, F16])
            whole = (f"below:{1 << dtype.bits}",) if zeros == U8 else ("whole", "normal:4")
            operands.append(self.param(["N", groups * self.lanes], zeros, whole))
            attrs["extra"] = "zeros"
        elif dtype.is_int:
            attrs["zero"] = self.pick([0, 1 << dtype.bits - 1])
        return self.packed(operands, length, packing, dtype, **attrs)


def lowbit(draw: Draw, lanes: int) -> Drawn:
    """``(x @ w0.T) [silu, * (x @ w1.T)] [+ bias] [+ residual]``."""
    sketch = LowBitSketch(draw, {"M": 40, "N": 6})
    sketch.lanes = lanes
    length, group = sketch.pick(LENGTHS), sketch.pick(GROUPS)
    given = sketch.chance(2) and length % group == 0 and group % 4 == 0
    given = given and lanes != BLOCK_LANES  # GPUs take no activations in bytes
    if given:
        x = sketch.activation(length, group)
    else:
        values = ("normal", "whole", "mixed:6", "normal:1000", "constant:0")
        dtype = sketch.pick([F32, BF16])
        if lanes == BLOCK_LANES:  # with bf16 matrix units take weights rounded to bf16
            dtype = F32
        x = sketch.wide(sketch.param(["M", length], dtype, values))
    weights = [sketch.weight(length, group) for _ in range(1 + sketch.chance(3))]
    y = sketch.contract("mk,nk->mn", x, weights[0])
    if sketch.chance(3):
        y = sketch.mul(y, sketch.op(m.Sigmoid, y, bound=1))
    for w in weights[1:]:
        y = sketch.mul(y, sketch.contract("mk,nk->mn", x, w))
    rows = lanes * Size.of("N")
    if sketch.chance(3):
        y = sketch.add(y, sketch.param([rows], values=TAME))
    if sketch.chance(3):
        y = sketch.add(y, sketch.param(["M", rows], values=TAME))
    return sketch.finish(y, name="low_bit")
