"""From the shapes of a call's inputs to the values of a program's size names."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.core import Graph, Value
from tilewright.ir.errors import BindError
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, TensorType

Shape = tuple[int, ...]
Equation = tuple[Value, int, Size, int]  # a parameter, its dimension, what it must be, and is


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
    for name, number in values.items():
        if name not in graph.sizes:
            listed = ", ".join(graph.sizes) or "none"
            raise BindError(f"{graph.name} has no size {name} (it has: {listed})")
        if number < 0:
            raise BindError(f"{graph.name}: size {name} = {number} is negative")
    pending: list[Equation] = []
    for param, shape in zip(graph.params, shapes, strict=True):
        type_ = param.type
        if not isinstance(type_, TensorType | BufferType):
            raise BindError(f"%{param.hint}: {type_} cannot be given from outside")
        if len(shape) != len(type_.shape):
            rule = f"has {len(type_.shape)} dimensions, the input has {len(shape)}"
            raise BindError(f"%{param.hint}: {type_} {rule} ({_shape(shape)})")
        for at, (size, number) in enumerate(zip(type_.shape, shape, strict=True)):
            pending.append((param, at, size, number))
    _solve(values, pending)
    missing = [n for n in graph.sizes if n not in values]
    if missing:
        raise BindError(f"{graph.name}: size {missing[0]} follows from no input; pass it by name")
    return values


def _solve(values: dict[str, int], pending: list[Equation]) -> None:
    """Fills ``values`` from equations size = number, those with one unknown name first.

    An equation 0 * N = 0 says nothing about N, which counts as 0 if no other one does.
    """
    any_value_fits = False
    while pending:
        rest = []
        for equation in pending:
            unknown = [n for n in equation[2].names if n not in values]
            if not unknown:
                _check(values, equation)
            elif len(unknown) > 1 or not _assign(values, unknown[0], equation, any_value_fits):
                rest.append(equation)
        if len(rest) == len(pending):
            if any_value_fits:
                return
            any_value_fits = True
        pending = rest


def _check(values: dict[str, int], equation: Equation) -> None:
    _, _, size, number = equation
    wanted = size.evaluate(values)
    if wanted != number:
        known = ", ".join(f"{n} = {values[n]}" for n in sorted(size.names))
        detail = f" ({known})" if known else ""
        where = _where(equation)
        raise BindError(f"{where} must be {size} = {wanted}{detail}, the input has {number}")


def _assign(values: dict[str, int], name: str, equation: Equation, any_value_fits: bool) -> bool:
    """Solve size = factor * name + rest = number for ``name``; False if that has to wait."""
    _, _, size, number = equation
    factor_size, rest_size = size.split(name)
    if name in factor_size.names:
        return False
    factor, rest = factor_size.evaluate(values), number - rest_size.evaluate(values)
    if factor == 0 and rest == 0:
        if any_value_fits:
            values[name] = 0
        return any_value_fits
    if factor == 0 or rest % factor or rest // factor < 0:
        more = f" more than {rest_size}" if rest_size.terms else ""
        rule = f"a multiple of {factor}{more}"
        where = _where(equation)
        raise BindError(f"{where} must be {size}, {rule}, the input has {number}")
    values[name] = rest // factor
    return True


def _where(equation: Equation) -> str:
    param, at, _, _ = equation
    return f"dimension {at} of %{param.hint}: {param.type}"


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a single number"
