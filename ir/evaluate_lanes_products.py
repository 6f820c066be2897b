"""Products of warp groups, lane by lane, and those that go on beside the program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.evaluate import Arithmetic, check
from tilewright.ir.evaluate_lanes_registers import Registers
from tilewright.ir.evaluate_lanes_shared import Access, SharedMemory
from tilewright.ir.matrix_units import GROUP_ROWS, GROUP_WARPS, WARP
from tilewright.ir.ops_tile_threads import GroupProduct, GroupWait
from tilewright.ir.types import RegisterType

_Reads = list[tuple[SharedMemory, list[Access]]]


@dataclass(frozen=True)
class _Flight:
    """A product under way: what its registers will hold, and what it reads in shared memory."""

    result: Registers
    hidden: Registers
    read: _Reads


@dataclass
class Products:
    """Products of a block; ``flights``: those of every role, the oldest first; ``ended``: by the
    identity of the registers that were given out."""

    flights: dict[int, list[_Flight]] = field(default_factory=dict)
    ended: dict[int, _Flight] = field(default_factory=dict)

    def product(self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic) -> Registers:
        """acc + a @ b, with what lies in shared memory read by a lane of every group."""
        return self._issue(op, inputs, arithmetic)[0]

    def _issue(
        self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic
    ) -> tuple[Registers, _Reads]:
        acc, a, memory, first = inputs
        groups = range(0, acc.type.layout.lanes, GROUP_WARPS * WARP)
        right = op.matrix(_places(memory), first)
        reads: _Reads = [(memory, [(int(p), lane) for p in right.reshape(-1) for lane in groups])]
        if isinstance(a, SharedMemory):  # every group reads its own rows, 64 after the other
            left = op.left(_places(a)).reshape(-1, len(groups), GROUP_ROWS, op.left_shape[1])
            own = [(int(p), g) for n, g in enumerate(groups) for p in left[:, n].reshape(-1)]
            reads.append((a, own))
        for source, accesses in reads:
            written = source.written.reshape(-1)[[place for place, _ in accesses]]
            check(bool(written.all()), "reads shared memory that nothing wrote", op)
            source.read(op, accesses)
        side = a.array if isinstance(a, SharedMemory) else a.tile(op)
        result = op.reference(acc.tile(op), side, memory.array, first)
        assert isinstance(op.result.type, RegisterType)
        return Registers.of_tile(result, op.result.type, arithmetic), reads

    def begin(self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic, role: int) -> Registers:
        """The registers of a product that begins: nothing may read them yet."""
        result, read = self._issue(op, inputs, arithmetic)
        nothing = np.zeros_like(result.known)
        hidden = Registers(result.type, result.bits, nothing, result.exact)
        self.flights.setdefault(role, []).append(_Flight(result, hidden, read))
        return hidden

    def wait(self, op: GroupWait, x: Registers, role: int) -> Registers:
        """What a product's registers hold when all but ``pending`` have ended. Their shared memory
        was read until now."""
        flights = self.flights.get(role, [])
        while len(flights) > op.pending:
            flight = flights.pop(0)
            for memory, accesses in flight.read:
                memory.read(op, accesses)
            self.ended[id(flight.hidden)] = flight
        found = self.ended[id(x)].result if id(x) in self.ended else x
        check(bool(found.known.all()), "waits for too few products: its own is under way", op)
        return found


def _places(memory: SharedMemory) -> np.ndarray:
    """The number of every element of a shared memory."""
    return np.arange(memory.array.size).reshape(memory.array.shape)
