"""A program run on random inputs, and the errors of all its forms against the float64 oracle."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from tilewright.cli.inputs import InputShape, check_memory, input_shapes, random_inputs
from tilewright.cli.programs import only_tensor_level
from tilewright.cli.results import difference, tolerance
from tilewright.cli.run_file import too_large_for_the_oracle
from tilewright.evaluation import evaluate, to_numpy
from tilewright.ir.core import Module
from tilewright.ir.dtypes import Array
from tilewright.ir.errors import SettingError
from tilewright.ir.types import TensorType
from tilewright.playground.answers.program import NAME, lowered, parsed, sizes_for
from tilewright.playground.request import Request
from tilewright.runtime.program import Program
from tilewright.runtime.threads import num_threads

BACKENDS = ("", "mlir", "numba", "interpreter", "cuda-host")
_REPEATS, _MOST_SECONDS = 20, 2.0


def answer(request: Request) -> dict[str, Any]:
    """Times of calls and the largest error of every result. Raises what ``run`` raises."""
    if request.backend not in BACKENDS:
        raise SettingError(f"the playground runs {', '.join(BACKENDS[1:])}, not {request.backend}")
    module = only_tensor_level(parsed(request), NAME, "run")
    sizes = sizes_for(module.main, request)
    shapes = input_shapes(module.main, sizes)
    check_memory(shapes)
    target = None if request.target == "host" else request.target
    program = Program(module, target=target, backend=request.backend or None)
    inputs = random_inputs(shapes, request.seed)
    outputs, first, times = _timed(program, inputs)
    found: dict[str, Any] = {
        "where": f"{program.target.name} by {program.backend}",
        "threads": num_threads(),
        "first": first,
        "median": statistics.median(times) if times else first,
        "runs": len(times),
        "inputs": _shown(module, shapes),
        "kernels": [str(kernel.name) for kernel in program.explain().kernels],
        "forms": [],
    }
    if too_large_for_the_oracle(module.main, sizes):
        return found | {"unchecked": "too large for the oracle, which holds every value in float64"}
    wanted = evaluate(module, *inputs, precision="f64", sizes=sizes)
    found["forms"].append(_form(module, "kernels", [to_numpy(x) for x in outputs], wanted))
    for form, level in (("tensor form, interpreted", module), ("stream form", _streams(request))):
        if level is not None:
            results = evaluate(level, *inputs, sizes=sizes)
            found["forms"].append(_form(module, form, list(results), wanted))
    return found


def _streams(request: Request) -> Module | None:
    """The stream form after the chosen passes, if it is one graph: the interpreter runs one."""
    module = lowered(request)
    single = len(module.graphs) == 1 and module.main.level == "stream"
    return module if single else None


def _timed(
    program: Program, inputs: list[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], float, list[float]]:
    """The results; seconds of the first call, with compiling, and of others."""
    with torch.no_grad():
        start = time.perf_counter()
        outputs = program(*inputs)
        first = time.perf_counter() - start
        times: list[float] = []
        while len(times) < _REPEATS and sum(times) + first < _MOST_SECONDS:
            start = time.perf_counter()
            program(*inputs)
            times.append(time.perf_counter() - start)
    return outputs, first, times


def _shown(module: Module, shapes: list[InputShape]) -> list[str]:
    return [f"%{p.hint}: {s}" for p, s in zip(module.main.params, shapes, strict=True)]


def _form(
    module: Module, form: str, results: list[Array], wanted: tuple[Array, ...]
) -> dict[str, Any]:
    rows = []
    for value, got, right in zip(module.main.results, results, wanted, strict=True):
        assert isinstance(value.type, TensorType)
        if got.shape != right.shape:
            shapes = f"shape {got.shape}, the oracle's {right.shape}"
            rows.append({"name": f"%{value.hint}", "good": False, "error": None, "note": shapes})
            continue
        largest, scale = difference(got, right)
        allowed = tolerance(str(value.type.dtype)) * scale
        finite = largest if largest != float("inf") else None
        rows.append(
            {
                "name": f"%{value.hint}",
                "error": finite,
                "scale": scale,
                "allowed": allowed,
                "good": largest <= allowed,
            }
        )
    return {"form": form, "results": rows}
