"""Which rows belong to which expert, and how their results come together again."""

from __future__ import annotations

import torch

from tilewright.ir.errors import BindError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_shapes(hidden: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
    """Raises BindError unless x is [T, hidden], ids and weights are [T, k]."""
    if x.dim() != 2 or x.shape[1] != hidden or not x.is_floating_point():
        raise BindError(f"x must be floats [T, {hidden}]; it is {x.dtype} {list(x.shape)}")
    if ids.dim() != 2 or ids.shape[0] != x.shape[0] or ids.dtype not in _INTEGERS:
        raise BindError(
            f"ids must be integers [{x.shape[0]}, k], the experts of each row of x; they are "
            f"{ids.dtype} {list(ids.shape)}"
        )
    if weights.shape != ids.shape or not weights.is_floating_point():
        raise BindError(
            f"weights must be floats {list(ids.shape)} as ids are; they are {weights.dtype} "
            f"{list(weights.shape)}"
        )


def check_ids(ids: torch.Tensor, experts: int, skip: bool) -> None:
    """Raises BindError if an id names no expert (with ``skip``, ids from ``experts`` on may)."""
    if not ids.numel():
        return
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or (high >= experts and not skip):
        wrong = low if low < 0 else high
        raise BindError(
            f"ids go from {low} to {high}, but there are {experts} experts, 0 to {experts - 1}: "
            f"no expert {wrong}"
        )


def route(ids: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``order`` int64 [T * k]: the places of ids [T, k], read row by row, sorted by expert, in each
    expert in their order; ``counts`` int64 [experts]: how many each has. Ids from ``experts`` on
    come last and are counted nowhere.

    [[2, 0], [0, 1]] -> order [1, 2, 3, 0], counts [2, 1, 1]
    """
    flat = ids.reshape(-1).long()
    order = torch.sort(flat, stable=True).indices
    counts = torch.bincount(flat.clamp(max=experts), minlength=experts + 1)[:experts]
    return order, counts


def combine(
    rows: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``y[t] = sum over j of weights[t, j] * row of (t, j)``, added up from j = 0 on: [T, H].

    rows [T * k, H] lie as ``order`` says. Computed in f32 (f64 if rows are), rounded once.
    """
    tokens, chosen = weights.shape
    work = torch.float64 if rows.dtype == torch.float64 else torch.float32
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    places = places.view(tokens, chosen)
    total = rows.new_zeros(tokens, rows.shape[1], dtype=work)
    for j in range(chosen):
        total = total + rows[places[:, j]].to(work) * weights[:, j, None].to(work)
    return total.to(dtype)
