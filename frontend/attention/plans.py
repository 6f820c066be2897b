"""Traced programs by what decides them; a call that was made before costs a look-up."""

from __future__ import annotations

import gc
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tilewright.frontend.attention.build import Traced, build
from tilewright.frontend.attention.closure import Closure, plan_of
from tilewright.frontend.attention.form import Form
from tilewright.frontend.attention.source import definition
from tilewright.frontend.programs import ProgramLike, shared_program
from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.determinism import in_force, refuse_unordered
from tilewright.runtime.locks import Guard

INTERPRETED: Counter[str] = Counter()  # why attention ran in the interpreter, and how often
GATHERED: Counter[str] = Counter()  # why torch copied pages together, and how often
_LIMIT = 1024  # plans kept; closures over ever new numbers make new ones


class Interpreted:
    """A program without kernels: the meaning of the graph in NumPy. Slow, and says so once."""

    def __init__(self, module: Module, reason: str) -> None:
        self.module, self.reason = module, reason
        self._warned = False

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from tilewright.runtime.backends import run_on_host

        if not self._warned:
            self._warned = True
            warnings.warn(
                "tilewright.attention: no kernel for this form yet, it runs in the interpreter, "
                f"which is slow ({self.reason})",
                stacklevel=2,
            )
        INTERPRETED[self.reason] += 1
        return run_on_host(self.module.main, *inputs)


class Plan:
    """A program with the recipe for its inputs."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.given, self.recipe = traced.given, traced.recipe
        self.program: Any = make_program(traced.module)

    def __call__(
        self,
        given: Mapping[str, torch.Tensor],
        tensors: Sequence[torch.Tensor],
        interpret: bool = True,
    ) -> Sequence[torch.Tensor]:
        """Results for the layout's tensors by name and the closed-over ones.

        Without a kernel by the interpreter, or UnsupportedError if that is not wanted.
        """
        inputs = [given[name] for name in self.given]
        if tensors:
            inputs += self.recipe.inputs(tensors)
        if inputs[0].is_cuda:
            return self._on_gpu(inputs)
        if not isinstance(self.program, Interpreted):
            try:
                results: Sequence[torch.Tensor] = self.program(*inputs)
            except UnsupportedError as error:  # kernels are compiled when first called
                refuse_unordered(in_force(), error)
                self.program = Interpreted(self.traced.module, error.message)
            else:
                return results
        if not interpret:
            raise UnsupportedError(f"no kernel could be made: {self.program.reason}")
        results = self.program(*inputs)
        return results

    def _on_gpu(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Results of a kernel on a GPU; there is nothing slower to fall back to."""
        try:
            if isinstance(self.program, Interpreted):
                raise UnsupportedError(self.program.reason)
            results: Sequence[torch.Tensor] = self.program(*inputs)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"tilewright.attention: no kernel for this form on {inputs[0].device} "
                f"({error.message}); move the tensors to the CPU, or use torch's flex_attention"
            ) from error
        return results


def make_program(module: Module) -> ProgramLike | Interpreted:
    """The kernels for a module, or the interpreter with a warning."""
    try:
        return shared_program(module, None)
    except UnsupportedError as error:
        refuse_unordered(in_force(), error)
        return Interpreted(module, error.message)


_plans: dict[Hashable, list[Plan]] = {}
Start = Callable[..., Sequence[torch.Tensor]]


class Starts:
    """What starts the kernels of calls on a GPU like some before (again.py): by all that decides
    them, and the latest ones by guards of their tensors and what else they depend on."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.known: dict[Hashable, Start] = {}
        self.recent: tuple[tuple[Callable[..., bool], Hashable, Start], ...] = ()
        self.latest: tuple[Start, ...] = ()


STARTS = Starts()
_guard = Guard()
TRACES: Counter[str] = Counter()  # how often functions were traced, for tests and reports

Function = Callable[..., Any]


def closure_of(score_mod: Function | None, mask_mod: Function | None) -> Closure:
    """What the two functions depend on."""
    closure = Closure()
    closure.add(score_mod, "score_mod")
    closure.add(mask_mod, "mask_mod")
    return closure


_NO_FUNCTIONS = tuple(closure_of(None, None).key)


def plan_for(
    facts: Hashable,
    make_form: Callable[[], Form],
    score_mod: Function | None,
    mask_mod: Function | None,
    closure: Closure,
    check: bool = True,
) -> Plan:
    """The plan for a form and two functions, traced if there is none yet.

    ``facts`` decides the form, which is made only when tracing. ``check`` looks for side effects.
    Raises UnsupportedError.
    """
    key = (facts, tuple(closure.key), in_force().rank)
    found = _holding(key, closure)
    if found is not None:
        return found
    with _guard.lock, _no_collection():
        found = _holding(key, closure)  # another thread may have traced it meanwhile
        if found is not None:
            return found
        TRACES["attention"] += 1
        traced = build(make_form(), score_mod, mask_mod, closure, torch.device("cpu"))
        if check:
            _refuse_side_effects(score_mod, mask_mod, closure)
        plan = Plan(traced)
        if len(_plans) >= _LIMIT:
            _plans.clear()
        _plans.setdefault(key, []).append(plan)
        return plan


def known_plan(facts: Hashable, closure: Closure | None = None) -> Plan | None:
    """``plan_for`` without tracing: None if there is no plan. ``closure``: of the functions."""
    functions = tuple(closure.key) if closure is not None else _NO_FUNCTIONS
    key = facts, functions, in_force().rank
    return _holding(key, closure)


def _holding(key: Hashable, closure: Closure | None) -> Plan | None:
    """The plan whose guards hold."""
    for plan in _plans.get(key, ()):
        if closure is None or not plan.recipe.guards or plan.recipe.holds(closure.tensors):
            return plan
    return None


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: going through all that torch has loaded takes a tenth of a
    second, which the many new objects of a first call would bring about."""
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        _paused.append(True)
        yield
    finally:
        _paused.clear()
        gc.enable()


_paused: list[bool] = []


def _after_fork_in_child() -> None:
    """The thread that would switch collection on again is not there."""
    if _paused:
        _paused.clear()
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _refuse_side_effects(
    score_mod: Function | None, mask_mod: Function | None, before: Closure
) -> None:
    """UnsupportedError if tracing changed anything that the functions refer to."""
    for function in (score_mod, mask_mod):
        code = getattr(function, "__code__", None)
        stored = plan_of(code).stored if code is not None else ()
        if stored:
            raise _side_effect(function, f"it writes to the global {', '.join(stored)}")
    if closure_of(score_mod, mask_mod).key != before.key:
        changed = score_mod if mask_mod is None else mask_mod
        raise _side_effect(changed, "it changes a variable, list or attribute outside of it")


def _side_effect(function: Any, what: str) -> UnsupportedError:
    advice = "functions are traced once and then not called again: return everything as the result"
    message = f"a score or mask function with a side effect: {what}; {advice}"
    return UnsupportedError(message, definition(function))


def forget_plans() -> None:
    """Drops all traces (tests; freeing memory)."""
    with _guard.lock:
        _plans.clear()
        STARTS.clear()
