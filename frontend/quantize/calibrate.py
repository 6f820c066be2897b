"""The inputs that layers see while a model runs on some data: what GPTQ calibrates with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from tilewright.ir.errors import SettingError

ROWS = 2048  # of each layer: more hardly change the result, and they have to be held


def collect_inputs(
    model: torch.nn.Module,
    layers: Mapping[str, torch.nn.Module],
    batches: Iterable[Any],
    rows: int = ROWS,
) -> dict[str, torch.Tensor]:
    """By layer name, the first ``rows`` inputs [R, K] in f32 of each layer.

    A batch is a tensor, a tuple of arguments or a dictionary of them. Raises SettingError if a
    layer is never called.
    """
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(_recorder(seen[name], rows))
        for name, layer in layers.items()
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                _call(model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()
    silent = [name for name, found in seen.items() if not found]
    if silent:
        raise SettingError(
            f"the calibration inputs never reach {silent[0]} ({len(silent)} such layers): give "
            "inputs that do, or another method for them in the plan"
        )
    return {name: torch.cat(found) for name, found in seen.items()}


def _recorder(found: list[torch.Tensor], rows: int) -> Callable[..., None]:
    def record(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        missing = rows - sum(map(len, found))
        x = args[0]
        if missing > 0:
            found.append(x.detach().reshape(-1, x.shape[-1])[:missing].float().clone())

    return record


def _call(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    else:
        model(batch)
