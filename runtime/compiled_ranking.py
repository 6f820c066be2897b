"""The second stage of ranking a GPU kernel's schedules: the few best compiled, without a GPU.

The first stage estimates registers and shared memory; the compiler knows them. A schedule that
spills moves behind those that do not, one that needs more shared memory than there is goes. Triton
keeps what it compiled on disk, so that asking again costs little."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.triton.build import Resources, compile_ahead
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.gpu_spaces import SHARED_BYTES

FEW = 6
PER_SPILLED_BYTE = 0.01  # of a schedule's time for a byte that a thread spills


def resources(
    graph: Graph, target: Target, rows: int, units: dict[str, int], choice: Choice
) -> Resources:
    """What the compiler makes of a schedule: registers, spills, shared memory. Raises
    UnsupportedError for a target that is no GPU."""
    if not target.gpu:
        raise UnsupportedError(f"{target.name} is no GPU: its schedules are not compiled ahead")
    program = kernel_to_tile(graph, target, rows, units, choice)
    warps, stages = int(program.attrs["warps"]), int(program.attrs["stages"])
    source = emit_source(program, "kernel", bulk=bool(program.attrs.get("bulk")))
    return compile_ahead(source, program, target, warps, stages)


def compiled_first(
    graph: Graph,
    target: Target,
    rows: int,
    units: dict[str, int],
    ranked: Sequence[tuple[Choice, float]],
    few: int = FEW,
) -> list[tuple[Choice, float]]:
    """The order of ``ranked`` with the first ``few`` put right by what they compile to."""
    found = []
    for choice, seconds in ranked[:few]:
        made = resources(graph, target, rows, units, choice)
        if made.shared_bytes <= SHARED_BYTES[target.cpu]:
            found.append((choice, seconds * (1 + PER_SPILLED_BYTE * made.spills)))
    return [*sorted(found, key=lambda x: x[1]), *ranked[few:]]
