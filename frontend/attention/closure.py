"""What a score or mask function depends on besides its arguments: a key, and the tensors.

People make new closures on every call (Hugging Face does so in every forward), so functions are
compared by what they are made of: the code, and the values of what it closes over, of its defaults
and of the globals it names. Numbers count by value, tensors by dtype and rank only: those are
passed to the kernel afresh.
"""

from __future__ import annotations

import dis
import enum
import functools
import os
import types
from collections.abc import Callable
from typing import Any

import torch

from tilewright.frontend.attention.symbols import Partial, Symbol

_TORCH = os.path.dirname(torch.__file__)
_STABLE = {"torch", "math", "cmath", "numpy", "operator", "functools", "itertools", "builtins"}


class CodePlan:
    """Which globals and attributes a code object (with those nested in it) reads and writes."""

    def __init__(self, code: types.CodeType) -> None:
        found: dict[str, dict[str, None]] = {"global": {}, "attribute": {}, "stored": {}}
        _scan(code, found)
        self.code = code
        # torch's own combinators (and_masks): nobody changes their globals
        library = code.co_filename.startswith(_TORCH)
        self.globals = () if library else tuple(found["global"])
        self.attributes = tuple(found["attribute"])
        self.stored = tuple(found["stored"])


_READS = {"LOAD_GLOBAL": "global", "LOAD_NAME": "global", "STORE_GLOBAL": "stored"}
_READS |= dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"), "attribute")


