"""From the shapes of a call's inputs to the values of a program's size names."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.core import Graph
from tilewright.ir.errors import BindError
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, TensorType

Shape = tuple[int, ...]


def bind_sizes(
    graph: Graph, shapes: Sequence[Shape], known: dict[str, int] | None = None
) -> dict[str, int]:
    """Values of all size names so that every parameter has the given shape.

    Raises BindError naming the operand, both shapes and the rule that fails.
    """
    if len(shapes) != len(graph.params):
        names = ", ".join(f"%{p.hint}" for p in graph.params)
        message = f"{graph.name} takes {len(graph.params)} inputs ({names}), {len(shapes)} given"
        raise BindError(message)
    values: dict[str, int] = dict(known or {})
    pending: list[tuple[str, Size, int]] = []
    for param, shape in zip(graph.params, shapes, strict=True):
        type_ = param.type
        assert isinstance(type_, TensorType | BufferType)
        if len(shape) != len(type_.shape):
            rule = f"has {len(type_.shape)} dimensions, the input has {len(shape)}"
            raise BindError(f"%{param.hint}: {type_} {rule} ({_shape(shape)})")
        for at, (size, number) in enumerate(zip(type_.shape, shape, strict=True)):
            pending.append((f"dimension {at} of %{param.hint}: {type_}", size, number))
    _solve(values, pending)
    missing = [n for n in graph.sizes if n not in values]
    if missing:
        raise BindError(f"{graph.name}: size {missing[0]} follows from no input; pass it by name")
    return values


def _solve(values: dict[str, int], pending: list[tuple[str, Size, int]]) -> None:
    while pending:
        rest = []
        for where, size, number in pending:
            unknown = [n for n in size.names if n not in values]
            if not unknown:
                _check(values, where, size, number)
            elif len(unknown) == 1:
                _assign(values, unknown[0], where, size, number)
            else:
                rest.append((where, size, number))
        if len(rest) == len(pending):
            return
        pending = rest


def _check(values: dict[str, int], where: str, size: Size, number: int) -> None:
    wanted = size.evaluate(values)
    if wanted != number:
        known = ", ".join(f"{n} = {values[n]}" for n in sorted(size.names))
        detail = f" ({known})" if known else ""
        raise BindError(f"{where} must be {size} = {wanted}{detail}, the input has {number}")


def _assign(values: dict[str, int], name: str, where: str, size: Size, number: int) -> None:
    factor = size.divided_by(name, values)
    if factor == 0 and number == 0:
        values[name] = 0
        return
    if not factor or number % factor:
        raise BindError(f"{where} must be {size}, a multiple of {factor}, the input has {number}")
    values[name] = number // factor


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a single number"
