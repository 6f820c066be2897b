"""From a call's closed-over tensors to a program's parameters: which tensors, computed how.

A function may work on its tensors before it indexes them (``slopes = 2 ** -exponents``). That work
is not part of the kernel: it is recorded here and done by torch in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.frontend.attention import source
from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.symbols import Guards
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

_RANDOM = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli"}
_RANDOM |= {"multinomial", "normal", "poisson", "dropout", "randint_like"}


@dataclass(frozen=True)
class _Place:
    """A closed-over tensor (or an earlier step's result) in the arguments of a step."""

    at: int


@dataclass
class _Step:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    uses: frozenset[int]


class Recipe:
    """Places 0 … n-1 are the closure's tensors, later ones results of steps.

    ``wanted`` lists the places of the program's parameters in order; ``guards`` the sizes for
    which the trace holds (empty in nearly all cases).
    """

    def __init__(self, closure: Closure, taken: Sequence[str] = ()) -> None:
        self.names = closure.names
        self.leaves = len(closure.tensors)
        self.guards: set[tuple[int, int, int]] = set()
        self.wanted: list[int] = []
        self.parameters: list[Value] = []
        self._steps: list[_Step] = []
        self._place = {id(x): at for at, x in enumerate(closure.tensors)}
        self._alive: list[torch.Tensor] = list(closure.tensors)
        self._constant: set[int] = set()
        self._values: dict[int, Value] = {}
        self._taken = set(taken)

    # while tracing

    def parameter(self, x: torch.Tensor) -> Value:
        """The program's parameter for a tensor, with a size name for each of its dimensions."""
        at = self._find(x)
        if at not in self._values:
            name = self._free_name(self.names[at] if at < self.leaves else "table")
            shape = tuple(Size.of(f"{name}_{dim}") for dim in range(x.dim()))
            try:
                type_ = TensorType(shape, ir_dtype(x.dtype))
            except UnsupportedError as error:
                raise source.refused(f"{name} is {x.dtype}", "convert it before") from error
            self._values[at] = Value(type_, name)
            self.wanted.append(at)
            self.parameters.append(self._values[at])
        return self._values[at]

    def _free_name(self, name: str) -> str:
        stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_")
        stem = stem if stem and not stem[0].isdigit() else f"t{stem}"
        found, number = stem, 1
        while found in self._taken:
            number += 1
            found = f"{stem}{number}"
        self._taken.add(found)
        return found

    def _find(self, x: torch.Tensor) -> int:
        at = self._place.get(id(x))
        if at is None:
            raise source.refused(
                "a tensor that comes from nowhere the tracer looks at",
                "close over it, or pass it as a default or an attribute that the function names",
            )
        return at

    def follows_inputs(self, x: Any) -> bool:
        """Whether a tensor's shape may change from call to call."""
        return isinstance(x, torch.Tensor) and id(x) in self._place and not self._is_constant(x)

    def _is_constant(self, x: torch.Tensor) -> bool:
        return self._place.get(id(x), -1) in self._constant

    def constant(self, x: torch.Tensor) -> int | float | bool | None:
        """The number in a tensor that the function itself made, if it is one."""
        if not self._is_constant(x) or x.dim():
            return None
        number: int | float | bool = x.item()
        return number

    def guard(self, x: torch.Tensor, dim: int) -> Guards:
        """That a tensor keeps its size, to be added to ``guards`` if the trace relies on it."""
        at = self._find(x)
        if at >= self.leaves:  # sizes of all it came from decide
            leaves = self._sources(at)
            return frozenset((i, d, n) for i in leaves for d, n in enumerate(self._alive[i].shape))
        return frozenset({(at, dim, x.shape[dim])})

    def _sources(self, at: int) -> set[int]:
        if at < self.leaves:
            return {at}
        return set().union(*(self._sources(i) for i in self._steps[at - self.leaves].uses))

    def run(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Does an operation on real tensors and remembers how."""
        if name in _RANDOM:
            raise source.refused(f"{name} draws random numbers", "draw them before, and index them")
        result = func(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            if isinstance(result, tuple | list) and any(
                isinstance(x, torch.Tensor) for x in result
            ):
                raise source.refused(f"{name} gives several tensors", source.OUTSIDE)
            return result
        if id(result) in self._place:
            return result
        uses: set[int] = set()
        packed = self._pack(args, uses), self._pack(kwargs, uses)
        at = self.leaves + len(self._steps)
        self._steps.append(_Step(func, packed[0], packed[1], frozenset(uses)))
        if all(i in self._constant for i in uses):
            self._constant.add(at)
        self._place[id(result)] = at
        self._alive.append(result)
        return result

    def _pack(self, x: Any, uses: set[int]) -> Any:
        """Arguments with places instead of tensors."""
        if isinstance(x, torch.Tensor):
            uses.add(self._find(x))
            return _Place(self._find(x))
        if isinstance(x, tuple | list):
            return type(x)(self._pack(y, uses) for y in x)
        if isinstance(x, dict):
            return {key: self._pack(y, uses) for key, y in x.items()}
        return x

    def finish(self) -> None:
        """Drops what only tracing needs: this call's tensors, steps that nothing uses."""
        constants = {at: self._alive[at] for at in self._constant}
        self._alive.clear()
        self._place.clear()
        needed, stack = set[int](), list(self.wanted)
        while stack:
            at = stack.pop()
            if at >= self.leaves and at not in needed and at not in constants:
                stack.extend(self._steps[at - self.leaves].uses)
            needed.add(at)
        self._constants = {at: x for at, x in constants.items() if at in needed}
        self._order = sorted(at for at in needed if at >= self.leaves and at not in constants)

    # in every call

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the trace serves tensors of these sizes."""
        return all(tensors[at].shape[dim] == size for at, dim, size in self.guards)

    def inputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The parameters' tensors for this call's closed-over tensors."""
        if not self._order and not self._constants:
            return [tensors[at] for at in self.wanted]
        known = dict(enumerate(tensors)) | self._constants
        for at in self._order:
            step = self._steps[at - self.leaves]
            args, kwargs = _unpack(step.args, known), _unpack(step.kwargs, known)
            known[at] = step.function(*args, **kwargs)
        return [known[at] for at in self.wanted]


def _unpack(x: Any, known: dict[int, torch.Tensor]) -> Any:
    if isinstance(x, _Place):
        return known[x.at]
    if isinstance(x, tuple | list):
        return type(x)(_unpack(y, known) for y in x)
    if isinstance(x, dict):
        return {key: _unpack(y, known) for key, y in x.items()}
    return x
