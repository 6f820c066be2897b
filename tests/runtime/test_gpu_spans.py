"""Blocks that work items walk, found by a kernel before: they hold all that masks show, what is
called whole is, and results are as without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tilewright
from tests.backends.cuda.running import run_emulated
from tests.backends.gpu_corpus import called_module
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.gpu import using_backend, using_schedule
from tilewright.ir.core import Graph
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import kernel_passes, run_passes
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_tile.lower import gpu_programs_with_spans
from tilewright.passes.to_tile.tables import with_tables
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime import gpu_spans
from tilewright.runtime.gpu_spans import WithSpans

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
SM90 = named_target("cuda-sm90")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def programs(name: str, rows: int = 0) -> tuple[Graph, ...]:
    """Both programs of attention with a mask that is measured, on blocks of 32 by 16."""
    (graph,) = map(with_tables, run_passes(called_module(name), kernel_passes(SM90)).graphs)
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    return gpu_programs_with_spans(graph, SM90, units, BlockSchedule(32, 16, 2, 2), rows)


def test_masks_that_look_up_have_spans() -> None:
    first, second = programs("documents")
    assert [str(size) for size, _ in first.attrs["grid"]] == ["1", "1", "N"]
    assert len(second.params) == len(first.params) + 1
    for name in ("window", "alibi", "soft cap"):  # bounds of positions are cheap
        assert programs(name) == ()
    assert programs("documents", rows=16) == ()  # shared out: every part looks for itself


@needs_compiler
@settings(max_examples=25, phases=QUICK, deadline=None)
@given(length=st.integers(1, 150), cuts=st.lists(st.integers(1, 149), max_size=6))
def test_spans_hold_what_is_seen(length: int, cuts: list[int]) -> None:
    first, _ = programs("documents")
    number = np.zeros(length, np.int64)
    number[[cut for cut in cuts if cut < length]] = 1
    number = number.cumsum().astype(np.int32)
    steps = range(0, length, 64)
    low, high = (np.array([f(number[i : i + 64]) for i in steps], np.int32) for f in (min, max))
    q, k, v = (np.zeros((1, 2, length, 128), np.float32) for _ in "qkv")
    sizes = {"B": 1, "H": 2, "N": length, "M": length, "row_blocks": -(-length // 32)}
    sizes |= {"number_0": length, "number_blocks": len(low)}
    threads = threads_program(first, SM90)
    given_ = [q, k, v, number, low, high]
    (spans,) = run_emulated(threads, emit_cuda(threads, "kernel"), given_, sizes)
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    seen = (number[i] == number[j]) & (j <= i)
    for block, (begin, end, whole, past) in enumerate(spans):
        rows = seen[32 * block : 32 * block + 32]
        assert not rows[:, :begin].any() and not rows[:, end:].any()
        assert whole >= past or (begin <= whole and past <= end and rows[:, whole:past].all())
        first_known = 32 * block // 64 * 64  # tables have the least and the greatest of 64 numbers
        if len(set(number[first_known : first_known + 64])) == 1:  # no block more, as far as known
            shown = np.flatnonzero(rows.any(0))
            assert shown[0] // 64 == begin // 64 and shown[-1] // 64 == (end - 1) // 64


Mask = Callable[..., torch.Tensor]


def masks(length: int, heads: int) -> dict[str, Mask]:
    number = torch.randint(0, 4, (heads, length)).sort(-1).values.int()
    one = number[0]
    return {
        "documents": lambda b, h, i, j: one[i] == one[j],
        "causal documents": lambda b, h, i, j: (one[i] == one[j]) & (i >= j),
        "documents of heads": lambda b, h, i, j: number[h, i] == number[h, j],
    }


@needs_compiler
@pytest.mark.parametrize("kind", ["documents", "causal documents", "documents of heads"])
def test_results_are_as_without(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    length, heads = 150, 2
    torch.manual_seed(3)
    mask = masks(length, heads)[kind]
    q, k, v = (torch.randn(2, heads, length, 64).bfloat16() for _ in "qkv")
    found: list[Any] = []
    calls: list[WithSpans] = []
    memory = WithSpans._found

    def watched(self: WithSpans, *given_: Any) -> Any:
        calls.append(self)
        found.append(memory(self, *given_))
        return found[-1]

    monkeypatch.setattr(WithSpans, "_found", watched)
    results = []
    for most in (10**6, -1):  # never, always
        monkeypatch.setattr(gpu_spans, "MOST", most)
        for call in calls:  # kernels are kept
            call.known.clear()
        with using_backend("cuda-host"), using_schedule(64, 32, 4, 2):
            results.append(tilewright.attention(q, k, v, mask_mod=mask))
    assert found == [None, (*((heads,) if "heads" in kind else ()), 3, 4)]
    assert torch.equal(*results)
