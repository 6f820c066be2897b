"""Grouped products of floats against f64: every layout of weights, tiling, target and back end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.activation_functions import ACTIVATIONS
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_tile import Store
from tilewright.ir.printer import print_graph
from tilewright.passes.to_tile.experts.columns import Columns
from tilewright.passes.to_tile.experts.floating import grouped_program
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, Tiling, Way, tiling
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.targets import host_target, resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

SILU = GateFunction("silu")
FUNCTIONS: dict[str, Any] = {
    "": lambda y: y,
    "relu": torch.relu,
    "relu2": lambda y: torch.relu(y).square(),
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
}
COUNTS = (3, 0, 1, 9, 0)  # rows of each expert
# products, turned, woven
KINDS = [(1, False, False), (2, False, False), (1, True, False), (2, True, False), (2, True, True)]
ROWS = (1, 2, 4, 100)  # of which a tiling is for as many


def dtype(name: Any) -> torch.dtype:
    return TORCH_DTYPES[str(name)]


def oracle(form: FloatForm, x: Any, weights: Any, biases: Any, scale: Any) -> torch.Tensor:
    """The formula, in f64: x [P, K] sorted, weights [E, N, K]."""
    owner = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    sides = [(w[owner].double() @ x.double()[:, :, None])[:, :, 0] for w in weights]
    if biases:
        sides = [y + b[owner].double() for y, b in zip(sides, biases, strict=True)]
    if form.woven:
        sides = [sides[0][:, h::2] for h in range(2)]
    gate, limit = form.gate, form.gate.limit
    if limit is not None and len(sides) == 2:
        sides = [sides[0].clamp(max=limit), sides[1].clamp(-limit, limit)]
    if gate.alpha != 1.0:
        y = sides[0] * torch.sigmoid(sides[0] * gate.alpha)
    else:
        y = FUNCTIONS[gate.function](sides[0])
    if len(sides) == 2:
        y = y * (sides[1] + gate.shift)
    found: torch.Tensor = y * scale[:, None].double() if form.scaled else y
    return found


def check(form: FloatForm, how: Tiling, where: tuple[str, str], seed: int = 0) -> None:
    """A kernel against the formula, on some tensors."""
    random = torch.Generator().manual_seed(seed)
    rows, experts, tokens = sum(COUNTS), len(COUNTS), torch.randperm(20)[: sum(COUNTS)]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    given_x = draw(20 if form.chosen else rows, form.length).to(dtype(form.x))
    weights = []
    for _ in range(form.weights):
        weight = draw(experts, form.columns, form.length).to(dtype(form.weight))
        weights.append(weight.mT.contiguous().mT if form.turned else weight)
    biases = []
    if form.bias is not None:
        biases = [draw(experts, form.columns).to(dtype(form.bias)) for _ in weights]
    scale = torch.rand(rows, generator=random)
    active, starts = torch.tensor([0, 2, 3, 0]).int(), torch.tensor([0, 3, 4, 13, 13]).int()
    before = (tokens.int(),) if form.chosen else ()
    after = (scale,) if form.scaled else ()
    program = grouped_program(form, resolve_target(where[0]), how)
    kernel = make_tile_kernel(program, resolve_target(where[0]), where[1])
    (got,) = kernel(active, starts, *before, given_x, *weights, *biases, *after)
    want = oracle(form, given_x[tokens] if form.chosen else given_x, weights, biases, scale)
    assert got.dtype == dtype(form.out)
    # of the largest number: sums that cancel keep the error of their parts
    bound = (2e-5 if form.out == F32 else 2**-8) * float(want.abs().max() + 1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


@st.composite
def forms(draw: Any, lengths: tuple[int, ...] = (1, 2, 5, 16, 34, 37)) -> FloatForm:
    """Any layout, dtypes, function and size; most sizes fill no vector."""
    narrow = draw(st.sampled_from([BF16, BF16, F32, F16]))
    function, (products, turned, woven) = (
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.sampled_from(KINDS)),
    )
    numbers: dict[str, Any] = {"limit": draw(st.sampled_from([None, 0.5]))}
    if function == "silu" and products == 2:
        numbers |= {"alpha": draw(st.sampled_from([1.0, 1.702])), "shift": 1.0}
    return FloatForm(
        draw(st.sampled_from(lengths)),
        draw(st.sampled_from([1, 3, 16, 40, 70])),
        narrow,
        draw(st.sampled_from([narrow, F32])),
        products,
        GateFunction(function, **numbers),
        draw(st.sampled_from([None, narrow, F32])),
        draw(st.booleans()),
        turned,
        woven,
        draw(st.booleans()),
        draw(st.sampled_from([F32, BF16])),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_gates(kind: tuple[int, bool, bool], rows: int) -> None:
    """With numbers as gpt-oss has them, gate and up are not alike."""
    products, turned, woven = kind
    gate = GateFunction("silu", 1.702, 0.5, 1.0) if products == 2 else SILU
    form = FloatForm(34, 40, BF16, BF16, products, gate, BF16, False, turned, woven, True)
    check(form, tiling(form, host_target(), rows), ("host", "mlir"))


@settings(max_examples=10)
@given(forms(), st.sampled_from(ROWS), st.integers(0, 99))
def test_any_form_on_this_machine(form: FloatForm, rows: int, seed: int) -> None:
    check(form, tiling(form, host_target(), rows), ("host", "mlir"), seed)


@settings(max_examples=10)
@given(forms(), st.sampled_from(ROWS), st.integers(0, 99))
def test_any_form_with_avx2(form: FloatForm, rows: int, seed: int) -> None:
    check(form, tiling(form, resolve_target("x86-64-v3"), rows), ("x86-64-v3", "mlir"), seed)


@settings(max_examples=8)
@given(forms(lengths=(1, 5, 34)), st.sampled_from(ROWS), st.sampled_from(["znver4", "x86-64-v3"]))
def test_any_form_by_its_meaning(form: FloatForm, rows: int, target: str) -> None:
    """The interpreter also sees whether something outside of a buffer is read."""
    check(form, tiling(form, resolve_target(target), rows), (target, "interpreter"))


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("turned", [False, True])
def test_forms_of_one_lane(turned: bool, rows: int) -> None:
    pytest.importorskip("numba")
    form = FloatForm(5, 3, BF16, BF16, 2, SILU, BF16, turned=turned, woven=turned, chosen=True)
    check(form, tiling(form, resolve_target("scalar"), rows), ("scalar", "numba"))


@pytest.mark.parametrize("turned", [False, True])
def test_rows_longer_than_what_is_added_up_at_once(turned: bool) -> None:
    form = FloatForm(300, 20, F32, F32, turned=turned)
    for rows in (4, 100):
        check(form, tiling(form, host_target(), rows), ("host", "mlir"))


def test_ways() -> None:
    """Few rows read weights in place, in their own order; many keep them in scratch memory."""
    target = resolve_target("znver4")
    plain, turned = (FloatForm(64, 64, BF16, BF16, turned=t) for t in (False, True))
    assert [tiling(plain, target, rows).way for rows in (1, 2, 3)] == [
        *[Way.ELEMENTS] * 2,
        Way.PANEL,
    ]
    assert [tiling(turned, target, rows).way for rows in (1, 4, 5)] == [
        *[Way.COLUMNS] * 2,
        Way.PANEL,
    ]
    for form in (plain, turned):
        wide = tiling(form, target, 100)
        narrow = tiling(form, resolve_target("x86-64-v3"), 100)
        assert wide.rows * wide.vectors <= 26 and narrow.rows * narrow.vectors <= 13


@settings(max_examples=20)
@given(forms(), st.sampled_from(ROWS), st.sampled_from(["znver4", "x86-64-v3"]))
def test_tiles_of_columns_are_as_wide_as_fits(form: FloatForm, rows: int, name: str) -> None:
    """Where columns fill a vector (woven: two, gate and up) no tile reaches past them, and one more
    would do so or need more registers than the tiling has."""
    target = resolve_target(name)
    how = tiling(form, target, rows)
    if how.way == Way.ELEMENTS:
        return
    span = Columns(form, target, how).span
    unit = target.lanes * (2 if form.woven else 1)
    most = max(unit, min(form.columns, how.vectors // form.weights * target.lanes))
    assert span % unit == 0 and span <= most < span + unit
    store_bounds = stores(grouped_program(form, target, how))
    assert all(bool(bounds) == (form.columns < span) for bounds in store_bounds)


def stores(program: Graph) -> list[Any]:
    """The bounds of every store of results."""
    out = program.params[-1]
    every = program.body.walk()
    return [op.bounds for op in every if isinstance(op, Store) and op.operands[1] is out]


def test_rows_are_bounded_where_a_tile_may_reach_past_them() -> None:
    """Of one row there is none past the last: only columns are bounded."""
    target, form = resolve_target("x86-64-v3"), FloatForm(16, 40, F32, F32)
    for rows, dims in ((1, [1]), (2, [0, 1]), (4, [0, 1])):
        (bounds,) = stores(grouped_program(form, target, Tiling(Way.ELEMENTS, rows)))
        assert [dim for dim, _ in bounds] == dims


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_bf16_is_multiplied_in_pairs_where_there_is_an_instruction(turned: bool, rows: int) -> None:
    form = FloatForm(64, 64, BF16, BF16, turned=turned)

    def widened(form: FloatForm, target: str) -> bool:
        how = tiling(form, resolve_target(target), rows)
        text = print_graph(grouped_program(form, resolve_target(target), how))
        assert ("bf16, " in text) == (form.weight == BF16)
        return "math.cast" in text

    assert not widened(form, "znver4")
    if rows == 1 and not turned:
        target = resolve_target("x86-64-v3")
        program = grouped_program(form, resolve_target("znver4"), Tiling(Way.ELEMENTS, 1))
        with pytest.raises(UnsupportedError, match=r"tile\.pair_dot of .* for x86-64-v3"):
            make_tile_kernel(program, target, "mlir")
    assert widened(form, "x86-64-v3") and widened(form, "skylake-avx512")
    assert widened(replace(form, length=63), "znver4") and widened(replace(form, x=F32), "znver4")
