"""The figures of bundles: measured in processes where nothing compiles."""

from __future__ import annotations

from tilewright.bench.bundles import bundle_calls


def test_first_calls_of_a_bundle() -> None:
    of_torch, of_numpy = bundle_calls(1)
    for found in (of_torch, of_numpy):
        parts = found.details
        assert found.unit == "ms" and found.goal.must == 50.0
        assert found.value == (parts["load_bundle"] + parts["first_call"]) * 1e3 > 0
        assert parts["loaded"] == []
