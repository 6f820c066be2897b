"""``tile.while`` in every back end: no turns, many, one inside another, what is carried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.runtime.tile_kernel import make_tile_kernel

HEAD = (
    "tile f<N>(%x: buffer<N x i64, unit 0>, %y: buffer<N x i64, unit 0>, "
    "%out: buffer<N x 2 x i64, unit 1>) with {grid = [[size(N), 1]], outputs = 1, "
    'target = "scalar"} {\n'
    "%n = tile.block {dim = 0}\n%c0 = math.const {value = 0, type = index}\n"
    "%c1 = math.const {value = 1, type = index}\n%a = tile.read %x, %n\n%b = tile.read %y, %n\n"
)
TAIL = (
    "\n%s = tile.splat %p\ntile.store %s, %out, %n, %c0 {dims = [-1, -1]}\n"
    "%t = tile.splat %q\ntile.store %t, %out, %n, %c1 {dims = [-1, -1]}\nreturn }"
)
# the greatest common divisor, where a turn swaps what is carried: it must be read before it is set
DIVISOR = """%p, %q = tile.while %b, %a, %b (%u: index, %v: index) {
  %r = math.mod %u, %v
  yield %r, %v, %r
}"""
# how often 1 can be taken from each of 1 .. a: an inner loop that has no turns at first
NESTED = """%p, %q = tile.while %a, %c0, %a (%sum: index, %left: index) {
  %fewer = math.sub %left, %c1
  %more, %none = tile.while %fewer, %sum, %fewer (%inner: index, %i: index) {
    %next = math.add %inner, %b
    %j = math.sub %i, %c1
    yield %j, %next, %j
  }
  yield %fewer, %more, %fewer
}"""
# memory that the turns write, read by the condition; an inner if and for
MEMORY = """%m = tile.alloc {type = scratch<2 x i64>}
%s0 = tile.splat %a
tile.store %s0, %m, %c0 {dims = [-1]}
%p, %q = tile.while %a, %c0, %c0 (%turns: index, %sum: index) {
  %now = tile.read %m, %c0
  %less = math.sub %now, %c1
  %s1 = tile.splat %less
  tile.store %s1, %m, %c0 {dims = [-1]}
  %one = math.add %turns, %c1
  %added = tile.for %c0, %now, %sum {step = 1} (%k: index, %acc: index) {
    %acc1 = math.add %acc, %k
    yield %acc1
  }
  tile.if %added, %b () {
    %zero = tile.splat %c0
    tile.store %zero, %m, %c0 {dims = [-1]}
    yield
  }
  %again = tile.read %m, %c0
  yield %again, %one, %added
}"""
PROGRAMS = {"divisor": DIVISOR, "nested": NESTED, "memory": MEMORY}


def by_hand(name: str, a: int, b: int) -> tuple[int, int]:
    if name == "divisor":
        while b > 0:
            a, b = b, a % b
        return a, b
    if name == "nested":
        return (b * (a * (a - 1) // 2), 0) if a > 0 else (0, a)
    turns, total, now = 0, 0, a
    go = a
    while go > 0:
        total, turns = total + now * (now - 1) // 2, turns + 1
        now = 0 if total < b else now - 1
        go = now
    return turns, total


@pytest.mark.parametrize("backend", ["mlir", "numba", "interpreter"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_turns(name: str, backend: str) -> None:
    module = parse(HEAD + PROGRAMS[name] + TAIL)
    call = make_tile_kernel(module.main, named_target("scalar"), backend)

    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
    def property_(pairs: list[tuple[int, int]]) -> None:
        x = np.array([a for a, _ in pairs], np.int64)
        y = np.array([b for _, b in pairs], np.int64)
        wanted: Any = np.array([by_hand(name, a, b) for a, b in pairs]).reshape(len(pairs), 2)
        (found,) = call(torch.from_numpy(x), torch.from_numpy(y))
        assert found.tolist() == wanted.tolist()
        (meant,) = evaluate(module, x, y)
        assert meant.tolist() == wanted.tolist()

    property_()
