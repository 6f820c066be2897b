"""The simulator's firing rate: every workload runs and is counted."""

from __future__ import annotations

from tilewright.bench import simulator


def test_a_quick_run_has_every_workload_and_no_goals() -> None:
    record = simulator.run(quick=True)
    assert [q.name for q in record.quantities] == [w.name for w in simulator.WORKLOADS]
    for quantity in record.quantities:
        assert quantity.value > 0 and quantity.met is None
        assert quantity.details["firings"] > simulator.QUICK_SIZE**2
