"""How deep every channel of a stream program has to be: ``find_channels``."""

from tilewright.passes.channels.depth import (
    SEND_AND_RESPONSE,
    Channel,
    deep_inputs,
    find_channels,
)

__all__ = ["SEND_AND_RESPONSE", "Channel", "deep_inputs", "find_channels"]
