"""The second stage of ranking a GPU kernel's schedules: the few best compiled, without a GPU.

The first stage estimates registers and shared memory; the compiler knows them. A schedule that
spills moves behind those that do not, one that needs more shared memory than there is goes. Each is
compiled in a process of its own, since a compiler may crash; back ends keep what they compiled on
disk, so that asking again costs little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir.core import Graph
from tilewright.ir.errors import TilewrightError, UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.gpu_spaces import SHARED_BYTES
from tilewright.passes.to_tile.lowbit.info import has_packed_weights
from tilewright.runtime.gpu_targets import BY_TRITON
from tilewright.runtime.lowbit.gpu_products import product_programs
from tilewright.runtime.schedule_forms import KernelForm
from tilewright.runtime.tuning.local import LocalWorkers
from tilewright.runtime.tuning.task import KernelTask
from tilewright.runtime.tuning.trial import Effort, Outcome
from tilewright.runtime.tuning.workers import Job, Workers

FEW = 6
PER_SPILLED_BYTE = 0.01  # of a schedule's time for a byte that a thread spills
COMPILING_SECONDS = 60.0  # of one schedule
LOOK_SECONDS = 0.5  # between two looks at the clock
Ranked = list[tuple[Choice, float]]


@dataclass(frozen=True)
class Resources:
    """What a compiled schedule takes: registers and spilled bytes of a thread, shared memory of a
    block."""

    registers: int
    spills: int
    shared_bytes: int


@dataclass(frozen=True)
class Compiled(Outcome):
    """A schedule that was compiled, not run."""

    resources: Resources = Resources(0, 0, 0)


def resources(
    graph: Graph,
    target: Target,
    rows: int,
    units: dict[str, int],
    choice: Choice,
    backend: str = "triton",
) -> Resources:
    """What the compiler of a back end (``gpu``, ``triton``, ``cuda``) makes of a schedule. Raises
    UnsupportedError for others and for a target that is no GPU, BackendMissingError where the
    compiler is not installed."""
    if not target.gpu:
        raise UnsupportedError(f"{target.name} is no GPU: its schedules are not compiled ahead")
    if backend in BY_TRITON:  # schedules that are chosen are Triton's
        return _by_triton(_program(graph, target, rows, units, choice), target)
    if backend == "cuda":
        return _by_cuda(kernel_to_tile(graph, target, rows, units, choice), target)
    raise UnsupportedError(f"back end {backend!r} compiles no schedules ahead")


def _program(
    graph: Graph, target: Target, rows: int, units: dict[str, int], choice: Choice
) -> Graph:
    """The program that Triton gets; of packed weights the first one, which may take tables."""
    if has_packed_weights(graph):
        return product_programs(graph, target, rows, units, choice=choice).main
    return kernel_to_tile(graph, target, rows, units, choice)


def _by_triton(program: Graph, target: Target) -> Resources:
    from tilewright.backends.triton.build import compile_ahead
    from tilewright.backends.triton.emit import emit_source

    warps, stages = int(program.attrs["warps"]), int(program.attrs["stages"])
    source = emit_source(program, "kernel", bulk=bool(program.attrs.get("bulk")))
    made = compile_ahead(source, program, target, warps, stages)
    return Resources(made.registers, made.spills, made.shared_bytes)


def _by_cuda(program: Graph, target: Target) -> Resources:
    """Of the form that moves 16 bytes at once; in bulk where it can."""
    from tilewright.backends.cuda.compile import architecture_of
    from tilewright.backends.cuda.emit import emit_cuda
    from tilewright.backends.gpu.machine_code import usage
    from tilewright.passes.to_threads.lower import threads_program
    from tilewright.runtime.cuda_kernel import SYMBOL, machine_code, roles_or_why

    roles, _ = roles_or_why(program, target)
    source = emit_cuda(roles or threads_program(program, target), SYMBOL)
    registers, spills = usage(machine_code(source, architecture_of(target.cpu)))
    return Resources(registers, spills, source.shared_bytes)


def compile_choices(
    task: KernelTask, choices: Sequence[Choice], effort: Effort, folder: str | None = None
) -> list[Outcome]:
    """What workers run (``workers.Run``): each choice compiled."""
    form = KernelForm.of(task)
    rows, units = form.variant.rows, form.variant.unit_dims
    found: list[Outcome] = []
    for choice in choices:
        try:
            made = resources(form.graph, form.target, rows, units, choice, task.backend)
        except TilewrightError as error:
            found.append(Outcome("error", reason=error.message.splitlines()[0]))
        else:
            found.append(Compiled("ok", resources=made))
    return found


def compile_ahead() -> Workers:
    """Processes of this machine that run ``compile_choices``."""
    return LocalWorkers(min(FEW, os.cpu_count() or 1), COMPILING_SECONDS, run=compile_choices)


def compiled_first(
    task: KernelTask,
    target: Target,
    ranked: Sequence[tuple[Choice, float]],
    compilers: Workers,
    seconds: float,
    look: Callable[[], None] = lambda: None,
) -> tuple[Ranked, dict[int, str]]:
    """The order of ``ranked`` with its first ``FEW`` put right by what ``compilers``, which run
    ``compile_choices``, make of them within ``seconds``; and why others of them went or came last,
    by their place in ``ranked``. ``look`` is called now and then, and may raise."""
    few = ranked[:FEW]
    for at, (choice, _) in enumerate(few):
        compilers.submit(Job(at, task, (choice,), Effort(0.0, 0)))
    end, made = time.monotonic() + seconds, dict[int, Outcome]()
    while len(made) < len(few) and time.monotonic() < end:
        look()
        for done in compilers.wait(min(LOOK_SECONDS, max(0.0, end - time.monotonic()))):
            made[done.job.number] = done.outcomes[0]
    return put_right(ranked, made, SHARED_BYTES.get(target.cpu, 64 << 10))


def put_right(
    ranked: Sequence[tuple[Choice, float]], made: dict[int, Outcome], shared_bytes: int
) -> tuple[Ranked, dict[int, str]]:
    """The order of ``ranked`` by what those at some places compile to: seconds grow with spills,
    what takes more than ``shared_bytes`` goes, what could not be compiled comes last (unless none
    could, which says nothing of the schedules). Also why."""
    found: Ranked = []
    failed: Ranked = []
    reasons: dict[int, str] = {}
    for at, (choice, seconds) in enumerate(ranked[:FEW]):
        outcome = made.get(at)
        if isinstance(outcome, Compiled):
            takes = outcome.resources
            if takes.shared_bytes > shared_bytes:
                reasons[at] = f"takes {takes.shared_bytes} bytes of {shared_bytes} of shared memory"
                continue
            found.append((choice, seconds * (1 + PER_SPILLED_BYTE * takes.spills)))
        elif outcome is not None:
            reasons[at] = outcome.reason or outcome.state
            failed.append((choice, seconds))
        else:
            found.append((choice, seconds))
    if not any(isinstance(x, Compiled) for x in made.values()):
        return list(ranked), reasons
    return [*sorted(found, key=lambda x: x[1]), *ranked[FEW:], *failed], reasons
