"""Examples of lines of memory that offsets name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.ir.examples import STORE, Example, T, tile_example


def _examples() -> Iterator[Example]:
    """Rows of x in the order 3, 2, 1, (none): 16 - 8 i from element 8 on."""
    offsets = (
        "%i = tile.coordinate {dim = 0, layout = local(4, 1)}\n"
        "%back = math.const {value = -8, type = reg<1 x 1 x i64, local(1, 1)>}\n"
        "%most = math.const {value = 16, type = reg<1 x 1 x i64, local(1, 1)>}\n"
        "%j = math.fma %i, %back, %most\n%c8 = math.add %c4, %c4\n"
        "%c6 = math.sub %c8, %c1\n"
    )
    load = "%r = tile.load_lines %x, %c8, %j, %c6 {dim = 1, gaps = true, layout = local(4, 8)}\n"
    want = np.concatenate([T[3:0:-1], np.zeros((1, 8))])
    want[:, 7:] = 0
    yield tile_example("tile.load_lines", offsets + load + STORE, T, want=want)
    shared = (
        "%s = tile.alloc {type = shared<1 x 4 x 8 x f64>}\n"
        "tile.copy_lines %x, %s, %c8, %j, %c0, %c0, %c0, %c6 "
        "{dim = 1, gaps = true, to = [-1, 0, 1], layout = spatial(4, 2).local(1, 4)}\n"
        "tile.commit {}\ntile.wait {pending = 0}\ntile.barrier {}\n"
        "%r = tile.load %s, %c0, %c0, %c0 {dims = [-1, 0, 1], layout = spatial(4, 2).local(1, 4)}\n"
    )
    yield tile_example("tile.copy_lines", offsets + shared + STORE, T, want=want)
    whole = "%p = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 8)}\n"
    store = whole + "tile.store_lines %p, %o, %c8, %j {dim = 1, gaps = true}\n"
    first = STORE.replace("%r", "%a")
    yield tile_example("tile.store_lines", offsets + first + store, T, want=T[[0, 2, 1, 0]])


LINE_EXAMPLES = tuple(_examples())
