"""Runs a score or mask function once, on symbols, and emits what it does into the IR.

Everything the function does with torch comes by here, whether the tensors are symbols or real:
operations on symbols are emitted; operations on closed-over tensors alone (``slopes = 2 ** x``) are
run now and recorded in the recipe, which every later call runs again with that call's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from tilewright.frontend.attention import source
from tilewright.frontend.attention.indexing import index, start_partial
from tilewright.frontend.attention.operations import ALIASES, OPERATIONS
from tilewright.frontend.attention.recipe import Recipe
from tilewright.frontend.attention.rules import (
    FORBIDDEN,
    KNOWN_PROPERTIES,
    changes_operand,
    nonnegative_result,
    own_name,
    target_dtype,
)
from tilewright.frontend.attention.symbols import Partial, Symbol, example, make_symbol
from tilewright.frontend.op_map import FILLED
from tilewright.frontend.op_map.emitter import Emitter, tensor_type
from tilewright.frontend.op_map.registry import Handler, Kind, function_entry, method_entry
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.errors import Location, TilewrightError, UnsupportedError, VerifyError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

assert FILLED, "importing the op map fills its registry"
_RELATIONS = ("lt", "le", "gt", "ge", "eq", "ne")
_USABLE = (Kind.POINTWISE, Kind.GENERATOR)


class Tracer(TorchFunctionMode):
    """Traces functions into one emitter; ``recipe`` says which tensors its parameters are."""

    def __init__(self, emitter: Emitter, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.emitter, self.recipe, self.device = emitter, recipe, device
        self._sizes: dict[Value, tuple[Symbol, ...]] = {}

    def run(self, function: Callable[..., Any], *arguments: Symbol) -> Any:
        """The function's result on symbols: a symbol, or a number that it always returns."""
        with self:
            result = function(*arguments)
        if isinstance(result, torch.Tensor) and not isinstance(result, Symbol):
            return result if result.dim() else self.real_number(result)
        return result

    def value(self, result: Any, dtype: torch.dtype, location: Location) -> Value:
        """A result as an IR value of ``dtype``. Raises UnsupportedError if it is no number."""
        e = self.emitter
        if isinstance(result, Symbol) and not isinstance(result, Partial):
            return e.cast(result.value, ir_dtype(dtype))
        if isinstance(result, bool | int | float):
            return e.const(result if dtype != torch.bool else bool(result), ir_dtype(dtype))
        kind = type(result).__name__
        if isinstance(result, Partial):
            kind = "a tensor with dimensions that are not indexed"
        elif isinstance(result, torch.Tensor):
            kind = f"a tensor of shape {tuple(result.shape)}"
        raise UnsupportedError(
            f"the function returned {kind}; it must return one number per position", location
        )

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = own_name(func)
        given = [*_flat(args), *_flat(kwargs.values())]
        if changes_operand(name, kwargs):
            return self._in_place(func, name, args, kwargs)
        if name == "__getitem__":
            return self._getitem(func, args)
        symbols = [x for x in given if isinstance(x, Symbol)]
        if name in FORBIDDEN:
            return self._as_python(func, name, args[0])
        if all(_has_known(x) for x in symbols) and (not symbols or _stays_outside(name, given)):
            return self._real(func, name, args, kwargs)
        if name in KNOWN_PROPERTIES and isinstance(args[0], Symbol):
            return self._property(name, args)
        partial = next((x for x in symbols if isinstance(x, Partial)), None)
        if partial is not None:
            raise source.refused(
                f"{name} of a tensor of which {partial.places.count(None)} dimensions are not "
                "indexed yet",
                "index all of them first: table[b, h], not arithmetic on table[b]",
            )
        return self._emit(func, name, args, kwargs)

    # symbols

    def _property(self, name: str, args: Sequence[Any]) -> Any:
        x = args[0]
        if isinstance(x, Partial) and name in ("shape", "size"):
            left = [n for n, i in zip(x.sizes, x.places, strict=True) if i is None]
            return left[args[1]] if len(args) > 1 else tuple(left)
        return KNOWN_PROPERTIES[name](self, x)

    def _emit(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Symbol:
        name, exchanged = ALIASES.get(name, (name, False))
        args = [self._operand(name, x) for x in (reversed(args) if exchanged else args)]
        kwargs = {key: self._operand(name, x) for key, x in kwargs.items()}
        if name == "ge" and _is_certain(*args):
            return make_symbol(self.emitter.const(True, BOOL), torch.bool)
        handler = _handler(func, name, exchanged)
        dtype = self._result_dtype(func, name, args, kwargs, exchanged)
        e = self.emitter
        e.shape, e.dtype, e.builder.loc = (), ir_dtype(dtype), source.here()
        try:
            result = handler(e, *self._values(name, args), **_plain(kwargs))
            if not isinstance(result, Value):
                raise UnsupportedError("its result is not one number")
        except TilewrightError as error:
            if error.location is not None and not isinstance(error, VerifyError):
                raise
            raise source.refused(f"{name}: {error.message}", "") from error
        except TypeError as error:
            raise source.refused(f"{name}: {error}", "leave this argument out") from error
        symbol = make_symbol(e.cast(result, e.dtype), dtype, nonnegative_result(name, args))
        self._keep_known(symbol, func, args if not exchanged else args[::-1], kwargs)
        return symbol

    def _operand(self, name: str, x: Any) -> Any:
        """Rank-0 tensors from outside become parameters; larger ones have to be indexed."""
        if isinstance(x, torch.Tensor) and not isinstance(x, Symbol):
            if x.dim():
                raise source.refused(
                    f"{name} of a position with a tensor of shape {tuple(x.shape)}",
                    "index the tensor by positions first, such as bias[h] or bias[q_idx, kv_idx]",
                )
            return self.real_number(x)
        if isinstance(x, tuple | list):
            return type(x)(self._operand(name, y) for y in x)
        return x.item() if isinstance(x, np.generic) else x

    def real_number(self, x: torch.Tensor) -> Symbol:
        constant = self.recipe.constant(x)
        if constant is not None:
            value = self.emitter.const(constant, ir_dtype(x.dtype))
            return make_symbol(value, x.dtype, constant >= 0)
        return make_symbol(self.recipe.parameter(x), x.dtype)

    def _result_dtype(
        self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], exchanged: bool
    ) -> torch.dtype:
        """torch's own rule, found by doing it with ones: operations on tensors without memory
        import Dynamo (two seconds)."""
        if name == "to":
            return target_dtype(args, kwargs)
        given = args[::-1] if exchanged else args
        # a size is a number to torch: x.clamp(0, table.shape[0])
        given = [1 if at and _has_known(x) else example(x) for at, x in enumerate(given)]
        named = {key: example(x) for key, x in kwargs.items()}
        try:
            result = func(*given, **named)
        except (TypeError, RuntimeError, IndexError, NotImplementedError) as error:
            raise source.refused(f"{name}: {error}", "see torch's rules for it") from error
        if not isinstance(result, torch.Tensor) or result.dim():
            raise source.refused(f"{name} whose result is not one number", _ONE)
        return result.dtype

    def _values(self, name: str, args: Sequence[Any]) -> list[Any]:
        if name in _RELATIONS and len(args) == 2:
            symbols = [x for x in args if isinstance(x, Symbol)]
            if len(symbols) == 2:  # the handler counts dimensions, which the IR has more of
                with torch._C.DisableTorchFunctionSubclass():
                    dtype = ir_dtype(torch.result_type(*symbols))
                return [self.emitter.cast(x.value, dtype) for x in symbols]
        return [_plain_one(x) for x in args]

    def _keep_known(
        self, symbol: Symbol, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        """Arithmetic on sizes alone: the integer goes along, should Python need it."""
        symbols = [x for x in args if isinstance(x, Symbol)]
        if symbols and all(x.known is not None for x in symbols):
            known = [x.known for x in symbols if x.known is not None]
            numbers = [torch.tensor(x.known[0]) if _has_known(x) else x for x in args]
            result = func(*numbers, **kwargs).item()
            symbol.known = result, frozenset().union(*(guards for _, guards in known))

    def _as_python(self, func: Any, name: str, x: Any) -> Any:
        what, instead = FORBIDDEN[name]
        if _has_known(x):
            number, guards = x.known
            self.recipe.guards.update(guards)
            return getattr(number, name)() if name.startswith("__") else number
        if not isinstance(x, Symbol):
            if name in ("__len__", "__iter__", "__contains__"):
                return self._sized(func, x)
            raise source.refused(f"{what} of a closed-over tensor", source.OUTSIDE)
        raise source.refused(f"{what} of a position or score", instead)

    def _in_place(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """``score += 1`` on the function's own number; a closed-over tensor must not change."""
        target = args[0] if args else None
        if "out" in kwargs or not isinstance(target, Symbol) or name == "__setitem__":
            raise source.refused(
                f"{name} changes a tensor in place",
                "the function is traced once and must not change anything: make a new tensor",
            )
        augmented = name.startswith("__i")  # __iadd__ -> __add__, add_ -> add
        plain = f"__{name[3:]}" if augmented else name.removesuffix("_")
        method = getattr(torch.Tensor, plain)
        result = self.__torch_function__(method, (), args, kwargs)
        target.value = self.emitter.cast(result.value, tensor_type(target.value).dtype)
        target.nonnegative, target.known = result.nonnegative, result.known
        return target

    def _getitem(self, func: Any, args: Sequence[Any]) -> Any:
        x, given = args
        entries = given if isinstance(given, tuple) else (given,)
        if not any(isinstance(i, Symbol) for i in (x, *entries)):  # a slice's ends are sizes
            return self._real(func, "__getitem__", args, {})
        if not isinstance(x, Symbol):
            x = start_partial(self, x)
        if not isinstance(x, Partial):
            if all(i is None or i is Ellipsis for i in entries):
                raise source.refused("new dimensions of a position or score", _ONE)
            raise source.refused("indexing of a number", "index a tensor by it instead")
        return index(self, x, entries)

    # tensors from outside

    def sizes_of(self, x: torch.Tensor, table: Value) -> tuple[Symbol, ...]:
        """The sizes of a closed-over tensor as integers of the IR."""
        if table not in self._sizes:
            assert isinstance(table.type, TensorType)
            self._sizes[table] = tuple(
                self._size_symbol(size, x, dim) for dim, size in enumerate(table.type.shape)
            )
        return self._sizes[table]

    def _size_symbol(self, size: Size, x: torch.Tensor, dim: int) -> Symbol:
        value = self.emitter.op(m.SizeValue, size=size, type=TensorType((), I64))
        symbol = make_symbol(value, torch.int64, nonnegative=True)
        symbol.known = x.shape[dim], self.recipe.guard(x, dim)
        return symbol

    def _real(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation without symbols: run now, and again in every call."""
        if name in ("shape", "size", "numel", "nelement"):
            return self._shape(name, args)
        plain = self._concrete(list(args))
        return self.recipe.run(func, name, plain, self._concrete(kwargs))

    def _concrete(self, x: Any) -> Any:
        """Sizes as the integers they are in this call, for which the trace then holds."""
        if isinstance(x, Symbol):
            return self._as_python(None, "item", x)
        if isinstance(x, tuple | list):
            return type(x)(self._concrete(y) for y in x)
        if isinstance(x, dict):
            return {key: self._concrete(y) for key, y in x.items()}
        if isinstance(x, slice):
            return slice(*(self._concrete(y) for y in (x.start, x.stop, x.step)))
        return x

    def _shape(self, name: str, args: Sequence[Any]) -> Any:
        x = args[0]
        if not self.recipe.follows_inputs(x) or not x.dim():
            return x.shape if name == "shape" else getattr(x, name)(*args[1:])
        sizes = self.sizes_of(x, self.recipe.parameter(x))
        if name in ("numel", "nelement"):
            self.recipe.guards.update(*(s.known[1] for s in sizes if s.known))
            return x.numel()
        return sizes[args[1]] if len(args) > 1 else sizes

    def _sized(self, func: Any, x: torch.Tensor) -> Any:
        """len and iteration of a closed-over tensor hold for its present size."""
        if x.dim():
            self.recipe.guards.update(self.recipe.guard(x, 0))
        if func.__name__ == "__iter__":
            with self:
                return iter([x[i] for i in range(x.shape[0])])
        return func(x)


_ONE = "the function is called with one position at a time: it must stay one number"


_FACTORIES = {
    "arange",
    "zeros",
    "ones",
    "full",
    "empty",
    "linspace",
    "tensor",
    "eye",
    "tril",
    "triu",
}


def _stays_outside(name: str, given: Sequence[Any]) -> bool:
    """Whether an operation with sizes works on whole tensors: ``torch.arange(table.shape[0])``."""
    real = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, Symbol)]
    return name in _FACTORIES or any(x.dim() for x in real)


def _is_certain(x: Any, bound: Any) -> bool:
    """Whether x >= bound for all positions: ``q_idx >= 0``, which says "everything"."""
    return isinstance(x, Symbol) and x.nonnegative and type(bound) is int and bound <= 0


def _has_known(x: Any) -> bool:
    return isinstance(x, Symbol) and x.known is not None


def _flat(values: Any) -> list[Any]:
    out: list[Any] = []
    for x in values:
        out.extend(_flat(x) if isinstance(x, tuple | list) else (x,))
    return out


def _plain_one(x: Any) -> Any:
    return x.value if isinstance(x, Symbol) else x


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain_one(x) for key, x in kwargs.items()}


def _handler(func: Any, name: str, exchanged: bool) -> Handler:
    if name in ("max", "min"):
        name, func = f"{name}imum", None  # of two numbers; of one they are no operation
    local = OPERATIONS.get(name)
    if local is not None:
        return local
    entry = function_entry(func) if func is not None and not exchanged else None
    entry = entry or method_entry(name) or function_entry(getattr(torch, name, None))
    if entry is None or entry.kind not in _USABLE:
        raise source.refused(
            f"{name} is not known in score and mask functions",
            "use arithmetic, comparisons, torch.where, exp, log, tanh, abs, minimum, maximum, …",
        )
    return entry.handler
