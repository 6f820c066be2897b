"""What stands for a number while a score or mask function is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tilewright.frontend.attention.source import refused
from tilewright.ir.core import Value

Guards = frozenset[tuple[int, int, int]]  # (closed-over tensor, dimension, its size)


class Symbol(torch.Tensor):
    """A number per score or position: rank 0 to the user's function, ``value`` in the IR.

    It is a tensor without memory: nothing that slips past the tracer finds a number in it.
    ``nonnegative``: known to be at least 0 (indices then need no wrap). ``known``: the integer that
    it has in this call and the sizes that this follows from, if it was computed from sizes.
    """

    value: Value
    nonnegative: bool
    known: tuple[int, Guards] | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Outside of a trace there is only what it is; an operation means that somebody kept it."""
        if func.__name__ == "__get__":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        raise refused(
            "a position or score of an earlier trace is used",
            "a score or mask function must not keep its arguments",
        )


class Partial(Symbol):
    """A closed-over tensor of which some dimensions are indexed: ``table[b]`` of ``[B, L]``.

    ``places`` has a value per dimension of the tensor, None for those still to be given.
    """

    table: Value
    sizes: tuple[Symbol, ...]
    places: tuple[Value | None, ...]


def make_symbol(value: Value, dtype: torch.dtype, nonnegative: bool = False) -> Symbol:
    """A symbol for a value; to be called outside of torch function modes."""
    symbol = torch.Tensor._make_subclass(Symbol, _stand_in(dtype))
    symbol.value, symbol.nonnegative, symbol.known = value, nonnegative, None
    return symbol


_ones: dict[torch.dtype, torch.Tensor] = {}


def example(x: Any) -> Any:
    """The number 1 of a symbol's dtype (of symbols in lists too); anything else as it is."""
    if isinstance(x, tuple | list):
        return type(x)(example(y) for y in x)
    if not isinstance(x, Symbol):
        return x
    if x.dtype not in _ones:
        _ones[x.dtype] = torch.ones((), dtype=x.dtype)
    return _ones[x.dtype]


def known_nonnegative(x: Any) -> Any:
    """Says of a symbol (and of nothing else) that it is at least 0; gives it back."""
    if isinstance(x, Symbol):
        x.nonnegative = True
    return x


_stand_ins: dict[torch.dtype, torch.Tensor] = {}


def _stand_in(dtype: torch.dtype) -> torch.Tensor:
    if dtype not in _stand_ins:
        _stand_ins[dtype] = torch.empty((), dtype=dtype, device="meta")
    return _stand_ins[dtype]


def make_partial(
    table: Value, sizes: tuple[Symbol, ...], places: tuple[Value | None, ...], like: torch.Tensor
) -> Partial:
    """A partly indexed tensor; ``like`` is a meta tensor of its shape."""
    symbol = torch.Tensor._make_subclass(Partial, like)
    symbol.table, symbol.sizes, symbol.places = table, sizes, places
    symbol.nonnegative, symbol.known = False, None
    return symbol
