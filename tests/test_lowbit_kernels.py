"""Compiled products with packed weights against float64, under a bound from their roundings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lowbit_programs import (
    Form,
    Weight,
    check,
    draw,
    lanes_of,
    oracle,
    program,
    tensors,
)
from tilewright.ir.dtypes import TABLE, table_dtype
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import ORDERS
from tilewright.ir.target import named_target
from tilewright.passes.to_tile.lowbit.byte_codes import byte_codes
from tilewright.passes.to_tile.lowbit.pairs import pair_table
from tilewright.runtime.targets import resolve_target

TARGETS = ("host", "x86-64-v3")
ROWS = (0, 1, 2, 3, 5, 8, 9, 17, 40)  # every class of row counts, and what does not fill one
GROUPS = (32, 7, 100, 1, 20, 16, 3, 64)  # odd ones, one longer than all rows
LENGTHS = (65, 70, 33, 5, 128, 96, 31, 64)
ZEROS = ("", "u8", "f16", "", "f32", "", "u8", "bf16")
SCALES = ("f16", "bf16", "f32", "e8m0", "f8e4m3")
ENDS = ((), ("bias",), ("silu",), ("residual",), ("silu", "bias", "residual"))
UNEVEN = table_dtype("test_uneven", [-3.0, -1.0, 0.7, 7.1])
FLOATS = [d.name for d in TABLE.values() if d.is_float and d.bits <= 8 and d.name != "e8m0"]
FORMATS = [*FLOATS, "nf4", UNEVEN.name]


def sweep(integer: bool) -> Iterator[Form]:
    """Every width and order; groups, lengths, zeros, scales and ends take turns."""
    for at, (bits, order) in enumerate(itertools.product(range(1, 9), ORDERS)):
        group, zeros = GROUPS[(at + at // 8) % 8], ZEROS[(at + at // 8) % 8]
        zero = 0 if zeros else (0, 1 << bits - 1)[at % 3 > 0]
        weight = Weight(f"u{bits}", group, order, zero, zeros, SCALES[at % 5])
        activation = group if integer else 0
        yield Form((weight,), LENGTHS[(3 * at + at // 8) % 8], activation, ENDS[at % 4])


GATES = [
    Form((Weight("u4", 32, zero=8), Weight("u4", 32, zero=8)), 96, 0, ("silu",)),
    Form((Weight("u3", 20, zeros="f16"), Weight("f6e3m2", 64)), 70, 0, ENDS[4]),
    Form((Weight("u4", 32, zeros="u8"), Weight("u2", 32, zero=1)), 96, 32, ("silu",)),
    Form((Weight("i6", 64, zero=32), Weight("f4e2m1", 64, scales="e8m0")), 130, 64, ("silu",)),
]
COARSE = [
    Form((Weight("u4", 128, zeros="u8"),), 300, 32),  # groups of activations within a group
    Form((Weight("u2", 256, zero=2, scales="f32"),), 200, 64, ("bias",)),  # one group in all
    Form((Weight("u8", 4096, zero=128),), 300, 64),
]


def narrow() -> Iterator[Form]:
    """Activations in bf16: pairs of codes where they lie in one group and their values are bf16."""
    for at, (bits, order) in enumerate(itertools.product(range(1, 9), ("halves", "quads"))):
        zeros, group = ZEROS[(at + 3) % 8], (32, 7, 64, 20)[at % 4]
        zero = 0 if zeros else 1 << bits - 1
        weight = Weight(f"u{bits}", group, order, zero, zeros, SCALES[at % 5])
        yield Form((weight,), (64, 70, 33, 128)[at // 2 % 4], 0, ENDS[at % 4], "bf16")
    for at, dtype in enumerate(["f7e3m3", "f7e6m0", "f6e4m1", "f5e4m0", "f4e2m1", "nf4", "f8e4m3"]):
        yield Form((Weight(dtype, 32, "halves", scales=SCALES[at % 5]),), 96, 0, (), "bf16")
    gate = Weight("u4", 32, "halves", zero=8), Weight("f6e3m2", 64, "halves")
    yield Form(gate, 70, 0, ENDS[4], "bf16")


NARROW = list(narrow())
CASES = [*sweep(False), *sweep(True), *GATES, *COARSE, *NARROW]


@pytest.mark.parametrize("form", CASES, ids=str)
def test_products_of_every_width(form: Form) -> None:
    """One row for one target, by turns every other number of them for the other."""
    at = CASES.index(form)
    check(form, 1, 3, target=TARGETS[at % 2], seed=at)
    check(form, ROWS[1 + at // 2 % 8], 1 + at % 4, target=TARGETS[(at + 1) % 2], seed=at)


def test_pairs_of_bf16_are_multiplied_at_once() -> None:
    """Codes of up to six bits, and floats of seven, where the target has the instruction; not where
    a pair would lie in two groups, nor where values are finer than bf16's."""
    target = named_target("znver4")
    for form in NARROW:
        for w in form.weights:
            zero = 0 if w.zeros else w.zero
            packing, dtype = w.packing(16), TABLE[w.dtype]
            given = packing, dtype, zero, form.length
            found = pair_table(*given, target)
            assert pair_table(*given, named_target("x86-64-v4")) is None
            if w.order == "halves":
                fits = dtype.bits < 7 or (dtype.bits == 7 and dtype.is_float)
                whole = form.length % 2 == 0 and (w.group % 2 == 0 or w.group >= form.length)
                assert (found is not None) == (fits and whole and w.dtype != "nf4"), str(form)


