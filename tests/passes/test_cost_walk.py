"""The walk that counts instructions of tile programs, on programs that are counted by hand."""

from __future__ import annotations

import pytest

from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.to_tile.cost.counts import Counts
from tilewright.passes.to_tile.cost.walk import count_program

TARGET = named_target("znver4")
REGISTER = "reg<1 x 16 x f32, spatial(1, 16)>"
STORE = "tile.store {x}, %o, %c0 {{dims = [1]}}\n"


def counted(body: str, grid: str = "[[size(N), 7]]", **sizes: int) -> Counts:
    """What a program does that has a register %a of 2.0 and the integers %c0 … %c4."""
    integers = "".join(f"%c{n} = math.const {{value = {n}, type = index}}\n" for n in range(5))
    text = f"""tile f<N>(%x: tensor<N x f32>, %o: buffer<16 x f32, unit 0>)
      with {{grid = {grid}, outputs = 1}} {{
      {integers} %n = tile.size {{size = size(N)}}
      %a = tile.load %o, %c0 {{dims = [1], layout = spatial(1, 16)}} : {REGISTER}
      {body}
      return }}"""
    return count_program(parse(text).main, {"N": 7, **sizes}, TARGET)


def loop(body: str, lo: str = "%c0", hi: str = "%c4", step: int = 1, name: str = "i") -> str:
    return f"tile.for {lo}, {hi} {{step = {step}}} (%{name}: index) {{ {body} yield }}\n"


def branch(body: str, lo: str, hi: str) -> str:
    return f"tile.if {lo}, {hi} () {{ {body} yield }}\n"


FRESH = "%l = tile.load %o, %c0 {dims = [1], layout = spatial(1, 16)} : " + REGISTER + "\n"


def test_what_does_not_change_in_a_loop_is_done_once() -> None:
    body = "%p = math.mul %a, %a\n" + STORE.format(x="%p")
    assert counted(loop(body)) == Counts(load=1, fma=1, store=4)
    twice = loop(loop("%p = math.mul %a, %a\n" + STORE.format(x="%p"), name="j"))
    assert counted(twice) == Counts(load=1, fma=1, store=16)


def test_what_changes_is_done_every_turn() -> None:
    body = FRESH + "%p = math.mul %l, %a\n%q = math.add %a, %a\n%s = math.add %p, %q\n"
    assert counted(loop(body + STORE.format(x="%s"))) == Counts(load=5, fma=4, add=5, store=4)


@pytest.mark.parametrize(
    ("lo", "hi", "step", "turns"),
    [("%c0", "%n", 1, 7), ("%c1", "%n", 2, 3), ("%c0", "%n", 4, 2), ("%c4", "%c1", 1, 0)],
)
def test_turns_of_a_loop_are_those_of_its_bounds(lo: str, hi: str, step: int, turns: int) -> None:
    found = counted(loop(FRESH + STORE.format(x="%l"), lo, hi, step))
    assert found == Counts(load=1 + turns, store=turns)


def test_a_branch_that_is_not_taken_does_nothing() -> None:
    """Nor does what is in a loop in it, though it changes with neither."""
    body = "%p = math.div %a, %a\n" + STORE.format(x="%p")
    assert counted(branch(body, "%c1", "%c0")) == Counts(load=1)
    assert counted(branch(body, "%c0", "%c1")) == Counts(load=1, divide=1, store=1)
    assert counted(branch(loop(body), "%c1", "%c1")) == Counts(load=1)
    assert counted(branch(loop(body), "%c0", "%c1")) == Counts(load=1, divide=1, store=4)


def test_a_branch_in_a_loop_is_taken_in_some_turns() -> None:
    body = branch("%p = math.div %a, %a\n" + STORE.format(x="%p"), "%i", "%c3")
    assert counted(loop(body)) == Counts(load=1, divide=3, store=3)


def test_equal_operations_beside_each_other_count_once() -> None:
    body = (
        "%p = math.mul %a, %a\n%q = math.mul %a, %a\n%s = math.add %p, %q\n%t = math.add %q, %p\n"
    )
    both = "%u = math.sub %s, %t\n" + STORE.format(x="%u")
    assert counted(body + both) == Counts(load=1, fma=1, add=2, store=1)


@pytest.mark.parametrize(("tile", "items"), [(1, 7), (2, 4), (7, 1)])
def test_every_work_item_is_walked(tile: int, items: int) -> None:
    grid = f"[[size(N), {tile}]]"
    assert counted(STORE.format(x="%a"), grid) == Counts(load=1, store=1) * items
