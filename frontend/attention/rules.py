"""Facts about torch functions that the tracer needs: names, what is forbidden, signs of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tilewright.frontend.attention import source
from tilewright.frontend.attention.symbols import Symbol


def own_name(func: Any) -> str:
    """``where``, ``__add__``; of an attribute (``x.shape``) the attribute's."""
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(func.__self__.__name__)
    return name


# what turns a tensor into a Python value -> (how to call it, how to write it)
FORBIDDEN: dict[str, tuple[str, str]] = {
    "__bool__": ("a Python condition (if, while, and, or, not)", source.WHERE),
    "__contains__": ("`in`", source.WHERE),
    "item": (".item()", source.NUMBER),
    "tolist": (".tolist()", source.NUMBER),
    "numpy": (".numpy()", source.NUMBER),
    "__array__": ("a conversion to NumPy", source.NUMBER),
    "__int__": ("int(…)", "write .to(torch.int64); " + source.NUMBER),
    "__float__": (
        "float(…) or a function of the math module",
        "write .to(torch.float32) or the function of torch; " + source.NUMBER,
    ),
    "__complex__": ("complex(…)", source.NUMBER),
    "__index__": ("a Python index or range(…)", "index a tensor, not a list; " + source.NUMBER),
    "__len__": ("len(…)", source.NUMBER),
    "__iter__": ("iteration", source.NUMBER),
    "backward": ("backward()", "gradients are not supported here"),
    "data_ptr": (".data_ptr()", source.NUMBER),
    "is_nonzero": ("is_nonzero", source.WHERE),
    "equal": ("torch.equal", "write =="),
    "allclose": ("torch.allclose", "write comparisons"),
}


def changes_operand(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the function writes to an operand: ``add_``, ``+=``, ``x[i] = y``, ``out=…``."""
    if kwargs.get("out") is not None or name == "__setitem__":
        return True
    if name.startswith("__"):
        return name in _IN_PLACE
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


_AUGMENTED = "add sub mul truediv div floordiv mod pow and or xor lshift rshift"
_IN_PLACE = {f"__i{name}__" for name in _AUGMENTED.split()}


def target_dtype(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.dtype:
    """The dtype of ``x.to(…)``; moving to another device is no conversion."""
    dtype: torch.dtype = args[0].dtype
    for x in (*args[1:], *kwargs.values()):
        if isinstance(x, torch.dtype):
            dtype = x
        elif isinstance(x, torch.Tensor):
            dtype = x.dtype
    return dtype


def _is_nonnegative(x: Any) -> bool:
    if isinstance(x, Symbol):
        return x.nonnegative
    return isinstance(x, bool | int | float) and x >= 0


_KEEPS_SIGN = {"add", "mul", "floor_divide", "div", "to", "long", "int", "bitwise_and"}
_KEEPS_SIGN |= {"minimum", "clone", "contiguous", "detach", "type", "type_as", "floor"}


def nonnegative_result(name: str, args: Sequence[Any]) -> bool:
    """Whether a result is known to be at least 0."""
    signs = [_is_nonnegative(x) for x in args if isinstance(x, Symbol | int | float)]
    if name in ("abs", "square", "exp", "exp2", "sigmoid"):
        return True
    if name == "maximum":
        return any(signs)
    if name in ("clamp", "clamp_min"):  # (x, min, max)
        low, high = [*args[1:], None, None][:2]
        return _is_nonnegative(low) and (high is None or _is_nonnegative(high))
    if name in ("remainder", "bitwise_right_shift"):
        return bool(signs) and (signs[-1] if name == "remainder" else all(signs))
    if name == "where":
        return all(_is_nonnegative(x) for x in args[1:])
    return name in _KEEPS_SIGN and bool(signs) and all(signs)


def _device(tracer: Any, _x: Symbol) -> torch.device:
    device: torch.device = tracer.device
    return device


KNOWN_PROPERTIES: dict[str, Callable[[Any, Symbol], Any]] = {
    "dtype": lambda _, x: _quiet(lambda: x.dtype),
    "device": _device,
    "shape": lambda _, x: _quiet(lambda: x.shape),
    "size": lambda _, x: _quiet(lambda: x.shape),
    "ndim": lambda _, x: _quiet(lambda: x.ndim),
    "dim": lambda _, x: _quiet(lambda: x.ndim),
    "ndimension": lambda _, x: _quiet(lambda: x.ndim),
    "numel": lambda _, x: _quiet(x.numel),
    "is_cuda": lambda *_: False,
    "is_cpu": lambda *_: True,
    "is_meta": lambda *_: False,
    "requires_grad": lambda *_: False,
    "is_sparse": lambda *_: False,
    "is_quantized": lambda *_: False,
    "layout": lambda *_: torch.strided,
    "is_floating_point": lambda _, x: _quiet(x.is_floating_point),
    "is_complex": lambda *_: False,
    "get_device": lambda *_: -1,
    "__repr__": lambda _, x: f"<{_quiet(lambda: x.dtype)} per position>",
    "__str__": lambda _, x: f"<{_quiet(lambda: x.dtype)} per position>",
    "__format__": lambda _, x: f"<{_quiet(lambda: x.dtype)} per position>",
    "__hash__": lambda _, x: id(x),
    "__deepcopy__": lambda _, x: x,
}


def _quiet(ask: Callable[[], Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return ask()
