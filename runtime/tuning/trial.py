"""One trial: compile a choice, hold it to the oracle, then time it beside the default schedule.

It runs in a process of its own, which may crash, hang or run out of memory without harm.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.ir.errors import EvaluationError, TilewrightError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.evaluate_work import places
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.accuracy import bound_of, errors_over_bounds
from tilewright.runtime.backends import MAKERS
from tilewright.runtime.family import KernelFamily, Variant
from tilewright.runtime.gpu_targets import BY_TRITON
from tilewright.runtime.report import VariantReport
from tilewright.runtime.targets import program_target
from tilewright.runtime.tuned import TUNED
from tilewright.runtime.tuning.inputs import random_inputs
from tilewright.runtime.tuning.task import KernelTask, TensorShape, uninitialised

Call = Callable[..., tuple[torch.Tensor, ...]]
SHORTEST = 2e-4  # seconds of one measurement: shorter calls are repeated
FEWEST = 5  # rounds
HOPELESS = 1.5  # times the default's time, after FEWEST rounds: not worth more
ORACLE_WORK = 1e8  # places that the interpreter may compute for a check, of eight bytes each
CAPS = (1048573, 65537, 4099, 1031, 523, 263, 131, 67, 37, 19, 11, 5, 3)


@dataclass(frozen=True)
class Outcome:
    """What came of a choice: ``state`` as in database.Trial, milliseconds and the ratio to the
    default schedule (median over rounds in which both took turns)."""

    state: str
    milliseconds: float | None = None
    ratio: float | None = None
    reason: str = ""
    error: float | None = None  # the worst over its bound


@dataclass(frozen=True)
class Effort:
    """How long a measurement goes on."""

    seconds: float = 0.3
    most: int = 200


def run_trial(
    task: KernelTask, choices: Sequence[Choice], effort: Effort, folder: str | None = None
) -> list[Outcome]:
    """The outcome of each choice, timed in turns with the default's. ``folder`` keeps the oracle's
    results from one trial to the next."""
    TUNED.off = True  # the default is the default
    graph, oracle = task.graph, _Oracle(task, Path(folder) if folder else None)
    on_gpu = task.backend in (*BY_TRITON, "cuda") and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    inputs = random_inputs(graph, task.inputs, device)
    default = kernel_family(graph, task, {})
    found: list[Outcome] = []
    calls: list[Call] = []
    for choice in choices:
        try:
            call = kernel_family(graph, task, choice)
            error = oracle.error(call, default, inputs)
        except TilewrightError as problem:
            found.append(Outcome("error", reason=problem.message.splitlines()[0]))
            continue
        except MemoryError as problem:
            found.append(Outcome("memory", reason=str(problem)))
            continue
        except Exception as problem:  # whatever this one does, the others are measured
            reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
            found.append(Outcome("error", reason=reason))
            continue
        if not error <= 1.0:
            found.append(Outcome("wrong", reason=f"{error:.3g} times the bound", error=error))
            continue
        found.append(Outcome("ok", error=error))
        calls.append(call)
    times = iter(_in_turns(default, calls, inputs, effort))
    return [replace_time(x, next(times)) if x.state == "ok" else x for x in found]


def replace_time(outcome: Outcome, measured: tuple[float, float]) -> Outcome:
    seconds, ratio = measured
    return replace(outcome, milliseconds=seconds * 1e3, ratio=ratio)


def kernel_family(graph: Graph, task: KernelTask, choice: Choice) -> KernelFamily:
    """The kernel with that choice; compiled when first called."""
    maker = MAKERS[task.backend]

    def make(variant: Variant, target: object) -> tuple[Call, VariantReport]:
        return maker(replace(variant, choice=choice), family.target)

    family = KernelFamily(graph, program_target(task.target, task.backend), make)
    return family


class _Oracle:
    """The interpreter's results in float64 at a size that it can manage, with ragged tails, and the
    default schedule's results at full size."""

    def __init__(self, task: KernelTask, folder: Path | None) -> None:
        self.task, self.graph = task, task.graph
        self.small = small_shapes(task)
        self.inputs = random_inputs(self.graph, self.small)
        sizes = hashlib.sha256(repr(self.small).encode()).hexdigest()[:16]
        self.file = folder / f"{task.kernel}-{sizes}.oracle" if folder else None
        self._results: list[torch.Tensor] | None = None
        self._full: tuple[torch.Tensor, ...] | None = None

    def error(self, call: Call, default: Call, inputs: list[torch.Tensor]) -> float:
        """The largest error over its bound."""
        device = inputs[0].device if inputs else "cpu"
        with torch.inference_mode():
            ours = call(*(x.to(device) for x in self.inputs))
            if self._full is None:
                self._full = default(*inputs)
            full = call(*inputs)
        bound = bound_of(*self.inputs, *ours) or 1e-10
        pairs = (ours, self.results), (full, self._full)
        found = [
            error
            for mine, right in pairs
            for error in errors_over_bounds(
                self.graph, [x.cpu() for x in mine], [x.cpu() for x in right], bound
            )
        ]
        return max(found, default=0.0)

    @property
    def results(self) -> list[torch.Tensor]:
        if self._results is None:
            if self.file and self.file.exists():
                self._results = torch.load(self.file, weights_only=True)
            else:
                self._results = self._evaluated()
        assert self._results is not None
        return self._results

    def _evaluated(self) -> list[torch.Tensor]:
        arrays = [(x.double() if x.is_floating_point() else x).numpy() for x in self.inputs]
        results = evaluate_graph(self.graph, *arrays, precision="f64")
        found = [torch.as_tensor(x) for x in results]
        if self.file:
            partial = self.file.with_suffix(f".{time.time_ns()}")
            torch.save(found, partial)
            partial.replace(self.file)
        return found


