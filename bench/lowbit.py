"""The figures of low-bit products, as a command: ``python -m tilewright.bench.lowbit``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import typer

from tilewright.bench import lowbit_workloads as w
from tilewright.bench import machine
from tilewright.bench.command import add_command, begin, note
from tilewright.bench.lowbit_peers import has_onnxruntime
from tilewright.bench.lowbit_workloads import Problem, Shape
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Effort
from tilewright.lowbit import bits_of, code_dtypes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NO_GOAL = Goal()
READING_GOAL = Goal(1.5, 1.15)
FORMAT_GOAL = Goal(1.6, 1.2)
DENSE_GOAL = Goal(1.0)

# each with its goals on a machine with AVX-512, and on one without
PEERS: tuple[tuple[Problem, Goal, Goal], ...] = (
    (Problem(1, 4, "int8", "onnxruntime"), Goal(1.8), Goal(1.0)),
    (Problem(1, 8, "int8", "onnxruntime"), Goal(1.7), Goal(1.0)),
    (Problem(1, 2, "int8", "onnxruntime"), Goal(2.0), Goal(1.2)),
    (Problem(16, 4, "int8", "onnxruntime"), Goal(2.0, 2.5), Goal(1.0, 1.3)),
    (Problem(256, 4, "int8", "onnxruntime"), Goal(1.5, 2.5), Goal(1.0, 1.3)),
    (Problem(1, 4, "float", "onnxruntime"), Goal(2.5), Goal(2.0)),
    (Problem(1, 4, "float", "torch int4 bf16"), Goal(1.5), Goal(1.5)),
)


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    shape = Shape(256, 512) if quick else Shape()
    with torch.inference_mode():
        rows = (
            *_beside_peers(shape, effort, here.wide, only),
            *_beside_dense(shape, effort, quick, only),
        )
        figures = (*_widths(shape, effort, only), *_formats(shape, effort, only))
    details = {"onnxruntime": has_onnxruntime(), "shape": vars(shape)}
    record = Record("lowbit", date, here, rows, figures, details)
    return record.without_goals() if quick else record


def _said(name: str, only: str) -> bool:
    """Whether a figure is wanted; names it on the way."""
    if only not in name:
        return False
    note(name)
    return True


def _beside_peers(shape: Shape, effort: Effort, wide: bool, only: str) -> Iterator[Comparison]:
    for problem, with_avx512, without in PEERS:
        goal = with_avx512 if wide else without
        if problem.peer == "onnxruntime" and not has_onnxruntime():
            typer.secho(f"{problem.name}: onnxruntime is not installed", err=True)
        elif _said(f"{problem.name}, {problem.peer}", only):
            yield w.compare(replace(problem, goal=goal), shape, effort, machine.THREADS)


def _beside_dense(shape: Shape, effort: Effort, quick: bool, only: str) -> Iterator[Comparison]:
    for bits in range(1, 9):
        problem = Problem(8 if quick else 256, bits, "float", "torch f32", DENSE_GOAL)
        if _said(f"{problem.name}, {problem.peer}", only):
            yield w.compare(problem, shape, effort, machine.THREADS)


def _widths(shape: Shape, effort: Effort, only: str) -> Iterator[Quantity]:
    for bits in range(1, 9):
        name = f"M=1, u{bits}, int8: time, as a multiple of reading its bytes"
        if _said(name, only):
            found = w.against_reading(shape, bits, "int8", effort)
            goal = READING_GOAL if bits >= 3 else NO_GOAL
            yield Quantity(name, found.pop("value"), "times", goal, found)


def _formats(shape: Shape, effort: Effort, only: str) -> Iterator[Quantity]:
    """Every float format and nf4: the one that is slowest beside the integers of its size; all are
    in the details."""
    title = "M=1, float formats: the largest time, as a multiple of the integer width's"
    if only not in title:
        return
    details = {}
    for name in (*code_dtypes("float"), *code_dtypes("table")):
        note(f"{title}: {name}")
        details[name] = w.against_integer(shape, name, bits_of(name), effort)
    worst = max(found["value"] for found in details.values())
    yield Quantity(title, worst, "times", FORMAT_GOAL, details)


add_command(
    app,
    run,
    "Measures products with quantised weights against onnxruntime, torch and memory itself.",
)

if __name__ == "__main__":
    app()
