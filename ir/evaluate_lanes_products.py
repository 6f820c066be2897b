"""Products of warp groups, lane by lane, and those that go on beside the program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.evaluate import Arithmetic, check
from tilewright.ir.evaluate_lanes_registers import Registers
from tilewright.ir.evaluate_lanes_shared import Access, SharedMemory
from tilewright.ir.matrix_units import GROUP_WARPS, WARP
from tilewright.ir.ops_tile_threads import GroupProduct, GroupWait
from tilewright.ir.types import RegisterType


@dataclass(frozen=True)
class _Flight:
    """A product under way: what its registers will hold, and what it reads."""

    result: Registers
    hidden: Registers
    memory: SharedMemory
    read: list[Access]


@dataclass
class Products:
    """Products of a block; ``flights``: those of every role, the oldest first; ``ended``: by the
    identity of the registers that were given out."""

    flights: dict[int, list[_Flight]] = field(default_factory=dict)
    ended: dict[int, _Flight] = field(default_factory=dict)

    def product(self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic) -> Registers:
        """acc + a @ b, with b read from shared memory by a lane of every group."""
        return self._issue(op, inputs, arithmetic)[0]

    def _issue(
        self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic
    ) -> tuple[Registers, list[Access]]:
        acc, a, memory, first = inputs
        places = np.arange(memory.array.size).reshape(memory.array.shape)
        read = op.matrix(places, first).reshape(-1)
        written = memory.written.reshape(-1)[read]
        check(bool(written.all()), "reads shared memory that nothing wrote", op)
        groups = range(0, acc.type.layout.lanes, GROUP_WARPS * WARP)
        accesses = [(int(p), lane) for p in read for lane in groups]
        memory.read(op, accesses)
        result = op.reference(acc.tile(op), a.tile(op), memory.array, first)
        assert isinstance(op.result.type, RegisterType)
        return Registers.of_tile(result, op.result.type, arithmetic), accesses

    def begin(self, op: GroupProduct, inputs: Any, arithmetic: Arithmetic, role: int) -> Registers:
        """The registers of a product that begins: nothing may read them yet."""
        result, read = self._issue(op, inputs, arithmetic)
        nothing = np.zeros_like(result.known)
        hidden = Registers(result.type, result.bits, nothing, result.exact)
        self.flights.setdefault(role, []).append(_Flight(result, hidden, inputs[2], read))
        return hidden

    def wait(self, op: GroupWait, x: Registers, role: int) -> Registers:
        """What a product's registers hold when all but ``pending`` have ended. Their shared memory
        was read until now."""
        flights = self.flights.get(role, [])
        while len(flights) > op.pending:
            flight = flights.pop(0)
            flight.memory.read(op, flight.read)
            self.ended[id(flight.hidden)] = flight
        found = self.ended[id(x)].result if id(x) in self.ended else x
        check(bool(found.known.all()), "waits for too few products: its own is under way", op)
        return found
