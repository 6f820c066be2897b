"""Plans of a layer of experts in the tile interpreter, which also refuses what reads or writes
outside of a buffer: a stable sort of choices by expert, in blocks that are each one expert's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import BF16, F32, I32, I64
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.whole_blocks.experts import plan
from tilewright.passes.to_tile.whole_blocks.experts.choices import PlanForm
from tilewright.passes.to_tile.whole_blocks.schedule import power_of_two

SM90 = named_target("cuda-sm90")
PARTS = 4  # of many choices, instead of a hundred, so that each has several chunks
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
PLAIN = PlanForm(9, 3, I64, F32, 0, False, 16)


@pytest.fixture(autouse=True)
def few_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PARTS", PARTS)
        yield


def programs(form: PlanForm, few: bool) -> tuple[Graph, ...]:
    made = plan.plan_program(form, few, SM90)
    every = (made,) if few else (plan.count_program(form, SM90), made)
    for program in every:
        assert parse(str(Module((program,)))) == Module((program,))
    return every


def planned(
    form: PlanForm, ids: Any, weights: Any, room: int, few: bool, adapters: tuple[Any, ...] = ()
) -> tuple[Any, ...]:
    """blocks, tokens, places, scales"""
    sizes = {"T": len(ids), "R": room, **({"A": len(adapters[1])} if adapters else {})}
    *first, last = programs(form, few)
    flat = ids.reshape(-1)
    given = flat, *adapters
    counts = [
        x
        for program in first
        for x in evaluate_graph(program, *given, sizes={n: sizes[n] for n in program.sizes})
    ]
    for found in counts:
        assert found.sum() == (meant(form, ids, adapters)[0] < form.experts).sum()
    rest = weights.reshape(-1), *adapters, np.zeros(room, bool), *counts
    return tuple(evaluate_graph(last, flat, *rest, sizes=sizes))


def meant(form: PlanForm, ids: Any, adapters: tuple[Any, ...]) -> tuple[Any, Any]:
    """The expert of each choice, ``experts`` if it has none; whether its id is wrong."""
    flat = ids.reshape(-1).astype(np.int64)
    known = form.base or form.experts
    wrong = (flat < 0) | ((flat >= known) & (form.base > 0 or not form.skip))
    expert = np.minimum(np.maximum(flat, 0), known)
    if form.base:
        own, table = adapters
        token = np.arange(len(flat)) // form.chosen
        inside = np.minimum(expert, form.base - 1)
        mapped = np.maximum(table[np.maximum(own[token], 0), inside], 0)
        expert = np.minimum(np.where(own[token] >= 0, mapped, inside), form.experts)
    return np.where(wrong, form.experts, expert), wrong


def check(
    form: PlanForm, ids: Any, weights: Any, few: bool, adapters: tuple[Any, ...] = ()
) -> None:
    count, experts, rows = ids.size, form.experts, form.rows
    expert, wrong = meant(form, ids, adapters)
    room = (count + min(experts, count) * (rows - 1)) // rows  # as many blocks as there may be
    blocks, tokens, places, scales = planned(form, ids, weights, room, few, adapters)
    order = np.argsort(expert, kind="stable")
    assert np.array_equal(tokens, order // form.chosen)
    assert np.array_equal(scales, weights.reshape(-1)[order])
    place = np.argsort(order)
    place = np.where(expert == experts, count, place)
    assert np.array_equal(places.reshape(-1), np.where(wrong, -1, place))
    want, first = [], 0
    for e, each in enumerate(np.bincount(expert, minlength=experts + 1)[:experts].tolist()):
        starts = range(first, first + each, rows)
        want += [(e, start, min(start + rows, first + each)) for start in starts]
        first += each
    assert [tuple(x) for x in blocks[: len(want)].tolist()] == want
    assert not blocks[len(want) :].any()


def choices(seed: int, tokens: int, form: PlanForm, beyond: int) -> tuple[Any, Any]:
    """Ids and weights; some ids lie outside of the experts by up to ``beyond``, or far."""
    rng = np.random.default_rng(seed)
    known, shape = form.base or form.experts, (tokens, form.chosen)
    ids = rng.integers(-beyond, known + beyond, shape)
    if beyond:
        info = np.iinfo(np.int64 if form.ids == I64 else np.int32)
        ends = np.array([info.min, info.max, known - 1, known, -1])
        ids = np.where(rng.random(shape) < 0.2, rng.choice(ends, shape), ids)
    dtype = np.int64 if form.ids == I64 else np.int32
    return ids.astype(dtype), rng.integers(0, 99, shape).astype(np.float32)


@settings(max_examples=8, deadline=None, phases=QUICK)
@given(
    tokens=st.integers(1, 200),
    chosen=st.integers(1, 5),
    experts=st.sampled_from([1, 5, 16, 64, 65, 150]),
    beyond=st.integers(0, 3),
    rows=st.sampled_from([1, 16, 128]),
    skip=st.booleans(),
    seed=st.integers(0, 999),
)
def test_plans(
    tokens: int, chosen: int, experts: int, beyond: int, rows: int, skip: bool, seed: int
) -> None:
    """One work item's few choices, and many that parts share out; ids that are wrong, and with
    ``skip`` ids of no expert."""
    dtypes = (I64, F32) if seed % 2 else (I32, BF16)
    form = PlanForm(experts, chosen, *dtypes, 0, skip, rows)
    ids, weights = choices(seed, tokens, form, beyond)
    check(form, ids, weights, few=ids.size <= plan.FEW)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_ids_of_no_expert_come_last(few: bool, skip: bool) -> None:
    """In their order, those of several parts too; none of them is in a block."""
    form = replace(PLAIN, skip=skip)
    ids, weights = choices(7, 21 if few else 150, form, 2)
    check(form, ids, weights, few)
    check(form, np.full_like(ids, 9), weights, few)
    check(form, np.full_like(ids, -1), weights, few)


@pytest.mark.parametrize("tokens", [5, 90])
@pytest.mark.parametrize("beyond", [0, 2])
def test_adapters_are_looked_up_on_the_way(tokens: int, beyond: int) -> None:
    """Tokens without one keep their ids; what a map says may be of no expert."""
    form = replace(PLAIN, experts=20, base=6)
    ids, weights = choices(tokens, tokens, form, beyond)
    rng = np.random.default_rng(tokens)
    adapters = rng.integers(-1, 4, tokens).astype(np.int32)
    table = rng.integers(-1, 22, (4, 6)).astype(np.int32)
    check(form, ids, weights, ids.size <= plan.FEW, (adapters, table))


@pytest.mark.parametrize("form", [PLAIN, replace(PLAIN, experts=150, base=6, chosen=1)])
def test_tiles_are_powers_of_two(form: PlanForm) -> None:
    """Triton has no others."""
    for program in (*programs(form, True), *programs(form, False)):
        for op in program.body.walk():
            for value in op.results:
                shape = value.type.shape if isinstance(value.type, RegisterType) else ()
                assert all(size == power_of_two(size) for size in shape), op
