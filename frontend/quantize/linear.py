"""``tilewright.linear``: x times a quantised weight.

Eager calls without gradients go straight to the kernel; under torch.compile, with gradients and
under torch's function transforms the op ``tilewright::linear`` is called instead.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from tilewright.frontend.quantize.form import Facts, Parts, facts_of, parts_of
from tilewright.frontend.quantize.plan import ACTIVATIONS
from tilewright.frontend.quantize.product import linear_op, product
from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime.determinism import level, using
from tilewright.runtime.lowbit import FUNCTIONS
from tilewright.runtime.quantized.tensor import QuantizedTensor

_INPUTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def linear(
    x: torch.Tensor,
    qweight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "float",
    epilogue: str | None = None,
    residual: torch.Tensor | None = None,
    deterministic: str | None = None,
    reproducible: bool | None = None,
) -> torch.Tensor:
    """``epilogue(x @ qweight.T + bias) + residual``: x [..., K], qweight [N, K], result [..., N].

    x is f16, bf16, f32 or f64 with any strides; the result has its dtype. ``activation="int8"``
    rounds x to 8 bits in every call, per row and group of the weight (largest magnitude = 127).
    ``epilogue`` is None, "relu", "silu", "gelu" or "gelu_tanh". bias is [N], residual of the
    result's shape. Gradients reach x, bias and residual, but not the weight; rounding x counts as
    the identity. ``deterministic`` ("run", "threads", "batch") and ``reproducible`` say what bits
    may not depend on (docs/determinism.md). Raises BindError for shapes and dtypes that do not fit,
    SettingError for unknown names, DeterminismError for what cannot keep a level.
    """
    if deterministic is not None or reproducible is not None:
        with using(level(deterministic, reproducible)):
            return linear(
                x, qweight, bias, activation=activation, epilogue=epilogue, residual=residual
            )
    if not isinstance(qweight, QuantizedTensor):
        raise BindError(
            f"qweight is a {type(qweight).__name__}; QuantizedTensor.from_float(w, 'u4') makes one"
        )
    if len(qweight.shape) != 2:
        raise BindError(f"linear needs a quantised matrix [N, K], not {list(qweight.shape)}")
    rows, columns = qweight.shape
    check(x, bias, rows, columns, activation)
    if epilogue is not None and epilogue not in FUNCTIONS:
        known = ", ".join(repr(name) for name in FUNCTIONS if name)
        raise SettingError(f"epilogue={epilogue!r} must be None or one of {known}")
    if residual is not None and residual.shape != (*x.shape[:-1], rows):
        raise BindError(
            f"residual has shape {list(residual.shape)}, the result {[*x.shape[:-1], rows]}"
        )
    if through_op(x, bias, residual):
        facts = facts_of(qweight)
        return call_op(x, parts_of(qweight), facts, bias, residual, activation, epilogue or "")
    return product(x, qweight, bias, residual, activation, epilogue or "")


def call_op(
    x: torch.Tensor,
    parts: Parts,
    facts: Facts,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    epilogue: str,
) -> torch.Tensor:
    """The op ``tilewright::linear``."""
    result: torch.Tensor = linear_op(x, *parts, bias, residual, *facts, activation, epilogue)
    return result


def through_op(
    x: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None
) -> bool:
    """Whether torch has to see one op: it traces, differentiates, or transforms."""
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return True
    return transformed(x)


def transformed(x: torch.Tensor) -> bool:
    """Whether torch's function transforms, modes or tensor subclasses are at work."""
    return (
        type(x) not in _PLAIN
        or _modes() > 0
        or _transforms() is not None
        or forward_ad._current_level >= 0
    )


def check(
    x: torch.Tensor, bias: torch.Tensor | None, rows: int, columns: int, activation: str
) -> None:
    """Raises BindError or SettingError if x [..., K] and bias [N] do not fit a weight [N, K]."""
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise SettingError(f"activation={activation!r} must be one of {known}")
    if x.dtype not in _INPUTS:
        raise BindError(f"x is {x.dtype}; it must be float16, bfloat16, float32 or float64")
    if x.dim() == 0 or x.shape[-1] != columns:
        raise BindError(
            f"x has shape {list(x.shape)}; its last axis must be {columns}, as the weight is "
            f"[{rows}, {columns}]"
        )
    if bias is not None and bias.shape != (rows,):
        raise BindError(f"bias has shape {list(bias.shape)}; the weight's rows ask for [{rows}]")