def _scan(code: types.CodeType, found: dict[str, dict[str, None]]) -> None:
    for instruction in dis.get_instructions(code):
        kind = _READS.get(instruction.opname)
        if kind is not None:
            found[kind].setdefault(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _scan(constant, found)


_plans: dict[types.CodeType, CodePlan] = {}


def plan_of(code: types.CodeType) -> CodePlan:
    """The plan of a code object, made once."""
    plan = _plans.get(code)
    if plan is None:
        if len(_plans) > 4096:  # functions made by exec in a loop
            _plans.clear()
        plan = _plans[code] = CodePlan(code)
    return plan


class Closure:
    """Walks functions; ``key`` grows by what decides their traces, ``tensors`` by their tensors."""

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []
        self._places: dict[int, int] = {}
        self._seen: dict[tuple[int, int], int] = {}
        self._kept: list[object] = []  # what ``_seen`` knows by its address must stay alive
        self._attributes: tuple[str, ...] = ()

    def add(self, value: Any, name: str = "") -> None:
        """Adds one value; ``name`` is what the function calls it."""
        walk = _WALKS.get(type(value))
        if walk is None:
            self._other(value, name)
        else:
            walk(self, value, name)

    def _plain(self, value: Any, _name: str) -> None:
        self.key.append(type(value))
        self.key.append(value)

    def _float(self, value: float, _name: str) -> None:
        self.key.append(value.hex())  # NaN equals itself, and -0.0 is not 0.0

    def _symbol(self, _value: Symbol, _name: str) -> None:
        """Something that a trace left behind: never equal to what was there before."""
        self.key.append(object())

    def _tensor(self, value: torch.Tensor, name: str) -> None:
        place = self._places.get(id(value))
        if place is not None:
            self.key.append(place)
            return
        self._places[id(value)] = len(self.tensors)
        self.tensors.append(value)
        self.names.append(name)
        self.key.append(value.dtype)
        self.key.append(value.dim())

    def _again(self, value: object, marker: int) -> bool:
        """Whether the value was walked before (then a reference to it is added)."""
        known = self._seen.get((id(value), marker))
        if known is not None:
            self.key.append(("again", known))
            return True
        self._seen[id(value), marker] = len(self._seen)
        self._kept.append(value)
        return False

    def _function(self, value: types.FunctionType, _name: str) -> None:
        if self._again(value, 0):
            return
        plan = plan_of(value.__code__)
        self.key.append(plan)
        outer, self._attributes = self._attributes, plan.attributes
        for name, cell in zip(plan.code.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:
                self.key.append("empty")
                continue
            self.add(content, name)
        if value.__defaults__:
            names = plan.code.co_varnames[: plan.code.co_argcount]
            for name, default in zip(reversed(names), reversed(value.__defaults__), strict=False):
                self.add(default, name)
        for name, default in (value.__kwdefaults__ or {}).items():
            self.add(default, name)
        space = value.__globals__
        for name in plan.globals:
            if name in space:
                self.add(space[name], name)
        self._attributes = outer

    def _method(self, value: types.MethodType, name: str) -> None:
        function = value.__func__
        self.add(function, name)
        outer = self._attributes
        if isinstance(function, types.FunctionType):
            self._attributes = plan_of(function.__code__).attributes
        self.add(value.__self__, name)
        self._attributes = outer

    def _partial(self, value: functools.partial[Any], name: str) -> None:
        self.add(value.func, name)
        self.add(value.args, name)
        self.add(value.keywords, name)

    def _items(self, value: Any, name: str) -> None:
        self.key.append(type(value))
        self.key.append(len(value))
        for item in value:
            self.add(item, name)

    def _dict(self, value: dict[Any, Any], name: str) -> None:
        self.key.append(type(value))
        self.key.append(len(value))
        for key, item in value.items():
            self.add(key)
            self.add(item, key if isinstance(key, str) else name)

    def _module(self, value: types.ModuleType, name: str) -> None:
        self.key.append(value)
        if value.__name__.partition(".")[0] not in _STABLE:
            self._look_into(value)

    def _other(self, value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            self._tensor(value, name)
        elif isinstance(value, type):
            self.key.append(value)
            if value.__module__.partition(".")[0] not in _STABLE:
                self._look_into(value)
        elif isinstance(value, list | tuple | dict):
            walk: Walk = Closure._dict if isinstance(value, dict) else Closure._items
            walk(self, value, name)
        elif type(value).__module__ == "numpy":
            self.key.append((type(value), getattr(value, "shape", ()), value.tobytes()))
        elif isinstance(value, Callable) and not hasattr(value, "__dict__"):  # type: ignore[arg-type]
            self.key.append(value)  # functions and methods written in C
        elif isinstance(value, enum.Enum):
            self.key.append(value)
        else:
            self.key.append((type(value), id(value)))
            call = type(value).__call__ if callable(value) else None
            if isinstance(call, types.FunctionType):
                self._method(types.MethodType(call, value), name)
            self._look_into(value)

    def _look_into(self, value: Any) -> None:
        """The attributes that the function at hand could read: those that its code names."""
        if self._again(value, hash(self._attributes)):
            return
        for name in self._attributes:
            try:
                found = getattr(value, name)
            except Exception:  # a property may raise anything; the function would meet it too
                self.key.append("none")
                continue
            self.add(found, name)


Walk = Callable[[Closure, Any, str], None]
_PLAIN: tuple[type, ...] = (int, bool, str, bytes, complex, type(None), type(Ellipsis), range)
_PLAIN += (torch.dtype, torch.device, types.BuiltinFunctionType)
_WALKS: dict[type, Walk] = dict.fromkeys(_PLAIN, Closure._plain) | {
    float: Closure._float,
    Symbol: Closure._symbol,
    Partial: Closure._symbol,
    torch.Tensor: Closure._tensor,
    torch.nn.Parameter: Closure._tensor,
    types.FunctionType: Closure._function,
    types.MethodType: Closure._method,
    types.ModuleType: Closure._module,
    functools.partial: Closure._partial,
    list: Closure._items,
    tuple: Closure._items,
    dict: Closure._dict,
    slice: lambda self, value, name: self.add((value.start, value.stop, value.step), name),
    set: lambda self, value, name: self._plain(frozenset(value), name),
}
