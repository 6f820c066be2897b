"""Products whose results are never kept: whoever reads one makes it again (both levels).

They mean what a contraction means. What they say beside is where it happens: inside the loops of
its reader, a block at a time, so that the result has no memory of its own and the axes that its
operands lack are loops like all others.
"""

from __future__ import annotations

from tilewright.ir.ops_stream import Contract as StreamContract
from tilewright.ir.ops_tensor import Contract as TensorContract


class Remake(TensorContract, name="tensor.remake"):
    """A contraction made again by every reader: keys from a layer's input, say."""


class RemakeStream(StreamContract, name="stream.remake"):
    """``tensor.remake`` as a stream; its readers make it for a block of their innermost loop."""
