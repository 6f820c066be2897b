"""What every node did, as a trace that chrome://tracing and ui.perfetto.dev show.

One track for each node. A cycle of the machine is a microsecond there.
"""

from __future__ import annotations

import json
from typing import Any

from tilewright.runtime.simulator.layout import BUSY
from tilewright.runtime.simulator.run import Simulation

MOST_SPANS = 200_000


def chrome_trace(run: Simulation) -> str:
    """The trace of a run with ``spans`` as JSON (Trace Event Format)."""
    assert run.spans is not None, "the run recorded no spans"
    nodes = run.plan.nodes
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": n, "name": "thread_name", "args": {"name": node.name}}
        for n, node in enumerate(nodes.nodes)
    ]
    for n, start, end, cause in run.spans.tolist():
        node = nodes.nodes[n]
        event = {"ph": "X", "pid": 0, "tid": n, "ts": start, "dur": end - start}
        if cause == BUSY:
            events.append({**event, "name": node.kind, "cat": "fires"})
        else:
            channel = nodes.edges[cause // 2].name
            why = f"{channel} is full" if cause % 2 else f"{channel} is empty"
            events.append({**event, "name": why, "cat": "waits"})
    note = {"cycles": run.cycles, "complete": not run.spans_lost}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": note})
