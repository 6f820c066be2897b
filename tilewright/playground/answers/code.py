"""Generated code: what each back end writes for a kernel."""

from __future__ import annotations

from typing import Any

from tilewright.cli.compile import CPU_ONLY, Stage, check_stage, emitted, load_target
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import SettingError
from tilewright.ir.target import Target, named_target
from tilewright.playground.answers.tiles import tile_kernel
from tilewright.playground.request import Request

NUMBA = "numba"
# what a request's ``language`` may be -> how the page calls it
LANGUAGES = {
    "mlir": "MLIR",
    "llvm": "LLVM IR",
    "asm": "Assembly",
    NUMBA: "Numba",
    "triton": "Triton",
    "threads": "Threads",
    "cuda": "CUDA C++",
}
MOST_CHARACTERS = 2_000_000
_A_CPU, _A_GPU = "x86-64-v3", "cuda-sm90"


def answer(request: Request) -> dict[str, Any]:
    """The code, or ``why`` the target has none in this language, and a target that has."""
    if request.language not in LANGUAGES:
        raise SettingError(f"the playground shows {', '.join(LANGUAGES)}, not {request.language!r}")
    target = load_target(request.target)
    if request.language == NUMBA:
        return _shown(_numba(request), "numba, for the target scalar: one element at a time")
    stage = Stage(request.language)
    try:
        check_stage(stage, target)
    except SettingError:
        suggested = _A_CPU if stage in CPU_ONLY else _A_GPU
        return {"why": _reason(stage, target), "suggest": suggested}
    text = emitted(Module((tile_kernel(request, target),)), stage, target.name, request.rows)
    return _shown(text, f"{LANGUAGES[request.language]} for {target.name}")


def _reason(stage: Stage, target: Target) -> str:
    """Why a target has no code of a stage, and what it has."""
    language = LANGUAGES[stage.value]
    if target.gpu == "hip":
        return f"{language} is not written for {target.name}; it has Triton."
    if target.gpu:
        has = "Triton, threads, CUDA C++ and assembly (SASS)"
        return f"{language} is for CPUs, and {target.name} is a GPU; it has {has}."
    has = "MLIR, LLVM IR, assembly and Numba"
    return f"{language} is for GPUs, and {target.name} is a CPU; it has {has}."


def _numba(request: Request) -> str:
    from tilewright.backends.numba.emit import emit_source

    program: Graph = tile_kernel(request, named_target("scalar"))
    return emit_source(program, program.name)


def _shown(text: str, title: str) -> dict[str, Any]:
    text = text.rstrip("\n")
    lines = text.count("\n") + 1
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + f"\n… {len(text) - MOST_CHARACTERS} characters more"
    return {"text": text, "title": title, "lines": lines}
