"""Rotary position embedding of keys, halves as in Llama: tables of angles that all layers share."""

from __future__ import annotations

import threading

import torch

from tilewright.ir.errors import BindError


class Rotation:
    """Turns the pairs (i, i + head / 2) of a key at position p by p * ``steps[i]`` (radians).

    ``steps``: head / 2 numbers, as a model's ``inv_freq``. Angles are computed in float64.
    """

    def __init__(self, steps: torch.Tensor) -> None:
        if steps.dim() != 1 or not len(steps) or not bool(steps.isfinite().all()):
            raise BindError(f"inv_freq must be head/2 finite numbers, it is {tuple(steps.shape)}")
        self.steps = steps.detach().to("cpu", torch.float64)
        self._tables = torch.zeros(2, 0, 2 * len(steps))
        self._lock = threading.Lock()

    @staticmethod
    def of_base(base: float, head: int) -> torch.Tensor:
        """The steps base^(-2i / head) of a head of an even size."""
        half = head // 2
        return base ** (-torch.arange(half, dtype=torch.float64) / half)

    def tables(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions ``first`` to before ``last``, [positions, head] in f32,
        each angle twice."""
        with self._lock:
            if last > self._tables.shape[1]:
                count = max(last, 2 * self._tables.shape[1], 128)
                at = torch.arange(count, dtype=torch.float64)[:, None] * self.steps
                angles = torch.cat((at, at), -1)
                self._tables = torch.stack((angles.cos(), angles.sin())).float()
            cos, sin = self._tables
        return cos[first:last], sin[first:last]

    def turn(self, k: torch.Tensor, first: int) -> torch.Tensor:
        """Keys [..., tokens, head] from position ``first`` on."""
        cos, sin = (x.to(k.dtype) for x in self.tables(first, first + k.shape[-2]))
        a, b = k.chunk(2, -1)
        return k * cos + torch.cat((-b, a), -1) * sin


_shared: dict[tuple[float, ...], Rotation] = {}


def rotation_of(base: float | None, inv_freq: torch.Tensor | None, head: int) -> Rotation | None:
    """The rotation that a base or a model's ``inv_freq`` says, one for all layers with the same;
    None for neither. Raises BindError for both, and if it does not fit the head."""
    if base is None and inv_freq is None:
        return None
    if base is not None and inv_freq is not None:
        raise BindError("give rope_base or inv_freq, not both")
    if head % 2:
        raise BindError(f"a head of {head} has no two halves to rotate")
    steps = Rotation.of_base(base, head) if base is not None else inv_freq
    assert steps is not None
    made = Rotation(steps)
    if 2 * len(made.steps) != head:
        raise BindError(f"inv_freq has {len(made.steps)} numbers, a head of {head} needs half")
    return _shared.setdefault(tuple(made.steps.tolist()), made)


def rotated(k: torch.Tensor, first: int, base: float) -> torch.Tensor:
    """Rotary embedding of [..., tokens, head] from position ``first`` on, halves as in Llama."""
    return Rotation(Rotation.of_base(base, k.shape[-1])).turn(k, first)
