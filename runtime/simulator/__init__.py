"""The streaming machine of arXiv 2404.16629, run cycle by cycle: ``simulate``."""

from tilewright.runtime.simulator.machine import Machine
from tilewright.runtime.simulator.run import ChannelResult, NodeResult, Simulation, simulate

__all__ = ["ChannelResult", "Machine", "NodeResult", "Simulation", "simulate"]
