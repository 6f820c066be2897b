"""Memory that lanes share, with what a race is: who wrote and read what since the last barrier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.core import Op
from tilewright.ir.evaluate import check
from tilewright.ir.evaluate_tile import Memory
from tilewright.ir.types import SharedType

Access = tuple[int, int]  # element (row-major), lane


@dataclass
class SharedMemory(Memory):
    """Shared memory of one block; ``flying``: by which lane an element is being copied into."""

    type: SharedType
    writers: dict[int, set[int]] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    flying: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def shared(type_: SharedType, exact: bool) -> SharedMemory:
        """Memory that nothing wrote."""
        plain = Memory.of(type_.shape, type_.dtype, exact)
        return SharedMemory(plain.array, plain.written, type_)

    def name(self, element: int) -> str:
        """An element, for messages."""
        index = [int(i) for i in np.unravel_index(element, self.array.shape)]
        return f"{index} of {self.type}"

    def barrier(self) -> None:
        """What happened before is seen by all lanes."""
        self.writers.clear()
        self.readers.clear()

    def read(self, op: Op, accesses: Iterable[Access]) -> None:
        """Lanes read elements. Raises EvaluationError for a race."""
        for element, lane in accesses:
            self._landed(op, element, lane, "reads")
            others = self.writers.get(element)
            if others and lane not in others:
                self._race(op, lane, "reads", element, f"lane {min(others)} wrote")
            self.readers.setdefault(element, set()).add(lane)

    def write(self, op: Op, accesses: Sequence[Access], values: Any) -> None:
        """Lanes write elements. Raises EvaluationError for a race."""
        array, written = self.array.reshape(-1), self.written.reshape(-1)
        for (element, lane), value in zip(accesses, values, strict=True):
            self._landed(op, element, lane, "writes")
            same = array[element].tobytes() == array.dtype.type(value).tobytes()
            if not (written[element] and same):
                self._alone(op, element, lane)
            self.writers.setdefault(element, set()).add(lane)
            array[element], written[element] = value, True

    def begin_copy(self, op: Op, accesses: Sequence[Access]) -> None:
        """Copies into elements begin. Raises EvaluationError for a race."""
        for element, lane in accesses:
            self._landed(op, element, lane, "copies to")
            self._alone(op, element, lane, "copies to")
            self.flying[element] = lane

    def end_copy(self, accesses: Sequence[Access], values: Any) -> None:
        """Copies have ended; as if their lanes had written now."""
        array, written = self.array.reshape(-1), self.written.reshape(-1)
        for (element, lane), value in zip(accesses, values, strict=True):
            del self.flying[element]
            self.writers[element] = {lane}
            array[element], written[element] = value, True

    def _landed(self, op: Op, element: int, lane: int, does: str) -> None:
        if element in self.flying:
            copying = self.flying[element]
            message = f"lane {lane} {does} {self.name(element)} while a copy of lane {copying} into"
            check(False, f"{message} it is under way (tile.commit, tile.wait, tile.barrier)", op)

    def _alone(self, op: Op, element: int, lane: int, does: str = "writes") -> None:
        for others, what in ((self.writers, "wrote"), (self.readers, "read")):
            rest = others.get(element, set()) - {lane}
            if rest:
                self._race(op, lane, does, element, f"lane {min(rest)} {what}")

    def _race(self, op: Op, lane: int, does: str, element: int, what: str) -> None:
        message = f"lane {lane} {does} {self.name(element)}, which {what}"
        check(False, f"{message}, without a tile.barrier between", op)


@dataclass
class CopyGroup:
    """Copies that are waited for together."""

    copies: list[tuple[SharedMemory, list[Access], Any]] = field(default_factory=list)

    def end(self) -> None:
        """All of them have ended."""
        for memory, accesses, values in self.copies:
            memory.end_copy(accesses, values)
