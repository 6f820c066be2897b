"""Programs shared by regions with the same text: all layers of a model use one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.determinism import Level, in_force
from tilewright.runtime.locks import GENERATORS, Guard


class ProgramLike(Protocol):
    """What the frontend needs of ``tilewright.runtime.program.Program``."""

    def __call__(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]: ...

    def explain(self) -> Any: ...

    @property
    def supported(self) -> bool: ...


_guard = Guard()
_programs: dict[tuple[str, str | None, Level], ProgramLike | UnsupportedError] = {}


def make_program(module: Module, target: str | None) -> ProgramLike:
    """A new program; the runtime is imported on the first call only."""
    with GENERATORS.lock:
        from tilewright.runtime.program import Program

    program: ProgramLike = Program(module, target=target)
    return program


def refuse_interpreted(program: ProgramLike) -> None:
    """UnsupportedError for a program with a part for the interpreter: torch is faster than that."""
    if not program.supported:
        reasons = [str(k.runs_on) for k in program.explain().kernels if k.runs_on != "compiled"]
        raise UnsupportedError("; ".join(reasons))


def shared_program(module: Module, target: str | None) -> ProgramLike:
    """The program for a module's text, target and level of determinism in force, built once.

    Raises UnsupportedError, again on every call, if no kernels can be made of it; DeterminismError
    if they cannot keep the level.
    """
    key = (str(module), target, in_force())
    with _guard.lock:
        if key not in _programs:
            try:
                program = _programs[key] = make_program(module, target)
                refuse_interpreted(program)
            except UnsupportedError as error:
                _programs[key] = error
        found = _programs[key]
    if isinstance(found, UnsupportedError):
        raise found
    return found


def forget_programs() -> None:
    """Drops all shared programs (tests; freeing memory)."""
    with _guard.lock:
        _programs.clear()
