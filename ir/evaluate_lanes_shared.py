"""Memory that lanes share, with what a race is: who wrote and read what since the last barrier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.core import Op
from tilewright.ir.evaluate import check
from tilewright.ir.evaluate_roles import Agent, Order
from tilewright.ir.evaluate_tile import Memory
from tilewright.ir.types import SharedType

Access = tuple[int, int]  # element (row-major), lane


Stamp = tuple[Agent, int]  # who did it, and at which of its times
ROLE = 1 << 16  # a role's lanes count from its number times this
ENGINE = -1  # the lane of a copy that no lane carries out


@dataclass
class SharedMemory(Memory):
    """Shared memory of one block; ``flying``: by which lane an element is being copied into."""

    type: SharedType
    order: Order = field(default_factory=Order)
    writers: dict[int, dict[int, Stamp]] = field(default_factory=dict)
    readers: dict[int, dict[int, Stamp]] = field(default_factory=dict)
    flying: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def shared(type_: SharedType, exact: bool, order: Order) -> SharedMemory:
        """Memory that nothing wrote."""
        plain = Memory.of(type_.shape, type_.dtype, exact)
        return SharedMemory(plain.array, plain.written, type_, order)

    def name(self, element: int) -> str:
        """An element, for messages."""
        index = [int(i) for i in np.unravel_index(element, self.array.shape)]
        return f"{index} of {self.type}"

    def barrier(self) -> None:
        """What happened before is seen by all lanes, of the whole block."""
        self.writers.clear()
        self.readers.clear()

    def _mine(self, lane: int) -> int:
        return lane + ROLE * self.order.me

    def _unseen(self, past: dict[int, Stamp] | None, mine: int) -> list[int]:
        """Lanes whose accesses are not ordered before those of a lane."""
        items = (past or {}).items()
        return [lane for lane, when in items if not self.order.before(when, lane == mine)]

    def read(self, op: Op, accesses: Iterable[Access]) -> None:
        """Lanes read elements. Raises EvaluationError for a race."""
        stamp = self.order.stamp()
        for element, lane in accesses:
            self._landed(op, element, lane, "reads")
            mine, writers = self._mine(lane), self.writers.get(element)
            others = self._unseen(writers, mine)
            if others and mine not in (writers or ()):
                self._race(op, lane, "reads", element, f"{_who(min(others))} wrote")
            self.readers.setdefault(element, {})[mine] = stamp

    def write(self, op: Op, accesses: Sequence[Access], values: Any) -> None:
        """Lanes write elements. Raises EvaluationError for a race."""
        array, written = self.array.reshape(-1), self.written.reshape(-1)
        stamp = self.order.stamp()
        for (element, lane), value in zip(accesses, values, strict=True):
            self._landed(op, element, lane, "writes")
            same = array[element].tobytes() == array.dtype.type(value).tobytes()
            if not (written[element] and same):
                self._alone(op, element, lane)
            self.writers.setdefault(element, {})[self._mine(lane)] = stamp
            array[element], written[element] = value, True

    def begin_copy(self, op: Op, accesses: Sequence[Access]) -> None:
        """Copies into elements begin. Raises EvaluationError for a race."""
        for element, lane in accesses:
            self._landed(op, element, lane, "copies to")
            self._alone(op, element, lane, "copies to")
            self.flying[element] = lane

    def end_copy(self, accesses: Sequence[Access], values: Any, stamp: Stamp | None = None) -> None:
        """Copies have ended; as if their lanes had written now, or whoever ``stamp`` says."""
        array, written = self.array.reshape(-1), self.written.reshape(-1)
        now = stamp or self.order.stamp()
        for (element, lane), value in zip(accesses, values, strict=True):
            del self.flying[element]
            self.writers[element] = {lane if stamp else self._mine(lane): now}
            self.readers.pop(element, None)
            array[element], written[element] = value, True

    def _landed(self, op: Op, element: int, lane: int, does: str) -> None:
        if element in self.flying:
            copying = _who(self.flying[element])
            message = f"{_who(lane)} {does} {self.name(element)} while a copy of {copying} into"
            waits = "tile.commit, tile.wait, tile.barrier; tile.await"
            check(False, f"{message} it is under way ({waits})", op)

    def _alone(self, op: Op, element: int, lane: int, does: str = "writes") -> None:
        for past, what in ((self.writers, "wrote"), (self.readers, "read")):
            rest = self._unseen(past.get(element), self._mine(lane))
            if rest:
                self._race(op, lane, does, element, f"{_who(min(rest))} {what}")

    def _race(self, op: Op, lane: int, does: str, element: int, what: str) -> None:
        message = f"{_who(lane)} {does} {self.name(element)}, which {what}"
        between = "a tile.await of its tile.arrive" if self.order.roles else "a tile.barrier"
        check(False, f"{message}, without {between} between", op)


def _who(lane: int) -> str:
    """A lane in messages."""
    role, number = divmod(lane, ROLE)
    if lane == ENGINE:
        return "the copy engine"
    return f"lane {number}" if role == 0 else f"lane {number} of role {role}"


@dataclass
class CopyGroup:
    """Copies that are waited for together."""

    copies: list[tuple[SharedMemory, list[Access], Any]] = field(default_factory=list)

    def end(self) -> None:
        """All of them have ended."""
        for memory, accesses, values in self.copies:
            memory.end_copy(accesses, values)
