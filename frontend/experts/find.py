"""Which modules of a model are experts, and which layers choose them. Needs no transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tilewright.runtime.experts import ALL, HALVES, PAIRS

_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


def is_experts(module: nn.Module) -> bool:
    """Whether a module is what transformers' ``use_experts_implementation`` makes."""
    own = vars(module)
    return all(isinstance(own.get(flag), bool) for flag in _FLAGS) and hasattr(module, "config")


def experts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of all experts, each once."""
    for name, module in model.named_modules():
        if is_experts(module):
            yield name, module


@contextmanager
def heard(model: nn.Module, hear: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Within the block every call of experts is told first: ``hear(name, args, kwargs)``."""

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, args, kwargs: hear(name, args, kwargs)

    hooks = [
        module.register_forward_pre_hook(hook_for(name), with_kwargs=True)
        for name, module in experts_of(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def products_of(module: nn.Module) -> tuple[str, str]:
    """The names of the parameters of both products."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def columns_of(module: nn.Module) -> str:
    """How the columns of the first product tell gate and up. transformers' own gate takes halves,
    whatever the module's flag says.

    Dynamo traces this.
    """
    if not module.has_gate:
        return ALL
    usual = type(module)._apply_gate.__name__ == "_default_apply_gate"  # type: ignore[attr-defined]
    return HALVES if usual or module.is_concatenated else PAIRS


def routers(model: nn.Module) -> set[nn.Module]:
    """The linear layers beside experts that give a number for each expert, or a single one (the
    gate of a shared expert).

    A shared expert may be as wide as there are experts (Qwen3-Next: 512 and 512). Its layers are
    told from routers by what takes their result: another layer of the same child.
    """
    found: set[nn.Module] = set()
    for block in model.modules():
        beside = [child for child in block.children() if is_experts(child) or _stacked(child)]
        if not beside:
            continue
        sizes = {1, *(size for experts in beside for size in _choices(experts))}
        for child in block.children():
            layers = [layer for layer in child.modules() if isinstance(layer, nn.Linear)]
            for layer in layers:
                taken = {other.in_features for other in layers if other is not layer}
                if layer.out_features in sizes - taken:
                    found.add(layer)
    return found


def _stacked(module: nn.Module) -> list[int]:
    """The numbers of rows of experts' weights outside of transformers' interface: 3-D parameters,
    several of them, as a convolution has not."""
    rows = [p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3]
    return rows if len(rows) > 1 else []


def _choices(experts: nn.Module) -> Iterator[int]:
    """How many there are to choose from. LongCat-Flash may choose some that compute nothing, for
    which one of its parameters has rows, too."""
    yield int(getattr(experts, "num_experts", 1))
    yield from _stacked(experts)
