"""Mixture-of-experts layers: from a router's choice to the combined output. Torch tensors in and
out; no models, no gradients.

``experts_forward`` is the one way in.
"""

from __future__ import annotations

import torch

from tilewright.runtime.determinism import in_force, refuse_level
from tilewright.runtime.experts import by_expert, gpu_grouped, grouped
from tilewright.runtime.experts.form import (
    ALL,
    FUNCTIONS,
    HALVES,
    PAIRS,
    ExpertsForm,
    Gate,
    Product,
)
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.experts.segments import check_ids, check_shapes
from tilewright.runtime.gpu_backend import on_gpu


def experts_forward(
    form: ExpertsForm,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    rerouting: Rerouting | None = None,
) -> torch.Tensor:
    """``y[t] = sum over j of weights[t, j] * expert[ids[t, j]](x[t])``: x [T, H], ids int [T, k],
    weights float [T, k]; [T, H] in x's dtype, the same bits in every call.

    With ``rerouting`` ids name its base experts, and what they mean is looked up. Raises BindError,
    before any weight is read, for shapes that do not fit and for experts that are not there,
    ExpertError for ids of no base expert; on GPUs, where that would have to wait for the device,
    tokens with such ids become NaN. No gradients.
    """
    check_shapes(form.hidden, x, ids, weights)
    refuse_level(in_force(), "batch", "a layer of experts")
    if not ids.numel():
        return torch.zeros_like(x)
    if on_gpu(x):
        layer = gpu_grouped.layer_for(form, x, ids, weights, rerouting)
        if layer is not None:
            return layer(form, x, ids, weights, rerouting)
    elif not grouped.why_not(form, x):
        return grouped.run(form, x, ids, weights, rerouting)
    ids = ids if rerouting is None else rerouting.apply(ids)
    check_ids(ids, form.experts, form.skip)
    refuse_level(in_force(), "threads", "a layer of experts that torch runs one by one")
    return by_expert.run(form, x, ids, weights)


__all__ = [
    "ALL",
    "FUNCTIONS",
    "HALVES",
    "PAIRS",
    "ExpertsForm",
    "Gate",
    "Product",
    "Rerouting",
    "experts_forward",
]
