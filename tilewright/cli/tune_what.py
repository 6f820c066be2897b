"""The kernels that ``tilewright tune`` is asked to tune, each with its share of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tilewright.cli.inputs import check_memory, input_shapes, random_inputs
from tilewright.cli.output import note
from tilewright.cli.programs import only_tensor_level, read_program
from tilewright.cli.sizes import choose_sizes, parse_sizes
from tilewright.ir.errors import SettingError, TilewrightError, TuningError
from tilewright.runtime.program import Program
from tilewright.runtime.schedule_forms import KernelForm
from tilewright.runtime.tracing.file import read_trace
from tilewright.runtime.tuning.traced import Skipped, Weighted, tasks_of_call, tasks_of_trace


def kernels_to_tune(
    what: str, sizes: Sequence[str], target: str | None, backend: str | None
) -> Weighted:
    """The kernels of a file, a trace, or a workload by name. Raises TuningError if there are none
    that can be tuned."""
    path = Path(what)
    if what == "-" or path.suffix == ".tw":
        tasks, skipped = _of_file(what, sizes, target, backend)
    elif path.is_dir() or path.suffix == ".json":
        tasks, skipped = tasks_of_trace(read_trace(path))
    else:
        tasks, skipped = _of_workload(what)
    tunable = []
    for task, weight in tasks:
        try:
            KernelForm.of(task).space  # noqa: B018  (refuses here)
        except TilewrightError as error:
            skipped[task.name] = error.message
        else:
            tunable.append((task, weight))
    for name, reason in skipped.items():
        note(f"{name}: not tuned: {reason}")
    if not tunable:
        raise TuningError(f"{what}: no kernel whose schedule could be tuned")
    return tunable


def _of_file(
    name: str, sizes: Sequence[str], target: str | None, backend: str | None
) -> tuple[Weighted, Skipped]:
    module = only_tensor_level(read_program(name), name, "tune")
    chosen = choose_sizes(module.main, parse_sizes(sizes))
    shapes = input_shapes(module.main, chosen)
    check_memory(shapes)
    for param, shape in zip(module.main.params, shapes, strict=True):
        if not all(shape.shape):
            raise SettingError(f"%{param.hint} is {shape}, without elements: nothing to measure")
    program = Program(module, target=target, backend=backend)
    inputs = random_inputs(shapes, 0)
    return tasks_of_call(lambda: program(*inputs))


def _of_workload(name: str) -> tuple[Weighted, Skipped]:
    """A suite of ``tilewright bench`` or one of its problems."""
    from tilewright.bench.suites.workloads import calls_of

    calls = calls_of(name)
    return tasks_of_call(lambda: [call() for call in calls])
