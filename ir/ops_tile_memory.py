"""Memory that the lanes of a block share, as GPUs have it, and copies that run beside the block.

``tile.alloc`` of a ``shared<…>`` type is memory of one block. Its lanes run on their own between
two barriers, so what one of them writes the others may read only after ``tile.barrier``. (Scratch
is memory of one worker, whose lanes go together.) Copies from the caller's memory run beside the
block: ``tile.commit`` makes a group of all copies begun since the last one, ``tile.wait`` waits for
the oldest groups; other lanes see what was copied after a barrier behind the wait.

A tile is written by the lowest lane that holds an element, and read by every lane that holds it; a
tile of one lane is held by all. The interpreter refuses races with ``lanes=True``. Back ends for
CPUs refuse all of this.
"""

from __future__ import annotations

from typing import Any

from tilewright.ir.core import Graph, Value, attribute, operand
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
from tilewright.ir.ops_tile import Access
from tilewright.ir.ops_tile_roles import ROLE_OPS
from tilewright.ir.types import RegisterType, SharedType, Type


class CopyAsync(Access, name="tile.copy_async", traits=("reads", "writes")):
    """Begins to copy a tile from a buffer into shared memory; ``layout`` says which lane copies
    which element.

    The operands after the two memories are start indices in the buffer, start indices in shared
    memory, and limits. ``dims`` and ``bounds`` are as for a load from the buffer; ``to`` says which
    tile dimension runs along which dimension of the shared memory (-1: none).
    """

    source: Value = operand()
    target: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    to: tuple[int, ...] = attribute()
    layout: Layout = attribute()

    def infer(self) -> tuple[Type, ...]:
        source, target = self.copied(self.source, self.target)
        start, end = len(source.shape), len(source.shape) + len(target.shape)
        tile = RegisterType(source.dtype, self.layout)
        self.require(len(self.to) == len(target.shape), f"to needs {len(target.shape)} entries")
        self.require(len(self.rest) >= end, "one index per dimension of both memories, then limits")
        self.check_access(self.source, self.rest[:start] + self.rest[end:], tile)
        self.require_indices(self.rest)
        used = [d for d in self.to if d >= 0]
        self.require(len(set(used)) == len(used), "a tile dimension runs along one dimension of to")
        fits = all(-1 <= d < len(tile.shape) for d in self.to)
        fits = fits and all(size == 1 or d in used for d, size in enumerate(tile.shape))
        self.require(fits, "to names every tile dimension")
        return ()


class Barrier(TileOp, name="tile.barrier", traits=("writes",)):
    """All lanes of the block arrive here before any goes on, and see what was written before."""

    def infer(self) -> tuple[Type, ...]:
        return ()


class Commit(TileOp, name="tile.commit", traits=("writes",)):
    """Makes a group of the copies begun since the last commit."""

    def infer(self) -> tuple[Type, ...]:
        return ()


class Wait(TileOp, name="tile.wait", traits=("writes",)):
    """Waits until at most ``pending`` groups of copies are under way; the oldest end first."""

    pending: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        self.require(self.pending >= 0, "pending is a number of groups from 0")
        return ()


class Undefined(TileOp, name="tile.undefined", traits=("pure",)):
    """A register tile that nothing wrote: it may be moved and viewed, but its bits not be read."""

    type: Type = attribute()

    def infer(self) -> Type:
        self.require(isinstance(self.type, RegisterType), "type must be a register tile")
        return self.type

    def reference(self) -> Any:
        raise NotImplementedError("tile.undefined has no value")


GPU_OPS = (CopyAsync, Barrier, Commit, Wait, Undefined, *ROLE_OPS)


def refuse_gpu_ops(graph: Graph, backend: str) -> None:
    """Raises UnsupportedError at the first operation of a tile program that only GPU back ends
    take."""
    for op in graph.body.walk():
        shared = any(isinstance(v.type, SharedType) for v in op.results)
        if shared or isinstance(op, GPU_OPS):
            what = str(op.result.type) if shared else op.name
            raise UnsupportedError(
                f"{what} in the {backend} back end: GPU back ends have it; on a CPU use scratch "
                "memory, or evaluate(module, …, lanes=True)",
                op.loc,
            )