def small_shapes(task: KernelTask) -> tuple[TensorShape, ...]:
    """The largest of a few sizes that the interpreter checks in a moment and that take the same
    form of the kernel. Raises EvaluationError if there is none."""
    family = kernel_family(task.graph, task, {})
    sizes = bind_sizes(family.source, [x.shape for x in task.inputs])
    wanted = family.key(family.completed(uninitialised(family.source, task.inputs)))
    free = {n: v for n, v in sizes.items() if n not in family.static_names}
    for cap, whole in product(CAPS, _fewest_first(free)):
        below = {n: min(v, cap) for n, v in free.items()}
        fewer = {**sizes, **{n: v if n in whole else _ragged(v) for n, v in below.items()}}
        shapes = _shapes(family.source, task.inputs, fewer)
        if places(family.source, fewer) > ORACLE_WORK:
            continue
        with suppress(TilewrightError):
            if family.key(family.completed(uninitialised(family.source, shapes))) == wanted:
                return shapes
    raise EvaluationError(f"{task.name}: no size of this form is small enough to be checked")


def _fewest_first(names: Iterable[str]) -> list[tuple[str, ...]]:
    """All subsets: sizes that stay as they are, since another form would take fewer."""
    known = tuple(names)
    counts = range(len(known) + 1)
    return [some for count in counts for some in combinations(known, count)]


def _ragged(length: int) -> int:
    """The largest of the caps, which are primes, up to a length: no tile divides it."""
    return next((cap for cap in CAPS if cap <= length), length)


def _shapes(
    graph: Graph, like: Sequence[TensorShape], sizes: dict[str, int]
) -> tuple[TensorShape, ...]:
    """The inputs' shapes at other sizes, laid out as before."""
    out = []
    for param, given in zip(graph.params, like, strict=True):
        assert isinstance(param.type, TensorType)
        out.append(TensorShape(tuple(x.evaluate(sizes) for x in param.type.shape), given.order))
    return tuple(out)


def _in_turns(
    default: Call, calls: Sequence[Call], inputs: Sequence[torch.Tensor], effort: Effort
) -> list[tuple[float, float]]:
    """Seconds of each call, and the ratio to the default's time in the same round; medians."""
    if not calls:
        return []
    sides = [default, *calls]
    with torch.inference_mode():
        once = [_timed(side, inputs, 1) for side in sides]
        repeats = [max(1, math.ceil(SHORTEST / max(seconds, 1e-7))) for seconds in once]
        rounds: list[list[float]] = []
        end = time.perf_counter() + effort.seconds * len(calls)
        while len(rounds) < effort.most:
            if len(rounds) >= FEWEST and (time.perf_counter() > end or _hopeless(rounds)):
                break
            order = range(len(sides)) if len(rounds) % 2 else reversed(range(len(sides)))
            taken = {at: _timed(sides[at], inputs, repeats[at]) for at in order}
            rounds.append([taken[at] for at in range(len(sides))])
    found = []
    for at in range(1, len(sides)):
        seconds = statistics.median(each[at] for each in rounds)
        found.append((seconds, statistics.median(each[at] / each[0] for each in rounds)))
    return found


def _hopeless(rounds: list[list[float]]) -> bool:
    """Whether even the least ratio says that no choice will win."""
    least = (min(each[at] / each[0] for each in rounds) for at in range(1, len(rounds[0])))
    return all(ratio > HOPELESS for ratio in least)


def _timed(call: Call, inputs: Sequence[torch.Tensor], repeats: int) -> float:
    """Seconds of one call."""
    gpu = bool(inputs) and inputs[0].is_cuda
    start = time.perf_counter()
    for _ in range(repeats):
        call(*inputs)
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats
