"""Grouped products with experts' quantised weights: every kind of weight, on every target."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.expert_lowbit_cases import CASES, EXPERTS, check_products, choices
from tilewright.runtime import tile_kernel
from tilewright.runtime.experts import packed
from tilewright.runtime.experts import plan as planning
from tilewright.runtime.experts.form import ExpertsForm
from tilewright.runtime.lowbit import linear
from tilewright.runtime.once import Once
from tilewright.runtime.targets import resolve_target

# by target and back end; the first two cases on the host below, with any number of rows
PLACES = [
    *(("host", "mlir", at) for at in range(2, len(CASES))),
    *(("host", "interpreter", at) for at in range(len(CASES))),
    *(("x86-64-v3", "mlir", at) for at in (0, 5)),
    ("scalar", "numba", 6),
]


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_both_products_are_exact(
    where: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, backend, at = where
    if backend == "numba":
        pytest.importorskip("numba")
    for module in (packed, linear, tile_kernel):
        monkeypatch.setattr(module, "kernel_target", lambda: resolve_target(name))
    monkeypatch.setattr(tile_kernel, "default_backend", lambda: backend)
    for module, kept in ((packed, "KERNELS"), (packed, "ROUNDING"), (planning, "_KERNELS")):
        monkeypatch.setattr(module, kept, Once(getattr(module, kept).make))
    case = CASES[at]
    form = case.form()
    assert packed.applies(form) == packed.applies(form.down) == ""
    # of one row and of four at a time
    for tokens in (1, 4) if backend == "interpreter" else (1 + 3 * (at % 2),):
        check_products(case, form, choices(tokens, 2, EXPERTS - 1, tokens))


@lru_cache
def form_of(at: int, experts: int) -> ExpertsForm:
    return replace(CASES[at].form(experts), skip=True)


@given(
    at=st.integers(0, 1),
    tokens=st.integers(1, 40),
    chosen=st.integers(1, 4),
    experts=st.sampled_from([1, 5, 12]),
    beyond=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20)
def test_any_rows_of_any_experts(
    at: int, tokens: int, chosen: int, experts: int, beyond: int, seed: int
) -> None:
    """Many rows of an expert, none, and rows of experts elsewhere."""
    chosen = min(chosen, experts + beyond)
    check_products(CASES[at], form_of(at, experts), choices(tokens, chosen, experts + beyond, seed))
