"""Lines of tile programs on shared memory: %a [4, 8] comes with rows in registers, %r goes out."""

from __future__ import annotations

ACROSS = "{dims = [0, 1], layout = spatial(4, 1).local(1, 8)}"  # a row on each of four lanes
ALLOCATE = "%s = tile.alloc {type = shared<4 x 8 x f64>}\n"
STORE = "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}"
COPY = (
    "tile.copy_async %x, %s, %c0, %c0, %c0, %c0 "
    "{dims = [0, 1], to = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
)

# to shared memory by columns, from it by rows
THROUGH_SHARED = (
    f"{ALLOCATE}tile.store %a, %s, %c0, %c0 {{dims = [0, 1]}}\ntile.barrier {{}}\n"
    f"%r = tile.load %s, %c0, %c0 {ACROSS}\n{STORE}"
)
# the same, copied beside the block
COPIED = (
    f"{ALLOCATE}{COPY}tile.commit {{}}\ntile.wait {{pending = 0}}\ntile.barrier {{}}\n"
    f"%r = tile.load %s, %c0, %c0 {ACROSS}\n{STORE}"
)
SHARED = {
    "tile.barrier": THROUGH_SHARED,
    "tile.copy_async": COPIED,
    "tile.commit": COPIED,
    "tile.wait": COPIED,
}
# a tile of which two rows are written; only those are read
UNDEFINED = (
    "%u = tile.undefined {type = reg<1 x 8 x f64, spatial(1, 8)>}\n"
    "%p = tile.take %a {at = 1}\n%q = tile.take %a {at = 3}\n"
    "%w = tile.stack %p, %u, %q\n%t = tile.take %w {at = 2}\n%r = math.neg %t\n" + STORE
)
