"""What the results say of the cost model is about the model that there is: its order of schedules,
held against measured times, is the one that was kept with them.

Of a changed model ``tilewright bench figures tuning_quality --path FILE --minutes 0`` writes the
order beside the kept times; then see whether it is better.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tilewright.bench.records import RESULTS
from tilewright.bench.tuning_workloads import texts
from tilewright.ir.core import Module
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.cost_model import ranked

ZEN4 = named_target("znver4")
SURVEY = json.loads(max((RESULTS / "avx512-zen4").glob("tuning-2*.json")).read_text())
KERNELS = {entry["workload"]: entry for entry in SURVEY["kernels"].values()}
WIDTHS = {"cross entropy": {"D": 256}}  # of the workloads, where a text leaves them open


@pytest.mark.parametrize("name", [name for name in texts() if name in KERNELS])
def test_the_order_is_the_one_that_was_held_against_times(name: str) -> None:
    entry: dict[str, Any] = KERNELS[name]
    (given,) = parse(texts()[name]).graphs
    module = Module((specialise(given, WIDTHS.get(name, {})),))
    (graph,) = run_passes(module, TO_KERNELS).graphs
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    order = ranked(graph, ZEN4, entry["rows"], entry["sizes"], SURVEY["threads"], units)
    fields = entry["fields"]
    assert [[c[f] for f in fields] for c, _ in order] == [c for c, _ in entry["predicted"]]
    assert [s for _, s in order] == pytest.approx([s for _, s in entry["predicted"]], rel=1e-9)
