"""The benchmark of placement runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tilewright.bench import placement
from tilewright.bench.placement import WORKLOADS, Workload
from tilewright.bench.placement_model import TINY, trained_trace
from tilewright.bench.placement_ranks import HIDDEN, payload_bytes
from tilewright.placement import Judge, Placement, Topology, grouped_trace, in_order

pytestmark = pytest.mark.usefixtures("two_threads")


def test_a_generated_trace_is_placed_well_and_the_small_one_proven() -> None:
    hops, gap = placement.generated(Workload(8, 4, 1, 4, tokens=2000, proven=True, seconds=2))
    assert hops.met and hops.value < 0.3 and hops.details["proven"]
    assert hops.details["placed"]["cost"] <= hops.details["hidden groups"]["cost"]
    assert gap.met and gap.value == 0


def test_every_workload_has_its_own_name_and_fits() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    for workload in (*WORKLOADS, *(w.smaller() for w in WORKLOADS)):
        assert workload.choices <= workload.experts // workload.gpus


def test_the_trained_models_routing_is_recorded() -> None:
    trained = trained_trace(TINY)
    trace = trained.trace
    assert (trace.layers, trace.experts, trace.choices) == (TINY.layers, TINY.experts, 2)
    assert trace.tokens == 640 and 1 <= trained.steps <= TINY.steps


def test_bytes_are_those_of_the_rows() -> None:
    trace, _ = grouped_trace(40, 2, 4, 2)
    topology = Topology(2)
    places = in_order(2, topology, 4)
    sent = payload_bytes(trace, Placement(places, topology))
    rows = Judge(trace, topology)("in order", places)
    assert sent["exchange"] == pytest.approx(rows.exchange_rows * 40 * HIDDEN * 4)
    assert sent["coherent"] == pytest.approx(rows.coherent_rows * 40 * HIDDEN * 4)


def test_the_command_says_what_it_measures() -> None:
    result = CliRunner().invoke(placement.app, ["--quick", "--only", "2 nodes"])
    assert result.exit_code == 0 and "16 GPUs on 2 nodes" in result.output
    refused = CliRunner().invoke(placement.app, ["--quick", "--save"])
    assert refused.exit_code == 2
