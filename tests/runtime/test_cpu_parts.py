"""Compiled kernels whose work items are too few for the threads, computed in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tests.attention_programs import Attention
from tests.test_fused_programs import PROGRAMS, check_program
from tilewright.ir.parser import parse
from tilewright.runtime import cpu_parts
from tilewright.runtime.backends import default_backend
from tilewright.runtime.cpu_parts import JOINING, MOST, Pair, parts_for
from tilewright.runtime.program import Program
from tilewright.runtime.threads import set_num_threads

pytestmark = pytest.mark.skipif(default_backend() != "mlir", reason="kernels of the MLIR back end")

# Of each kind of what is carried from block to block: extremes, sums, rescaled ones, several
SHARED = (
    *("attention", "attention, safe", "attention and its statistics", "sigmoid attention"),
    *("attention, masked by a tensor", "attention, temperature after the maximum"),
    *("difference of two attentions", "log-sum-exp", "cross-entropy", "weights of two maxima"),
    *("entropy as it is defined", "divergence of two softmaxes", "variance under a softmax"),
    *("ratio inside the sum", "constant along the row", "RMSNorm of a long row and a product"),
)
# Rows by themselves, results for every position, and statistics that are sums so far (Welford's)
WHOLE = ("softmax", "attention and its weights", "mean and variance")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many parts calls had, with three threads and as if positions took very long."""
    found: list[int] = []
    call = Pair.__call__

    def counted(self: Pair, tensors: Any, parts: int) -> Any:
        found.append(parts)
        return call(self, tensors, parts)

    monkeypatch.setattr(Pair, "__call__", counted)
    monkeypatch.setattr(cpu_parts, "READING", 10.0)
    set_num_threads(3)
    yield found
    set_num_threads(None)


@pytest.mark.parametrize("name", [*SHARED, *WHOLE])
def test_fused_programs(name: str, used: list[int]) -> None:
    program = Program(parse(PROGRAMS[name].text))
    for rows, length in ((1, 777), (1, 5), (30, 900)):
        check_program(name, program, rows, length)
    assert bool(used) != (name in WHOLE), used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(dtype: torch.dtype, causal: bool, used: list[int]) -> None:
    def seen(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx + keys - queries

    rng = torch.Generator().manual_seed(0)
    for heads, queries, keys, width in ((1, 1, 900, 64), (2, 3, 700, 40), (4, 1, 3000, 128)):
        q, k, v = (
            torch.randn(1, heads, n, width, generator=rng).to(dtype) for n in (queries, keys, keys)
        )
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if causal else None
        got = tilewright.attention(q, k, v, mask_mod=seen if causal else None)
        want = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), mask
        )
        close = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got.double(), want, rtol=close, atol=close)
    assert used


def test_windows_are_left_to_one_thread(used: list[int]) -> None:
    """Of so many keys a query sees 200, which take less time than joining parts."""

    def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx > q_idx + 4700

    q, k, v = (torch.randn(1, 1, n, 64) for n in (1, 5000, 5000))
    got = tilewright.attention(q, k, v, mask_mod=window)
    torch.testing.assert_close(
        got, torch.nn.functional.scaled_dot_product_attention(q, k[:, :, 4701:], v[:, :, 4701:])
    )
    assert not used


def test_same_bits_in_every_run_and_with_as_many_threads(used: list[int]) -> None:
    program = Program(parse(Attention(64, 64).text()))
    q, k, v = (torch.randn(1, 1, 1, n, 64) for n in (1, 5000, 5000))
    q, k, v = q[0], k[0], v[0]
    (first,) = program(q, k, v)
    assert all(torch.equal(first, program(q, k, v)[0]) for _ in range(5))
    assert len(set(used)) == 1


@pytest.mark.parametrize("level", ["threads", "batch"])
def test_levels_that_threads_may_not_show_in(level: str, used: list[int]) -> None:
    q, k, v = (torch.randn(1, 1, n, 64) for n in (1, 5000, 5000))
    tilewright.attention(q, k, v, deterministic=level)
    assert not used
    tilewright.attention(q, k, v, deterministic="run")
    assert used


@given(st.integers(1, 200), st.integers(0, 1 << 20), st.integers(1, 64))
def test_number_of_parts(items: int, microseconds: int, workers: int) -> None:
    """The busiest thread does less, by more than joining takes."""
    parts = parts_for(items, microseconds, workers)
    assert 1 <= parts <= MOST
    alone, shared = -(-items // workers), -(-items * parts // workers) / parts
    if parts > 1:
        assert shared * microseconds + JOINING < alone * microseconds
    if workers == 1 or items % workers == 0 or microseconds <= JOINING:
        assert parts == 1
    if items == 1 and workers <= 8 and microseconds > 1000 * JOINING:
        assert parts % workers == 0  # all of them have as much to do
