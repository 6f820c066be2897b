"""Streams to tiles: one kernel's stream graph becomes the program of one worker for one block."""

from tilewright.passes.to_tile.lower import kernel_to_tile, to_tile

__all__ = ["kernel_to_tile", "to_tile"]
