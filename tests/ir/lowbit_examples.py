"""Examples of the operations that take bits and packed codes apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.ir.examples import Example, pointwise
from tests.ir.formulas import BITS
from tilewright.ir.packing import Packing

# Two rows of codes of two bits in groups of three, four lanes: half of the block is padding.
PACKING = Packing("quads", (2,), 4, 3)
CODES = np.array([[0, 1, 2, 3, 2], [3, 3, 0, 1, 0], [1, 0, 2, 0, 3], [2, 2, 2, 1, 1]])
SCALES = np.array([[0.5, -2.0], [1.0, 0.25], [3.0, 1.0], [-1.0, 4.0]])
ZEROS = np.array([[1.0, 2.0], [0.5, 0.0], [3.0, 1.0], [0.0, 2.5]])
WORDS = np.array([0x03020100, -1, 0x7F80FF01, -0x80000000], np.int32)


def packed(codes: Any = CODES, packing: Packing = PACKING) -> tuple[Any, Any, Any]:
    """Words, scales and zeros as the operation takes them."""
    words = packing.pack(codes)
    blocks = words.shape[0]
    beside = (packing.pack_groups(x).reshape(blocks, -1) for x in (SCALES, ZEROS))
    return words.reshape(blocks, -1), *beside


def values(zeros: Any) -> Any:
    """(code - zero) * scale, written out."""
    rows, columns = CODES.shape
    return np.array(
        [
            [(CODES[n, k] - zeros[n][k // 3]) * SCALES[n, k // 3] for k in range(columns)]
            for n in range(rows)
        ]
    )


def bits(name: str, dtype: str = "i32") -> Example:
    """A function of bits at ordinary and at extreme numbers."""
    left = np.array([5, -1, 0x7FFFFFFF, -0x80000000, 0x12345678], dtype="int64")
    right = np.array([3, 31, 1, 4, 8], dtype="int64")
    want = [BITS[name](int(a), int(b), 32, True) for a, b in zip(left, right, strict=True)]
    pair = (left.astype("int32"), right.astype("int32"))
    return Example(f"math.{name}", pointwise(name, 2, dtype), pair, np.array(want, "int32"))


def on_words(op: str, line: str, out: str, want: Any) -> Example:
    """A tile program on four words %a [1, 4] on four lanes; the line's %r goes to %o."""
    dims = "[0, 1, 2]" if out.count("x") == 3 else "[0, 1]"
    at = "%c0, %c0, %c0" if out.count("x") == 3 else "%c0, %c0"
    text = (
        f"tile f(%x: buffer<1 x 4 x i32, unit 1>, %o: buffer<{out}, unit 1>) "
        "with {grid = [[1, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n"
        "%a = tile.load %x, %c0, %c0 {dims = [0, 1], layout = spatial(1, 4)}\n"
        f"{line}\ntile.store %r, %o, {at} {{dims = {dims}}}\nreturn }}"
    )
    return Example(op, text, (WORDS.reshape(1, 4),), want)


DEQUANTIZE = (
    "graph f(%w: tensor<1 x 4 x i32>, %s: tensor<1 x 8 x f32>, %z: tensor<1 x 8 x f32>) "
    '{ %r = tensor.dequantize %w, %s, %z {packing = "quads(2) lanes 4 group 3", dtype = u2, '
    'length = size(5), extra = "zeros"} return %r }'
)
STREAM_DEQUANTIZE = (
    "stream f(%w: tensor<1 x 4 x i32>, %s: tensor<1 x 8 x f32>) {\n"
    '%a = stream.dequantize %w, %s {packing = "quads(2) lanes 4 group 3", dtype = u2, zero = 2, '
    'dims = [["n"], ["k"]], type = stream<n=4; k=5 x f32>}\n'
    '%r = stream.sink %a {dims = [["n"], ["k"]], type = tensor<4 x 5 x f32>}\nreturn %r }'
)


def _examples() -> Iterator[Example]:
    yield from map(bits, BITS)
    words, scales, zeros = packed()
    yield Example("tensor.dequantize", DEQUANTIZE, (words, scales, zeros), values(ZEROS))
    constant = values(np.full((4, 2), 2))
    yield Example("stream.dequantize", STREAM_DEQUANTIZE, (words, scales), constant)
    view = "%r = tile.view %a {dtype = u8, layout = spatial(1, 4, 1).local(1, 1, 4)}"
    quads = np.array([[[int(w) >> 8 * i & 255 for i in range(4)] for w in WORDS]])
    yield on_words("tile.view", view, "1 x 4 x 4 x u8", quads)
    table = [1.5, -2.0, 0.0, 8.0]
    lookup = f"%r = tile.lookup %a {{values = {table}}}"
    chosen = np.array([[table[int(w) & 3] for w in WORDS]])
    yield on_words("tile.lookup", lookup, "1 x 4 x f32", chosen)
    small = [200, 0, 7, 255]
    low = "%m = math.const {value = 50529027, type = reg<1 x 1 x i32, local(1, 1)>}\n"
    low += "%b = math.bit_and %a, %m\n"  # the two lowest bits of every byte
    line = f"{low}%r = tile.lookup_bytes %b {{values = {small}}}"
    found = [sum(small[int(w) >> 8 * i & 3] << 8 * i for i in range(4)) for w in WORDS]
    signed = np.array([found]).astype(np.uint32).view(np.int32)
    yield on_words("tile.lookup_bytes", line, "1 x 4 x i32", signed)
    line = "%r = tile.lookup_halves %a {values = [1.5, -2.0, 0.0, 3.004]}"
    halves = [0x3FC0, 0xC000, 0, 0x4040]  # 3.004 rounds to 3
    found = [halves[int(w) & 3] | halves[int(w) >> 16 & 3] << 16 for w in WORDS]
    signed = np.array([found]).astype(np.uint32).view(np.int32)
    yield on_words("tile.lookup_halves", line, "1 x 4 x i32", signed)


LOWBIT_EXAMPLES = list(_examples())
