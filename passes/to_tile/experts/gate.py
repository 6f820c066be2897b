"""The function between the two products of an expert, in registers."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir.activation_functions import ACTIVATIONS, activated
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.emitter import TileBuilder


@dataclass(frozen=True)
class GateFunction:
    """``function(min(g, limit)) * (clamp(u, -limit, limit) + shift)``; without u ``function(g)``.

    ``alpha`` makes silu ``g * sigmoid(alpha * g)``. Raises UnsupportedError for other functions.
    """

    function: str = ""
    alpha: float = 1.0
    limit: float | None = None
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.function not in ACTIVATIONS:
            raise UnsupportedError(f"no kernel with the function {self.function!r}")

    def emit(self, b: TileBuilder, gate: Value, up: Value | None) -> Value:
        """Tiles of f32, and one."""
        if self.limit is not None and up is not None:
            high, low = b.number(self.limit, F32), b.number(-self.limit, F32)
            gate = b(m.Min, gate, high, hint="gate")
            up = b(m.Max, b(m.Min, up, high), low, hint="up")
        value = self._function(b, gate)
        if up is None:
            return value
        if self.shift:
            up = b(m.Add, up, b.number(self.shift, F32), hint="up")
        return b(m.Mul, value, up, hint="h")

    def _function(self, b: TileBuilder, x: Value) -> Value:
        if self.alpha != 1.0:  # of silu
            inner = b(m.Mul, x, b.number(self.alpha, F32))
            return b(m.Mul, x, b(m.Sigmoid, inner), hint="silu")
        return activated(b, lambda value: b.number(value, F32), self.function, x)
