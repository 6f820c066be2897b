"""Expert-parallel layers in 2 and 4 processes give what one process gives, and send as said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.frontend.experts.ranks import cases, run_cases, run_cuda, run_ranks
from tilewright.frontend.experts.parallel import next_home
from tilewright.runtime.placement import traffic
from tilewright.runtime.placement.trace import Trace
from tilewright.runtime.placement.traffic import coherent_rows, exchange_rows

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-2}


@given(st.integers(0, 1 << 30), st.booleans())
def test_both_rules_of_where_a_token_stays_are_one(seed: int, known: bool) -> None:
    generator = np.random.default_rng(seed)
    counts, home = generator.integers(0, 3, (9, 4)), generator.integers(0, 4, 9)
    expected = traffic.next_home(counts, home if known else None)
    given = torch.from_numpy(home) if known else None
    assert next_home(torch.from_numpy(counts), given).tolist() == expected.tolist()
    for row, stays, was in zip(counts, expected, home, strict=True):
        assert row[stays] == row.max()
        assert stays == (was if known and row[was] == row.max() else int(row.argmax()))


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each rank found, of all cases."""
    ranks = request.param
    return run_ranks(tmp_path_factory.mktemp("ranks"), ranks, run_cases)


def test_both_modes_give_what_one_process_gives(found: list[Any]) -> None:
    for at, case in enumerate(cases(len(found))):
        alone = case.alone()
        limit = TOLERANCE[case.dtype] * max(1.0, float(alone.abs().max())) if len(alone) else 0
        exchanged = torch.cat([rank["cases"][at]["exchange"] for rank in found])
        assert exchanged.dtype == alone.dtype and exchanged.shape == alone.shape
        torch.testing.assert_close(exchanged, alone, atol=limit, rtol=0)
        for rank in found:  # all of them know everything again
            torch.testing.assert_close(rank["cases"][at]["coherent"], alone, atol=limit, rtol=0)
            assert torch.equal(rank["cases"][at]["coherent"], found[0]["cases"][at]["coherent"])


def test_results_do_not_depend_on_timing(found: list[Any]) -> None:
    assert all(case["again"] for rank in found for case in rank["cases"])


def test_what_is_sent_is_what_the_trace_says(found: list[Any]) -> None:
    ranks = len(found)
    for at, case in enumerate(cases(ranks)):
        if not len(case.x):
            continue
        size = case.x.shape[1] * case.x.element_size()
        trace = Trace(case.ids.numpy(), len(case.devices[0]))
        places = np.asarray(case.devices)
        homes = np.repeat(np.arange(ranks), case.sizes)
        both = exchange_rows(trace, places, ranks, homes), coherent_rows(trace, places, ranks)
        for mode, expected in enumerate(both):
            steps = [step for rank in found for step in rank["cases"][at]["steps"][mode].steps]
            for name, rows in (("dispatch", expected.dispatch), ("combine", expected.combine)):
                sent = [step for step in steps if step.name == name]
                assert sum(step.rows for step in sent) == rows.sum()
                assert sum(step.payload for step in sent) == rows.sum() * size


def test_context_coherence_needs_one_all_to_all_for_top_1(found: list[Any]) -> None:
    tops = set()
    for at, case in enumerate(cases(len(found))):
        k, layers = case.ids.shape[2], case.ids.shape[1]
        tops.add(min(k, 2))
        for rank in found:
            exchange, coherent = (
                [step.name for step in traffic.steps] for traffic in rank["cases"][at]["steps"]
            )
            assert exchange == ["dispatch", "combine"] * layers
            each = ["dispatch"] if k == 1 else ["dispatch", "combine"]
            assert coherent == each * layers + ["gather"]
    assert tops == {1, 2}


@pytest.mark.gpu
def test_one_rank_of_nccl(tmp_path: Path) -> None:
    (found,) = run_ranks(tmp_path, 1, run_cuda, "nccl")
    torch.testing.assert_close(found["exchange"], found["alone"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["coherent"], found["alone"], atol=1e-5, rtol=0)


def test_wrong_tokens_are_refused_by_all_ranks(found: list[Any]) -> None:
    for at, rank in enumerate(found):
        wanted = "expert id 99 is out of range" if at == 1 else "rank 1 refused its tokens"
        assert wanted in rank["out of range"]
        assert "have to be the same everywhere" in rank["other sizes"]
        torch.testing.assert_close(rank["after"], found[0]["after"])
