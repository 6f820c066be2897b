"""What the interpreter does for roles, their barriers, and copies that no lane carries out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tilewright.ir.core import Region, Value
from tilewright.ir.errors import EvaluationError
from tilewright.ir.evaluate import check
from tilewright.ir.evaluate_roles import Barrier, Order
from tilewright.ir.ops_tile_roles import Arrive, Await, Barriers, CopyBulk, Expect, Roles
from tilewright.ir.ops_tile_threads import GroupProduct, GroupWait


class RoleOps:
    """Part of the interpreter of tile programs (evaluate_tile.Worker)."""

    order: Order
    role_warps: tuple[int, ...]
    barriers: list[Barrier]

    def run(self, region: Region, scope: dict[Value, Any]) -> list[Any]:
        """Executes a region."""
        raise NotImplementedError

    def do_tile_roles(self, op: Roles, inputs: Any, scope: dict[Value, Any]) -> Any:
        self.role_warps, self.order.roles = tuple(op.warps), True
        self.before_roles()
        works = [partial(self.run, region, dict(scope)) for region in op.regions]
        self.order.turns.run(works)
        return ()

    def before_roles(self) -> None:
        """All lanes have met."""

    def do_tile_barriers(self, op: Barriers, inputs: Any, scope: Any) -> Any:
        made = []
        for number in range(op.count):
            name = f"{op.result.hint or 'barrier'}[{number}]"
            agent = f"copies of barrier {len(self.barriers)}"
            made.append(Barrier(name, agent, op.arrivals, op.arrivals))
            self.barriers.append(made[-1])
        return (made,)

    def _barrier(self, op: Any, barriers: list[Barrier], number: int) -> Barrier:
        check(0 <= number < len(barriers), f"there are {len(barriers)} barriers", op)
        return barriers[number]

    def do_tile_expect(self, op: Expect, inputs: list[Any], scope: Any) -> Any:
        self._barrier(op, *inputs).arrive(op, 1, self.order.release(), op.bytes)
        return ()

    def do_tile_arrive(self, op: Arrive, inputs: list[Any], scope: Any) -> Any:
        check(bool(self.role_warps), "arrives outside of roles", op)
        warps = self.role_warps[self.order.me]
        self._barrier(op, *inputs).arrive(op, warps, self.order.release())
        return ()

    def do_tile_await(self, op: Await, inputs: list[Any], scope: Any) -> Any:
        barriers, number, phase = inputs
        barrier = self._barrier(op, barriers, number)

        def ready() -> bool:
            barrier.land()
            return bool(barrier.ended % 2 != phase % 2)

        def hangs() -> Exception:
            lacking = "; ".join(b.lacks() for b in self.barriers if b.missing < b.arrivals)
            message = f"waits for {barrier.name}, phase {phase % 2}, and nobody can go on"
            return EvaluationError(f"{op.name}: {message} ({barrier.lacks()}; {lacking})", op.loc)

        self.order.turns.until(ready, hangs)
        self.order.acquire(barrier.done)
        return ()

    def do_tile_copy_bulk(self, op: CopyBulk, inputs: list[Any], scope: Any) -> Any:
        barriers, number, source, target, slot, *at = inputs
        barrier = self._barrier(op, barriers, number)
        slots = target.array.shape[0]
        check(0 <= slot < slots, f"slot outside 0..{slots - 1}", op)
        values = _box(op, source, at)
        finish = self.begin_bulk(op, target, slot, values)

        def land() -> int:
            finish((barrier.agent, barrier.landed))
            return op.bytes

        barrier.copies.append(land)
        return ()

    def begin_bulk(
        self, op: CopyBulk, target: Any, slot: int, values: Any
    ) -> Callable[[tuple[str, int]], None]:
        """A function that ends a copy, given the stamp of the barrier that counts it."""

        def finish(stamp: tuple[str, int]) -> None:
            target.array[slot], target.written[slot] = values, True

        return finish

    def do_tile_group_begin(self, op: GroupProduct, inputs: Any, scope: Any) -> Any:
        return self.do_tile_group_product(op, inputs, scope)

    def do_tile_group_product(self, op: GroupProduct, inputs: Any, scope: Any) -> Any:
        """A product of warp groups."""
        raise NotImplementedError

    def do_tile_group_wait(self, op: GroupWait, inputs: list[Any], scope: Any) -> Any:
        return (inputs[0],)


def _box(op: CopyBulk, memory: Any, at: list[int]) -> Any:
    """What a bulk copy brings [rows, columns]: zeros outside the buffer."""
    shape = memory.array.shape
    places = [start + np.arange(n) for start, n in zip(at, op.box, strict=True)]
    inside = [(p >= 0) & (p < n) for p, n in zip(places, shape, strict=True)]
    where = np.ix_(*(np.where(ok, p, 0) for p, ok in zip(places, inside, strict=True)))
    valid = np.ones((), bool)
    for ok in inside:
        valid = valid[..., None] & ok
    if 0 in shape:
        found = np.zeros(op.box, memory.array.dtype)
    else:
        check(bool(np.all(memory.written[where] | ~valid)), "reads what nothing wrote", op)
        found = np.where(valid, memory.array[where], np.zeros((), memory.array.dtype))
    order = sorted((d for d in range(len(shape)) if op.dims[d] >= 0), key=lambda d: op.dims[d])
    rest = [d for d in range(len(shape)) if op.dims[d] < 0]
    rows, columns = (op.box[d] for d in order)
    return found.transpose(*rest, *order).reshape(rows, columns)
