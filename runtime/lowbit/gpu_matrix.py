"""Products with quantised weights for very many rows on a GPU: weights are written out, some blocks
at a time, and multiplied by torch's own product.

Taking codes apart costs as much as the product of some hundred rows; beyond that a kernel of its
own for it, and the vendor's product, are faster than both in one (so does Tilus, arXiv 2504.12984).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tilewright.runtime.lowbit.form import LinearForm
from tilewright.runtime.lowbit.gpu_programs import MATRICES, GpuForm, GpuMatrix
from tilewright.runtime.lowbit.linear import FUNCTIONS

MANY_ROWS = 512  # of activations, from which on weights are written out
SLICE_BYTES = 64 << 20  # of weights that are written out at once: what a second-level cache holds


@dataclass(frozen=True)
class WrittenOut:
    """A form whose weights are written out; ``parts``: words, scales and zeros of each weight, and
    its bias."""

    form: LinearForm
    target: str
    rows: int
    parts: tuple[tuple[tuple[torch.Tensor, ...], torch.Tensor | None], ...]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """``epilogue(x @ w0.T + b0) [* (x @ w1.T + b1)] + residual``; each step is rounded to x's
        dtype."""
        first, *others = [self._product(x, at) for at in range(len(self.parts))]
        y = FUNCTIONS[self.form.epilogue](first)
        for other in others:
            y = y * other
        if residual is not None:
            y = y + residual[:, : self.rows]
        return y.to(x.dtype)

    def _product(self, x: torch.Tensor, at: int) -> torch.Tensor:
        (words, *beside), bias = self.parts[at]
        weight = self.form.weights[at]
        lanes, length = weight.layout.lanes, self.form.length
        form = replace(self.form, weights=(replace(weight, bias=None),), residual=None, epilogue="")
        matrix: GpuMatrix = MATRICES[GpuForm(form, self.target, 0, 1)]
        y = x.new_empty(x.shape[0], self.rows)
        step = max(1, SLICE_BYTES // (2 * lanes * length))
        for block in range(0, words.shape[0], step):
            some = slice(block, block + step)
            w = matrix(words[some], *(part[some] for part in beside))
            first, last = block * lanes, min((block + step) * lanes, self.rows)
            if w.dtype == x.dtype:
                torch.mm(x, w[: last - first].T, out=y[:, first:last])
            else:  # values that x's dtype does not hold
                y[:, first:last] = x.to(w.dtype) @ w[: last - first].T
        return y if bias is None else y + bias[: self.rows].to(y.dtype)
