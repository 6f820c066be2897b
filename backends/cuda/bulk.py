"""Roles of warps, their barriers, and copies by the tensor memory accelerator, as C++."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tilewright.backends.cuda.text import added, times
from tilewright.backends.cuda.tiles import Buffer, Shared, Writer
from tilewright.ir.core import Region, Value
from tilewright.ir.matrix_units import WARP
from tilewright.ir.ops_tile_roles import Arrive, Await, Barriers, CopyBulk, Expect, Roles
from tilewright.ir.types import SWIZZLED_BYTES

BARRIER_BYTES = 8


@dataclass(frozen=True)
class BulkMap:
    """A tensor that is copied in bulk: which buffer, the elements of a box along its dimensions,
    and the bytes of a row within which pieces change places (0: none)."""

    buffer: int
    box: tuple[int, ...]
    swizzle: int


@dataclass
class Role:
    """Whose region is being written: the number of its first thread, and how many it has."""

    number: int
    threads: int


class RoleOps(Writer):
    """What of a program's writer concerns roles."""

    maps: dict[BulkMap, str]
    role: Role | None
    shared: Iterator[int]  # where shared memories begin, in the order of their allocations

    def region(self, region: Region) -> None:
        """Writes the operations of a region."""
        raise NotImplementedError

    def block_barrier(self) -> str:
        """A barrier of all threads that run what is written now."""
        if self.role is None:
            return "tw::barrier();"
        return f"tw::barrier({1 + self.role.number}, {self.role.threads});"

    def _tile_barriers(self, op: Barriers) -> None:
        name = self.text.name(op.result.hint or "barriers")
        place = f"tw_shared + {next(self.shared)}"
        self.text.line(f"unsigned char* const {name} = {place};")
        self.values[op.result] = name
        with self.text.block("if (thread == 0)"), self.text.each("i", op.count) as i:
            at = added([name, times(i, str(BARRIER_BYTES))])
            self.text.line(f"tw::mbarrier_init({at}, {op.arrivals});")

    def _barrier(self, barriers: Value, number: Value) -> str:
        return added([self.values[barriers], times(self.index(number), str(BARRIER_BYTES))])

    def _tile_await(self, op: Await) -> None:
        phase = self.index(op.phase)
        phase = phase if phase.isdigit() else f"static_cast<int>({phase})"
        self.text.line(f"tw::mbarrier_wait({self._barrier(op.barriers, op.number)}, {phase});")

    def _tile_arrive(self, op: Arrive) -> None:
        self.text.line("tw::warp_barrier();")
        barrier = self._barrier(op.barriers, op.number)
        self.text.line(f"if (lane == 0) tw::mbarrier_arrive({barrier});")

    def _tile_expect(self, op: Expect) -> None:
        barrier = self._barrier(op.barriers, op.number)
        self.text.line(f"if (thread == 0) tw::mbarrier_arrive_expect({barrier}, {op.bytes});")

    def _tile_copy_bulk(self, op: CopyBulk) -> None:
        shared, held = self.values[op.target], self.values[op.source]
        assert isinstance(shared, Shared) and isinstance(held, Buffer)
        number = self.graph.params.index(op.source)
        swizzle = shared.type.swizzle * SWIZZLED_BYTES
        key = BulkMap(number, op.box, swizzle)
        if key not in self.maps:
            self.maps[key] = self.text.name(f"{held.pointer}_map")
        at = [self.index(v) for v in reversed(op.at)]
        at = [x if x.isdigit() else f"static_cast<int>({x})" for x in at]
        barrier = self._barrier(op.barriers, op.number)
        place = shared.start(self.index(op.slot))
        given = ", ".join([place, self.maps[key], barrier, *at])
        self.text.line(f"if (thread == 0) tw::tma_load({given});")

    def _tile_roles(self, op: Roles) -> None:
        self.text.line("if (thread == 0) tw::mbarrier_init_fence();")
        self.text.line("tw::barrier();")
        firsts = op.first_warps
        registers = op.registers or (0,) * len(op.warps)
        most = max(registers)
        for number, region in enumerate(op.regions):
            first, last = firsts[number], firsts[number + 1]
            head = "} else {" if number else f"if (thread < {last * WARP}) {{"
            if 0 < number < len(op.regions) - 1:
                head = f"}} else if (thread < {last * WARP}) {{"
            self.text.line(head)
            self.text.depth += 1
            if registers[number]:
                way = "up" if registers[number] == most else "down"
                self.text.line(f"tw::registers_{way}<{registers[number]}>();")
            self.role = Role(number, op.warps[number] * WARP)
            self._role(region, first, op.warps[number], (op.idle or (0,) * len(op.warps))[number])
            self.text.depth -= 1
        self.text.line("}")
        self.role = None

    def _role(self, region: Region, first: int, warps: int, idle: int) -> None:
        """What a role does; its threads count from 0."""
        if idle:
            self.text.line(f"if (thread >= {(first + warps) * WARP}) return;")
        if first == 0:
            self.region(region)
            return
        outer = self.head, self.named
        self.head, self.named = [], {}
        whole = self.text.name("block_thread")
        self.text.line(f"const int {whole} = thread;")
        with self.text.block(""):
            self.text.line(f"const int thread = {whole} - {first * WARP};")
            at = len(self.text.lines)
            self.region(region)
            pad = "  " * (self.text.depth - 1)  # a head's lines have a function's depth
            self.text.lines[at:at] = [pad + line for line in self.head]
        self.head, self.named = outer
