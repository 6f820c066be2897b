"""Examples of what a GPU's threads do together: products of matrix units and of warp groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.ir.examples import Example
from tilewright.passes.to_threads.layouts import ROWS, BlockLayouts, terms_of

_UNIT = "m16n8k16"


def coordinates(name: str, shape: tuple[int, int], dim: int, layout: object) -> str:
    """Lines for a bf16 tile of positions along a dimension."""
    size = " x ".join(map(str, shape))
    return (
        f"%{name}_at = tile.coordinate {{dim = {dim}, layout = {layout}}}\n"
        f"%{name} = math.cast %{name}_at {{dtype = bf16}}\n"
        f"%{name}_one = math.const {{value = 1.0, type = reg<{size} x bf16, {layout}>}}\n"
    )


def program(rows: int, columns: int, lines: str) -> str:
    return (
        f"tile f(%o: buffer<{rows} x {columns} x f32, unit 1>) "
        "with {grid = [[1, 1]], outputs = 1} {\n"
        f"%c0 = math.const {{value = 0, type = index}}\n{lines}"
        "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}\nreturn }"
    )


def _examples() -> Iterator[Example]:
    layouts = BlockLayouts(2)
    acc = layouts.of(ROWS, (32, 8))
    lines = f"%acc = math.const {{value = 1.0, type = reg<32 x 8 x f32, {acc}>}}\n"
    lines += coordinates("a", (32, 16), 0, layouts.of(ROWS, (32, 16)))
    lines += coordinates("b", (16, 8), 1, layouts.of(terms_of(_UNIT), (16, 8)))
    lines += f'%r = tile.matrix_product %acc, %a, %b {{unit = "{_UNIT}"}}\n'
    want = 1.0 + 16 * np.outer(np.arange(32.0), np.arange(8.0))
    yield Example("tile.matrix_product", program(32, 8, lines), (), want)

    layouts = BlockLayouts(4)
    acc = layouts.of(ROWS, (64, 8))
    lines = f"%acc = math.const {{value = 1.0, type = reg<64 x 8 x f32, {acc}>}}\n"
    lines += coordinates("a", (64, 16), 0, layouts.of(ROWS, (64, 16)))
    lines += coordinates("b", (8, 16), 0, "spatial(8, 16)")
    lines += (
        "%s = tile.alloc {type = shared<1 x 8 x 16 x bf16, swizzle 2>}\n"
        "tile.store %b, %s, %c0, %c0, %c0 {dims = [-1, 0, 1]}\n"
        "tile.fence {}\ntile.barrier {}\n"
        "%r = tile.group_product %acc, %a, %s, %c0 {dims = [1, 0]}\n"
    )
    want = 1.0 + 16 * np.outer(np.arange(64.0), np.arange(8.0))
    for op in ("tile.group_product", "tile.fence"):
        yield Example(op, program(64, 8, lines), (), want)
    begun = lines.replace("%r = tile.group_product", "%p = tile.group_begin")
    begun += "%r = tile.group_wait %p\n"
    for op in ("tile.group_begin", "tile.group_wait"):
        yield Example(op, program(64, 8, begun), (), want)


# One warp copies %x in two halves through one slot, another takes them out of shared memory.
ROLES = """tile f(%x: buffer<16 x 8 x f64, unit 1>, %o: buffer<16 x 8 x f64, unit 1>)
  with {grid = [[1, 1]], outputs = 1} {
%c0 = math.const {value = 0, type = index}
%c1 = math.const {value = 1, type = index}
%c8 = math.const {value = 8, type = index}
%s = tile.alloc {type = shared<1 x 8 x 8 x f64>}
%full = tile.barriers {count = 1, arrivals = 1} : shared<1 x i64>
%empty = tile.barriers {count = 1, arrivals = 1} : shared<1 x i64>
tile.roles {warps = [1, 1]} () {
  tile.await %full, %c0, %c0
  %a = tile.load %s, %c0, %c0, %c0 {dims = [-1, 0, 1], layout = spatial(4, 8).local(2, 1)}
  tile.arrive %empty, %c0
  tile.await %full, %c0, %c1
  %b = tile.load %s, %c0, %c0, %c0 {dims = [-1, 0, 1], layout = spatial(4, 8).local(2, 1)}
  tile.store %a, %o, %c0, %c0 {dims = [0, 1]}
  tile.store %b, %o, %c8, %c0 {dims = [0, 1]}
  yield
} () {
  tile.await %empty, %c0, %c1
  tile.expect %full, %c0 {bytes = 512}
  tile.copy_bulk %full, %c0, %x, %s, %c0, %c0, %c0 {dims = [0, 1]}
  tile.await %empty, %c0, %c0
  tile.expect %full, %c0 {bytes = 512}
  tile.copy_bulk %full, %c0, %x, %s, %c0, %c8, %c0 {dims = [0, 1]}
  yield
}
return }"""


def _role_examples() -> Iterator[Example]:
    x = np.arange(128.0).reshape(16, 8)
    for op in ("barriers", "expect", "arrive", "await", "copy_bulk", "roles"):
        yield Example(f"tile.{op}", ROLES, (x,), x)


THREAD_EXAMPLES = (*_examples(), *_role_examples())
