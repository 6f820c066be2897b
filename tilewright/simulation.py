"""The streaming simulator and the depth analysis, as the public face has them."""

from tilewright.passes.channels.depth import Channel, channel_depths, find_channels
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.runtime.simulator import Machine, Simulation, simulate
from tilewright.runtime.simulator.plot import BINS, plot_occupancy

__all__ = [
    "BINS",
    "Channel",
    "Machine",
    "NodeRules",
    "Simulation",
    "channel_depths",
    "find_channels",
    "find_nodes",
    "plot_occupancy",
    "simulate",
]
