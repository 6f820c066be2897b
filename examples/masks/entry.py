"""What a file of the gallery consists of, and what running it does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tilewright
from examples.masks import definition
from examples.masks.definition import Results
from examples.masks.drawing import Picture, as_svg, as_text

Position = Any  # an integer tensor; while tracing, a symbol
MaskMod = Callable[[Position, Position, Position, Position], Any]  # (b, h, q_idx, kv_idx)
ScoreMod = Callable[[Any, Position, Position, Position, Position], Any]  # (score, b, h, …)


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Results:
    """``tilewright.attention`` with all of its results: the output, log-sum-exp, largest score."""
    results = tilewright.attention(
        q, k, v, enable_gqa=True, return_lse=True, return_max=True, **options
    )
    assert isinstance(results, tuple)
    output, lse, largest = results
    return output, lse, largest


@dataclass(frozen=True)
class Sizes:
    """How large an example is; ``length`` is that of its sequences."""

    length: int = 48
    dtype: torch.dtype = torch.float32
    batch: int = 2
    heads: int = 4
    key_heads: int = 2
    width: int = 16

    def numbers(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers of the example's dtype, the same in every run."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.dtype)

    def inputs(self, rows: int | None = None, keys: int | None = None) -> list[Tensor]:
        """q [batch, heads, rows, width], k and v [batch, key_heads, keys, width]."""
        rows = self.length if rows is None else rows
        keys = self.length if keys is None else keys
        q = self.numbers(self.batch, self.heads, rows, self.width)
        shape = (self.batch, self.key_heads, keys, self.width)
        return [q, self.numbers(*shape, seed=1), self.numbers(*shape, seed=2)]


@dataclass(frozen=True)
class Case:
    """One call: q, k, v and options, to be computed, and to be defined in float64.

    ``names`` are the tensors that the call on the page speaks of, besides q, k and v.
    """

    inputs: list[Tensor]
    options: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    compute: Callable[..., Results] = attention
    define: Callable[..., Results] = definition.dense

    def computed(self, **changes: Any) -> Results:
        return self.compute(*self.inputs, **(self.options | changes))

    def defined(self, **changes: Any) -> Results:
        return self.define(*self.inputs, **(self.options | changes))


@dataclass(frozen=True)
class Entry:
    """A file of the gallery. Its text is the file's docstring.

    ``call`` is the call as the page shows it; ``make`` gives it at any size, ``also`` further forms
    of it; ``draw`` the picture.
    """

    title: str
    call: str
    make: Callable[[Sizes], Case]
    draw: Callable[[], Picture]
    also: tuple[Callable[[Sizes], Case], ...] = ()

    def run(self) -> None:
        """Computes an example, compares it, and draws the picture: as text, or into the file that
        the command line names."""
        sizes = Sizes()
        for make in (self.make, *self.also):
            case = make(sizes)
            error = largest_error(case.computed(), case.defined())
            print(f"{self.title}: largest error {error:.1e} against float64")
            if not error < 1e-4:
                sys.exit(f"{self.title} is wrong")
        print(self.call)
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text(as_svg(self.draw()), encoding="utf-8")
        else:
            print(as_text(self.draw()))


def largest_error(given: Results, wanted: Results) -> float:
    """The largest difference; infinite where only one of the two is -inf, or one is NaN."""
    error = 0.0
    for x, exact in zip(given, wanted, strict=True):
        same = x.double() == exact  # -inf - -inf would be NaN
        difference = (x.double() - exact).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf)
        error = max([error, *difference.flatten().tolist()])
    return error
