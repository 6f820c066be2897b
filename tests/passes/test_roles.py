"""Programs of threads with roles, run lane by lane: the same numbers as programs on whole blocks,
and every wait, arrival and announcement that is left out is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.attention_programs import Attention
from tests.passes.roles_programs import TARGET, Call, Case, call_of
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.errors import EvaluationError, UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.ops_tile_roles import Arrive, Await, CopyBulk, Expect, Roles
from tilewright.ir.parser import parse
from tilewright.ir.types import INDEX, SharedType
from tilewright.passes.rewrite import Rewriter, rewrite_graph
from tilewright.passes.to_threads import roles as roles_module
from tilewright.passes.to_threads.overlap import find_turn
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_threads.roles import SHARES, best_program, lower_roles
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink runs programs for minutes
SMALL = Attention(16, 16, "bf16", causal=True)
BLOCKS = BlockSchedule(64, 16, 4, 2)


def run(graph: Graph, call: Call, lanes: bool) -> np.ndarray:
    sizes = {n: v for n, v in call.sizes.items() if n in graph.sizes}
    (got,) = evaluate_graph(graph, *call.arrays, sizes=sizes, lanes=lanes)
    return np.asarray(got)


@given(
    head=st.sampled_from([16, 24, 32, 64, 128]),
    value_head=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from(["bf16", "f16"]),
    causal=st.booleans(),
    mask=st.sampled_from(["none", "bool", "add"]),
    inner=st.sampled_from([16, 32]),
    stages=st.sampled_from([2, 3]),
    lengths=st.tuples(st.integers(1, 140), st.integers(1, 70)),
)
@settings(max_examples=12, phases=QUICK, deadline=None)
def test_the_same_numbers_as_on_whole_blocks(
    head: int,
    value_head: int,
    dtype: str,
    causal: bool,
    mask: str,
    inner: int,
    stages: int,
    lengths: tuple[int, int],
) -> None:
    form = Attention(head, value_head, dtype, causal=causal, mask=mask)
    case = Case(form, BlockSchedule(64, inner, 4, stages))
    call = call_of(form, *lengths)
    got, want = run(case.threads, call, True), run(case.whole, call, False)
    one = {"bf16": 2.0**-7, "f16": 2.0**-10}[dtype]  # NumPy may sum a transposed matrix otherwise
    np.testing.assert_allclose(got, want, rtol=one, atol=one)


@pytest.mark.parametrize("rows", [128, 192])
def test_several_groups_and_shared_heads(rows: int) -> None:
    case = Case(SMALL, BlockSchedule(rows, 16, rows // 16, 3))
    call = call_of(SMALL, 200, 70, heads=2, group=2)
    roles = case.threads.body.ops[-1]
    assert isinstance(roles, Roles) and roles.warps == (rows // 16, 1) and roles.idle == (0, 3)
    np.testing.assert_array_equal(run(case.threads, call, True), run(case.whole, call, False))
    assert parse(str(Module((case.threads,)))) == Module((case.threads,))


def test_registers_of_a_multiprocessor_are_shared_out() -> None:
    for groups, share in SHARES.items():
        block = 128 * (groups * share.multiplies + share.copies)
        assert share.at_once * block <= 65536


# ---- what would be wrong: all loops have several turns, so that slots come round


@cache
def whole() -> tuple[Case, Call, np.ndarray]:
    case, call = Case(SMALL, BLOCKS), call_of(SMALL, 128, 128)
    want = run(case.threads, call, True)
    np.testing.assert_array_equal(want, run(case.whole, call, False))
    return case, call, want


def changed(kind: type[Op], number: int, change: Callable[[Op, Rewriter], object]) -> Graph:
    """The program with one operation of a class replaced."""
    seen: Counter[type[Op]] = Counter()

    def rule(r: Rewriter, op: Op) -> Sequence[Value] | Value | None:
        if type(op) is not kind:
            return None
        seen[kind] += 1
        return change(op, r) if seen[kind] == number + 1 else None  # type: ignore[return-value]

    return rewrite_graph(whole()[0].threads, rule)


def count(kind: type[Op]) -> int:
    return sum(type(op) is kind for op in whole()[0].threads.body.walk())


def faults(kind: type[Op], change: Callable[[Op, Rewriter], object], but: int = 0) -> list[str]:
    """What the interpreter says of every operation of a class, one changed at a time; ``but``: the
    last ones, that nothing comes after."""
    found = []
    for number in range(count(kind) - but):
        with pytest.raises(EvaluationError) as caught:
            run(changed(kind, number, change), whole()[1], True)
        found.append(str(caught.value))
    return found


def test_a_wait_left_out_is_found() -> None:
    found = faults(Await, lambda op, r: ())
    assert len(found) == 12
    assert any("while a copy of the copy engine into it is under way" in x for x in found)
    assert any("which nothing wrote" in x or "nothing wrote" in x for x in found)
    assert any("without a tile.await of its tile.arrive between" in x for x in found)


def test_a_wait_for_the_other_phase_is_found() -> None:
    def other(op: Op, r: Rewriter) -> object:
        later = r(m.Add, op.operands[2], r.const(1, INDEX))
        r.add(Await(*op.operands[:2], r(m.Mod, later, r.const(2, INDEX))))
        return ()

    assert len(faults(Await, other)) == 12


def test_an_arrival_left_out_hangs() -> None:
    assert all("nobody can go on" in x for x in faults(Arrive, lambda op, r: (), but=1))
    assert all("nobody can go on" in x for x in faults(Expect, lambda op, r: ()))


def test_a_wrong_number_of_bytes_hangs() -> None:
    def more(op: Op, r: Rewriter) -> object:
        assert isinstance(op, Expect)
        r.add(Expect(*op.operands, bytes=op.bytes + 16))
        return ()

    assert all("16 bytes" in x for x in faults(Expect, more))


def arrives_early(r: Rewriter, op: Op) -> Sequence[Value] | None:
    """Arrivals before the waits that they follow."""
    if not isinstance(op, t.For):
        return None
    ops = list(op.regions[0].ops)
    for at, inner in enumerate(ops[:-1]):
        if isinstance(inner, t.GroupWait) and isinstance(ops[at + 1], Arrive):
            ops[at], ops[at + 1] = ops[at + 1], inner
    region = replace(op.regions[0], ops=tuple(ops))
    return r.add(op.rebuilt(op.operands, [region])).results


def test_an_arrival_before_the_product_has_ended_is_found() -> None:
    """Slots are free when products have read them, not when they have begun."""
    early = rewrite_graph(whole()[0].threads, arrives_early)
    with pytest.raises(EvaluationError, match=r"the copy engine copies to .* lane \d+ read"):
        run(early, whole()[1], True)


def test_a_product_that_nobody_waited_for_cannot_be_read() -> None:
    for text in faults(t.GroupWait, lambda op, r: op.operands[0]):
        assert "which nothing wrote" in text or "under way" in text


def test_turns_overlap() -> None:
    """Two products are under way at once; the second is waited for after the exponentials."""
    case = whole()[0]
    roles = case.threads.body.ops[-1]
    assert isinstance(roles, Roles)
    loops = [op for op in roles.regions[0].ops if isinstance(op, t.For)]
    inner = [op for op in loops if any(isinstance(x, t.GroupBegin) for x in op.regions[0].ops)]
    assert len(inner) == 2
    for loop in inner:
        names = [op.name for op in loop.regions[0].ops]
        begun = [at for at, name in enumerate(names) if name == "tile.group_begin"]
        waits = [at for at, name in enumerate(names) if name == "tile.group_wait"]
        assert begun[1] < waits[0] < names.index("math.exp2") < waits[1]
    assert all(find_turn(loop) is None for loop in loops)  # nothing is left to overlap


# ---- queries in shared memory

PARKED = Case(Attention(128, 128, "bf16", causal=True), BlockSchedule(128, 128, 8, 2))


def parked_small() -> Graph:
    """A small program that reads its queries in shared memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roles_module, "OVERLAPPED", {False: 0, True: 10**6})
        return Case(Attention(128, 16, "bf16", causal=True), BlockSchedule(64, 16, 4, 2)).threads


