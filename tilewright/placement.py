"""Placing experts on devices from a routing trace, and running them there, as the face has it."""

from tilewright.frontend.experts.parallel import (
    CoherentExperts,
    ExchangeExperts,
    Held,
    LocalExperts,
    gather_tokens,
)
from tilewright.frontend.experts.spread import spread_experts
from tilewright.frontend.experts.trace import RoutingRecorder, record_routing
from tilewright.frontend.experts.wire import Traffic, Wire
from tilewright.runtime.placement.evaluate import (
    Evaluation,
    Judge,
    in_order,
    random_placement,
    round_robin,
)
from tilewright.runtime.placement.file import Placement, read_placement
from tilewright.runtime.placement.generate import grouped_trace
from tilewright.runtime.placement.solve import METHODS, Solution, place
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Trace, read_trace, write_trace

__all__ = [
    "METHODS",
    "CoherentExperts",
    "Evaluation",
    "ExchangeExperts",
    "Held",
    "Judge",
    "LocalExperts",
    "Placement",
    "RoutingRecorder",
    "Solution",
    "Topology",
    "Trace",
    "Traffic",
    "Wire",
    "gather_tokens",
    "grouped_trace",
    "in_order",
    "place",
    "random_placement",
    "read_placement",
    "read_trace",
    "record_routing",
    "round_robin",
    "spread_experts",
    "write_trace",
]
