"""Quantised checkpoints of other tools, read as QuantizedTensors."""

from tilewright.frontend.checkpoints.convert import Converted, convert_checkpoint
from tilewright.frontend.checkpoints.reader import Checkpoint, open_checkpoint
from tilewright.frontend.checkpoints.weight import Weight

__all__ = ["Checkpoint", "Converted", "Weight", "convert_checkpoint", "open_checkpoint"]