def test_queries_stay_in_shared_memory_where_registers_are_short() -> None:
    """They come once, in bulk, and no thread loads any; turns overlap then."""
    for case, stay in ((PARKED, True), (Case(PARKED.form, BlockSchedule(128, 64, 8, 2)), False)):
        roles = case.threads.body.ops[-1]
        assert isinstance(roles, Roles) and roles.registers
        products = [op for op in roles.regions[0].walk() if isinstance(op, t.GroupBegin)]
        first = [op for op in products if isinstance(op.a.type, SharedType)]
        assert products and bool(first) == stay
        assert len({op.a for op in first}) == stay
        loads = [op for op in roles.regions[0].walk() if isinstance(op, t.Load)]
        assert bool(loads) != stay


@pytest.mark.parametrize("lengths", [(100, 70), (64, 64), (1, 33)])
def test_parked_queries_give_the_same_numbers(lengths: tuple[int, int]) -> None:
    graph = parked_small()
    case = Case(Attention(128, 16, "bf16", causal=True), BlockSchedule(64, 16, 4, 2))
    call = call_of(case.form, *lengths)
    assert any(
        isinstance(op, t.GroupProduct) and isinstance(op.a.type, SharedType)
        for op in graph.body.walk()
    )
    got, want = run(graph, call, True), run(case.whole, call, False)
    np.testing.assert_allclose(got, want, rtol=2.0**-7, atol=2.0**-7)


def test_a_wait_for_queries_left_out_is_found() -> None:
    graph = parked_small()
    roles = graph.body.ops[-1]
    assert isinstance(roles, Roles)
    (first, *_) = (op for op in roles.regions[0].ops if isinstance(op, Await))
    wrong = rewrite_graph(graph, lambda r, op: () if op is first else None)
    with pytest.raises(EvaluationError, match=r"nothing wrote|under way"):
        run(wrong, call_of(Attention(128, 16, "bf16", causal=True), 64, 64), True)


# ---- what cannot be copied in bulk


def test_reasons_are_given() -> None:
    wide = Case(Attention(64, 64, "f32"), BLOCKS)
    with pytest.raises(UnsupportedError, match="no bulk copies: %k: rows of 256 bytes"):
        lower_roles(wide.whole)
    plain, why = best_program(wide.whole, TARGET)
    assert "no bulk copies" in why and not any(isinstance(op, Roles) for op in plain.body.ops)
    with pytest.raises(UnsupportedError, match="the target has no warp groups"):
        lower_roles(replace(wide.whole, attrs={**wide.whole.attrs, "target": "cuda-sm80"}))


def test_shared_memory_is_counted() -> None:
    case = Case(Attention(128, 128, "bf16"), BlockSchedule(64, 64, 4, 3))
    graph = case.threads
    memories = [v.type for op in graph.body.walk() for v in op.results]
    slots = [x for x in memories if isinstance(x, SharedType) and len(x.shape) == 3]
    assert sum(x.bytes for x in slots) == 2 * 3 * 64 * 128 * 2
    assert int(graph.attrs["shared_bytes"]) == 2 * 3 * 64 * 128 * 2 + 2 * 1024
    assert sum(isinstance(op, CopyBulk) for op in graph.body.walk()) == 8
    with pytest.raises(UnsupportedError, match="bytes of shared memory"):
        plan_shared(graph, 64 << 10)