DRAWN = [
    Form((Weight("u4", 32, "halves", zeros="f16"),), 70, 0, ("bias",), "bf16"),
    Form((Weight("u4", 32, zeros="u8"),), 70, 0, ("bias",)),
    Form((Weight("u5", 7, "fields", zero=16, scales="f32"),), 33, 7, ("residual",)),
    GATES[3],
]


@pytest.mark.parametrize("form", DRAWN, ids=str)
@given(
    rows=st.sampled_from(ROWS),
    blocks=st.integers(0, 6),
    seed=st.integers(0, 2**31),
    power=st.sampled_from([-30, 0, 20]),
    thin=st.sampled_from([0.0, 0.9, 1.0]),
)
@settings(max_examples=40)
def test_any_numbers_in_any_number_of_rows(
    form: Form, rows: int, blocks: int, seed: int, power: int, thin: float
) -> None:
    """Activations large, small and, in whole groups, zero."""
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.standard_normal((rows, form.length)), power).astype("f4")
    x *= rng.random((rows, form.length)) >= thin
    check(form, rows, blocks, seed=seed, x=x)


@pytest.mark.parametrize("dtype", FORMATS)
def test_float_formats_and_tables(dtype: str) -> None:
    at = FORMATS.index(dtype)
    weight = Weight(dtype, (32, 12, 40)[at % 3], ORDERS[at // 2 % 4], scales=SCALES[at % 5])
    check(Form((weight,), 40), 1, 2, target=TARGETS[at % 2], seed=at)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_float_formats_as_bytes_are_exact(dtype: str, target: str) -> None:
    """Products of whole activations with steps of 1 are what they would be in exact arithmetic; a
    format that is no integer in disguise is refused."""
    form, lanes = Form((Weight(dtype, 32, scales="f32"),), 70, 32, ()), lanes_of(target)
    x = np.random.default_rng(len(dtype)).integers(-127, 128, (3, 70)).astype("f4")
    inputs = draw(form, lanes, 3, 2, 0, x).inputs
    inputs[1], inputs[4] = np.ones_like(inputs[1]), np.full_like(inputs[4], 0.5)
    if byte_codes(TABLE[dtype], resolve_target(target)) is None:
        with pytest.raises(UnsupportedError, match=f"codes of {dtype} as bytes"):
            program(form, target)(*tensors(form, inputs))
        return
    (got,) = program(form, target)(*tensors(form, inputs))
    assert np.array_equal(got.double().numpy(), oracle(form, lanes, inputs))


WHERE = [("host", "mlir"), ("x86-64-v3", "mlir"), ("scalar", "numba"), ("host", "interpreter")]


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("scales", ["e8m0", "f8e4m3"])
def test_every_scale_in_a_byte(scales: str, where: tuple[str, str]) -> None:
    """A row for each of the 256 codes, denormals and NaN among them; single terms are exact."""
    target, backend = where
    if backend == "numba":
        pytest.importorskip("numba")
    form, lanes = Form((Weight("u4", 8, zero=3, scales=scales),), 8), lanes_of(target)
    x = np.zeros((1, 8), "f4")
    x[0, 5] = 2.0**-4
    inputs = draw(form, lanes, 1, 256 // lanes, 0, x).inputs
    inputs[2] = np.arange(256, dtype=np.uint8).reshape(inputs[2].shape)
    (got,) = program(form, target, backend)(*tensors(form, inputs))
    want = oracle(form, lanes, inputs)
    assert np.array_equal(got.double().numpy(), want, equal_nan=True)
    assert np.isnan(want).sum() == {"e8m0": 1, "f8e4m3": 2}[scales]


EMPTY = [
    Form((Weight("u4", 32, zero=8),), 0, 0, ("bias",)),
    Form((Weight("u4", 32, zeros="u8"),), 0, 32, ("bias", "residual")),
    Form((Weight("u3", 7, zeros="f16"),), 1, 0),
    Form((Weight("u3", 7, "fields", zero=3),), 1, 7, ("bias",)),
    Form((Weight("u4", 32), Weight("u5", 7)), 0, 0, ("silu",)),
    Form((Weight("u4", 32),), 64, 32),
]


@pytest.mark.parametrize("backend", ["mlir", "interpreter"])
@pytest.mark.parametrize("form", EMPTY, ids=str)
def test_nothing_to_sum_and_nothing_to_write(form: Form, backend: str) -> None:
    """No codes give zero (and the bias), no rows or no weights an empty result."""
    for rows, blocks in ((0, 2), (2, 0), (3, 2), (0, 0)):
        check(form, rows, blocks, backend=backend)


PORTABLE = [
    Form((Weight("u4", 32, zeros="u8"),), 70, 0, ("bias",)),
    Form((Weight("nf4", 20, scales="e8m0"),), 33, 0, ("residual",)),
    Form((Weight("u3", 12, "fields", zero=4, scales="f8e4m3"),), 31, 12),
    Form((Weight("f6e2m3", 8, scales="bf16"), Weight("u1", 8)), 20, 8, ("silu",)),
    Form((Weight("f5e2m2", 7),), 15, 0),
]


@pytest.mark.parametrize("form", PORTABLE, ids=str)
def test_the_portable_back_end(form: Form) -> None:
    pytest.importorskip("numba")
    for rows in ROWS[1:]:
        check(form, rows, 5, backend="numba", seed=rows)


@pytest.mark.parametrize("form", [*PORTABLE, GATES[2], COARSE[1]], ids=str)
def test_the_interpreter_runs_the_same_programs(form: Form) -> None:
    """On vectors, and within the bound: what back ends compile is right as it is written."""
    for rows, blocks in ((1, 1), (3, 2)):
        check(form, rows, blocks, backend="interpreter", seed=rows)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("form", [DRAWN[0], GATES[3]], ids=str)
def test_bits_do_not_depend_on_threads(form: Form, rows: int) -> None:
    problem = draw(form, lanes_of("host"), rows, 23, rows)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            (y,) = program(form, "host")(*tensors(form, problem.inputs))
            results.append(y.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_what_has_no_kernel_is_named() -> None:
    """Weights packed for other vectors, and bytes with a zero but without their sums."""
    form = Form((Weight("u4", 32, zero=8),), 64)
    other = "x86-64-v3" if lanes_of("host") != 8 else "x86-64-v4"
    inputs: list[Any] = draw(form, lanes_of(other), 2, 2, 0).inputs
    compiled = program(form, other)
    compiled.target = resolve_target("host")
    compiled.steps[0].family.target = compiled.target  # type: ignore[union-attr]
    with pytest.raises(UnsupportedError, match=r"packed for \d+ lanes, the target has"):
        compiled(*tensors(form, inputs))
    program.cache_clear()
