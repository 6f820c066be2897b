"""The neighbours of products: what a model does row by row, as one kernel or as several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.bench.roofline import Work
from tilewright.bench.suites.problem import FLOATS, Problem, Suite

Tensors = tuple[torch.Tensor, ...]
TOLERANCES = {"f32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class Fused:
    """A function of tensors of these shapes in ``floats``; sizes of ``labels`` are index tensors
    below them. ``operations``: those of its products."""

    function: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]
    result: tuple[int, ...]
    operations: float
    labels: int = 0
    floats: str = "f32"
    device: str = "cpu"

    def inputs(self) -> Tensors:
        """Normal numbers; what multiplies rows (two axes after the first input) keeps their
        size."""
        random = torch.Generator(self.device).manual_seed(0)
        drawn, made = partial(torch.randn, generator=random, device=self.device), []
        for at, shape in enumerate(self.shapes):
            scale = shape[-1] ** -0.5 if at and len(shape) == 2 and self.operations else 1.0
            made.append((drawn(shape) * scale).to(FLOATS[self.floats]))
        if self.labels:
            count = (self.shapes[0][0],)
            labels = torch.randint(0, self.labels, count, generator=random, device=self.device)
            made.append(labels)
        return tuple(made)

    def work(self) -> Work:
        count = sum(_product(shape) for shape in (*self.shapes, self.result))
        return Work(
            float(FLOATS[self.floats].itemsize) * count,
            self.operations or 10.0 * _product(self.shapes[0]),
        )

    def exact(self, given: Tensors) -> torch.Tensor:
        wide = (x.double() if x.is_floating_point() else x for x in given)
        return self.function(*wide)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def residual_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return F.layer_norm(x + y, (x.shape[-1],), weight, bias)


def gate(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.silu(a) * b


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * 0.7, -1)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def gated_product(x: torch.Tensor, up: torch.Tensor, gated: torch.Tensor) -> torch.Tensor:
    return F.silu(x @ gated.T) * (x @ up.T)


def norm_product(x: torch.Tensor, weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm) @ weight.T


def loss(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x @ weight.T, labels, reduction="none")


def cases(t: int, h: int, i: int, v: int) -> dict[str, tuple[str, Fused]]:
    """Name: section and case, of ``t`` tokens, ``h`` hidden and ``i`` inner numbers each, and a
    vocabulary of ``v``."""
    return {
        f"RMS norm, {t} x {h}": ("rows", Fused(rms_norm, ((t, h), (h,)), (t, h), 0)),
        f"residual and layer norm, {t} x {h}": (
            "rows",
            Fused(residual_norm, ((t, h), (t, h), (h,), (h,)), (t, h), 0),
        ),
        f"SiLU gate, {t} x {i}": ("rows", Fused(gate, ((t, i), (t, i)), (t, i), 0)),
        f"softmax, {t // 8} x {v}": ("rows", Fused(softmax, ((t // 8, v),), (t // 8, v), 0)),
        f"product, bias, GELU, {t} x {h} x {i}": (
            "products",
            Fused(linear_gelu, ((t, h), (i, h), (i,)), (t, i), 2.0 * t * h * i),
        ),
        f"two products and their gate, {t} x {h} x {i}": (
            "products",
            Fused(gated_product, ((t, h), (i, h), (i, h)), (t, i), 4.0 * t * h * i),
        ),
        f"RMS norm and product, {t} x {h} x {i}": (
            "products",
            Fused(norm_product, ((t, h), (i, h), (h,)), (t, i), 2.0 * t * h * i),
        ),
        f"cross-entropy of a product, {t} x {h // 4} x {v}": (
            "products",
            Fused(loss, ((t, h // 4), (v, h // 4)), (t,), 0.5 * t * h * v, v),
        ),
    }


def fused_problem(section: str, name: str, case: Fused) -> Problem:
    """A problem of this suite, or of its counterpart for GPUs."""
    sizes: dict[str, Any] = {
        f"input {at + 1}": "x".join(map(str, s)) for at, s in enumerate(case.shapes)
    }
    return Problem(
        suite="fused",
        section=section,
        name=name,
        case=case,
        work=case.work(),
        arithmetic=case.floats,
        make=case.inputs,
        exact=case.exact,
        tolerance=TOLERANCES[case.floats],
        parameters=sizes,
        size=float(_product(case.shapes[0])),
    )


def problems(quick: bool) -> list[Problem]:
    by = 16 if quick else 1
    found = cases(512 // by, 2048 // by, 4096 // by, 32768 // by)
    return [fused_problem(section, name, case) for name, (section, case) in found.items()]


def smallest(section: str) -> Problem:
    return fused_problem(section, "next to nothing", least(section))


def least(section: str) -> Fused:
    if section == "rows":
        return Fused(rms_norm, ((1, 16), (16,)), (1, 16), 0)
    return Fused(linear_gelu, ((1, 16), (16, 16), (16,)), (1, 16), 512.0)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


SUITE = Suite("fused", "Row-wise neighbours of products", problems, smallest)
