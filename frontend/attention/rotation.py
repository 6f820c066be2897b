"""Rotary position embedding of keys, halves as in Llama: tables of angles that all layers share.

Other spellings (neighbours as pairs, a part of a head only) are this one with the channels of a
head in another order."""

from __future__ import annotations

import torch

from tilewright.ir.errors import BindError
from tilewright.runtime.locks import Guard


class Rotation:
    """Turns the pairs (i, i + head / 2) of a key at position p by p * ``steps[i]`` (radians).

    ``steps``: head / 2 numbers, as a model's ``inv_freq``. Angles are computed in float64.
    """

    def __init__(self, steps: torch.Tensor) -> None:
        if steps.dim() != 1 or not len(steps) or not bool(steps.isfinite().all()):
            raise BindError(f"inv_freq must be head/2 finite numbers, it is {tuple(steps.shape)}")
        self.steps = steps.detach().to("cpu", torch.float64)
        self._tables = torch.zeros(2, 0, 2 * len(steps))
        self._guard = Guard()

    @staticmethod
    def of_base(base: float, head: int) -> torch.Tensor:
        """The steps base^(-2i / head) of a head of an even size."""
        half = head // 2
        return base ** (-torch.arange(half, dtype=torch.float64) / half)

    def tables(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions ``first`` to before ``last``, [positions, head] in f32,
        each angle twice."""
        with self._guard.lock:
            if last > self._tables.shape[1]:
                count = max(last, 2 * self._tables.shape[1], 128)
                at = torch.arange(count, dtype=torch.float64)[:, None] * self.steps
                angles = torch.cat((at, at), -1)
                self._tables = torch.stack((angles.cos(), angles.sin())).float()
            cos, sin = self._tables
        return cos[first:last], sin[first:last]

    def turn(self, k: torch.Tensor, first: int) -> torch.Tensor:
        """Keys [..., tokens, head] from position ``first`` on."""
        half = k.shape[-1] // 2
        tables = self.tables(first, first + k.shape[-2])
        cos, sin = (x[:, :half].to(k.dtype) for x in tables)
        a, b = k.chunk(2, -1)  # what is allocated costs more here than what is computed
        left = (a * cos).addcmul_(b, sin, value=-1)
        return torch.cat((left, (b * cos).addcmul_(a, sin)), -1)


_shared: dict[tuple[float, ...], Rotation] = {}


def rotation_of(
    base: float | None, inv_freq: torch.Tensor | None, head: int, rotary: int | None = None
) -> Rotation | None:
    """The rotation that a base or a model's ``inv_freq`` says, one for all layers with the same;
    None for neither. Of the first ``rotary`` channels of a head only, the others by an angle of 0.
    Raises BindError for both, and if it does not fit the head."""
    if base is None and inv_freq is None:
        return None
    if base is not None and inv_freq is not None:
        raise BindError("give rope_base or inv_freq, not both")
    if head % 2:
        raise BindError(f"a head of {head} has no two halves to rotate")
    turned = head if rotary is None else rotary
    if turned % 2 or not 0 < turned <= head:
        raise BindError(f"rotary={rotary}: take an even number of at most {head} channels")
    steps = Rotation.of_base(base, turned) if base is not None else inv_freq
    assert steps is not None
    made = Rotation(steps)
    if 2 * len(made.steps) != turned:
        raise BindError(f"inv_freq has {len(made.steps)} numbers, a head of {turned} needs half")
    still = torch.zeros((head - turned) // 2, dtype=torch.float64)
    every = torch.cat((made.steps, still))
    return _shared.setdefault(tuple(every.tolist()), Rotation(every))


def halves_order(head: int, rotary: int | None, interleaved: bool) -> torch.Tensor | None:
    """The channels of a head so that pairs are (i, i + head / 2), as ``Rotation`` turns them; None
    if they are. Products of keys with queries do not depend on the order, if both have the same.

    ``interleaved``: pairs are (2i, 2i + 1), as in GPT-J; else (i, i + rotary / 2).
    """
    turned = head if rotary is None else rotary
    if turned == head and not interleaved:
        return None
    pairs = torch.arange(turned)
    pairs = pairs.view(-1, 2).T if interleaved else pairs.view(2, -1)
    still = torch.arange(turned, head).view(2, -1)
    return torch.cat((pairs, still), 1).flatten()


def rotated(k: torch.Tensor, first: int, base: float) -> torch.Tensor:
    """Rotary embedding of [..., tokens, head] from position ``first`` on, halves as in Llama."""
    return Rotation(Rotation.of_base(base, k.shape[-1])).turn(k, first)
