"""What a module of transformers' interface does between its two products."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations
from transformers.integrations.moe import _default_apply_gate

from tilewright.frontend.experts.find import columns_of
from tilewright.runtime.experts import FUNCTIONS, Gate

_NAMES: dict[type[nn.Module], str] = {
    activations.SiLUActivation: "silu",
    nn.SiLU: "silu",
    activations.GELUActivation: "gelu",
    activations.GELUTanh: "gelu_tanh",
    activations.NewGELUActivation: "gelu_tanh",
    nn.ReLU: "relu",
    activations.ReLUSquaredActivation: "relu2",
    nn.Identity: "",
    activations.LinearActivation: "",
}
_TOLERANCE = 1e-12  # of f64: the same formula, perhaps in another order


def function_of(module: nn.Module) -> str | None:
    """The name of the module's activation function, if we have one for it.

    Dynamo traces this.
    """
    function: Any = getattr(module, "act_fn", None)
    if function is F.silu:
        return "silu"
    return _NAMES.get(type(function))


def plain_gate(module: nn.Module) -> str | None:
    """The function f if the module computes ``f(gate) * up`` (without a gate ``f(up)``), else None.

    Dynamo traces this.
    """
    own: Any = type(module)
    usual = not module.has_gate or own._apply_gate is _default_apply_gate
    return function_of(module) if usual and not _norm(module) else None


def _norm(module: nn.Module) -> bool:
    return bool(getattr(module, "has_post_expert_norm", False))


def gate_of(module: nn.Module) -> Gate:
    """The module's gate as numbers if it is of a kind that we know, else as a call of its own.

    A gate of the model's own is told by what it does with some numbers, compared in f64.
    """
    name = function_of(module)
    if not module.has_gate:
        return Gate(call=_Own(module, "act_fn")) if name is None else Gate(name)
    own: Any = type(module)
    if own._apply_gate is _default_apply_gate:
        return Gate(call=_Own(module, "_apply_gate")) if name is None else Gate(name)
    return _told(module, name) or Gate(call=_Own(module, "_apply_gate"))


class _Own:
    """A method of a module, without keeping the module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = weakref.ref(module), name

    def __call__(self, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.module(), self.name)(y)
        return result


def after_of(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The norm after each expert, if there is one."""
    return _Own(module, "post_expert_norm") if _norm(module) else None


def scalars(module: nn.Module) -> tuple[object, ...]:
    """Whatever of a module a gate may depend on, apart from tensors."""
    plain = (bool, int, float, str, type(None))
    own = ((k, v) for k, v in vars(module).items() if isinstance(v, plain))
    return (type(getattr(module, "act_fn", None)), *own)


def _told(module: nn.Module, name: str | None) -> Gate | None:
    """The gate whose results are those of ``module._apply_gate``."""
    numbers = [float(v) for v in vars(module).values() if type(v) in (int, float) and 0 < v < 1e4]
    with torch.no_grad():
        probe = _probe(numbers)
        try:
            wanted = module._apply_gate(probe)  # type: ignore[operator]
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
        for gate in _candidates(numbers, name):
            found = gate.between(probe, columns_of(module))
            if wanted.shape == found.shape and torch.allclose(
                wanted, found, rtol=_TOLERANCE, atol=_TOLERANCE
            ):
                return gate
    return None


def _probe(numbers: list[float]) -> torch.Tensor:
    """Numbers [1024, 2] around 0 and beyond every limit."""
    reach = 3.0 * max([4.0, *numbers])
    made = torch.Generator().manual_seed(0)
    near, far = (torch.rand(512, 2, generator=made, dtype=torch.float64) - 0.5 for _ in range(2))
    return torch.cat((near * 4, far * 2 * reach))


def _candidates(numbers: list[float], name: str | None) -> Iterator[Gate]:
    functions = [name] if name is not None else list(FUNCTIONS)
    choices = itertools.product(functions, [1.0, *numbers], [None, *numbers], [0.0, 1.0])
    for function, alpha, limit, shift in choices:
        if alpha == 1.0 or function == "silu":
            yield Gate(function, alpha, limit, shift)
