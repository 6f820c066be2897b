"""Calls of products with quantised weights: torch tensors in, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from tilewright.ir.dtypes import F32, U8, DType
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.packing import TILES, Packing
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.to_tile.lowbit.byte_codes import byte_codes
from tilewright.passes.to_tile.lowbit.info import WeightForm
from tilewright.passes.to_tile.lowbit.pairs import pair_table
from tilewright.passes.to_tile.orders import FIXED
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.determinism import Level, in_force
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.locks import Guard
from tilewright.runtime.lowbit.form import LinearForm
from tilewright.runtime.lowbit.programs import (
    PROGRAMS,
    ROUNDING,
    TOGETHER,
    SideBySide,
)
from tilewright.runtime.once import kept_fresh
from tilewright.runtime.program import Program
from tilewright.runtime.quantized.tensor import QuantizedTensor

LONGEST_SUM = 1 << 15  # products of two bytes that certainly add up in 32 bits
_BESIDE = {**FLOATS, torch.uint8: U8}
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda y: y,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
}


def preferred_packing(dtype: DType, group: int, activation: str = "int8") -> Packing:
    """The packing that kernels of this machine read best."""
    return choose_layout(dtype, group, kernel_target(), activation=activation).packing


def why_not_bytes(dtype: DType, zeros: bool, group: int) -> str:
    """Why weights of a dtype are no bytes, so that int8 activations do not apply ('': they do)."""
    coded = byte_codes(dtype, kernel_target())
    if coded is None:
        return f"values of {dtype} are no small multiples of one number"
    if coded.table and zeros:
        return f"{dtype} with zeros"
    return f"groups of more than {LONGEST_SUM} codes" if group > LONGEST_SUM else ""


@dataclass
class Prepared:
    """One product with its weights at hand: its form, and the tensors that go with it."""

    form: LinearForm
    rows: int
    own: tuple[torch.Tensor, ...]
    given: tuple[object, ...]  # what it is known by: other objects may not get their addresses
    level: Level

    @cached_property
    def program(self) -> Program:
        return PROGRAMS[self.form, self.level]

    @cached_property
    def rounding(self) -> Call | None:
        """The kernel that rounds x, if its products are those of bytes."""
        if not self.form.integer:
            return None
        form = self.form.length, self.form.activation_group, self.form.x
        return ROUNDING[form, self.level]

    def shared(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What all products read of x [M, K]: itself in f32 (or bf16), or its codes, scales and
        sums."""
        if self.form.narrow:
            return (x,)
        if self.rounding is None:
            return (x if x.dtype == torch.float32 else x.float(),)
        codes, steps, sums = self.rounding(x)
        return codes.view(torch.int32), steps, sums

    def __call__(self, x: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        return self.result(self.program(*self.shared(x), *self.own, *residual)[0])

    def result(self, y: torch.Tensor) -> torch.Tensor:
        """Without the columns that fill up the last block."""
        return y if y.shape[1] == self.rows else y[:, : self.rows].contiguous()


def linear_kernel(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    activation: str = "float",
    *,
    residual: torch.Tensor | None = None,
    epilogue: str = "",
) -> torch.Tensor:
    """``epilogue(x @ weight.T + bias) + residual``: x [M, K] f32, f16 or bf16, weight [N, K],
    result [M, N] in x's dtype.

    ``activation="int8"`` rounds x per row and group of the weight; weights whose values are no
    bytes take it as it is. Raises UnsupportedError for what no kernel covers.
    """
    return _single(x, (weight,), (bias,), activation, residual, epilogue)


def gated_kernel(
    x: torch.Tensor,
    gate: QuantizedTensor,
    up: QuantizedTensor,
    biases: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    activation: str = "float",
    *,
    epilogue: str = "silu",
) -> torch.Tensor:
    """``epilogue(x @ gate.T + b0) * (x @ up.T + b1)`` in one kernel: x [M, K], both weights [N, K]
    of any widths."""
    return _single(x, (gate, up), biases, activation, None, epilogue)


def linears_kernel(
    x: torch.Tensor,
    weights: Sequence[QuantizedTensor],
    biases: Sequence[torch.Tensor | None] = (),
    activation: str = "float",
) -> tuple[torch.Tensor, ...]:
    """x @ w.T + b for several weights [N_i, K] of any widths in one kernel: x [M, K], results
    [M, N_i]. With int8 activations those of other groups than the first are products of their
    own."""
    given = tuple(biases) or (None,) * len(weights)
    if not x.numel() or not all(w.shape[0] for w in weights):
        each = zip(weights, given, strict=True)
        return tuple(linear_kernel(x, w, bias, activation) for w, bias in each)
    x, weights = ready(x, tuple(weights))

    def make() -> Together:
        each = zip(weights, given, strict=True)
        calls = (_prepare(x.dtype, (w,), (b,), activation, None, "") for w, b in each)
        return Together(tuple(calls), (weights[1:], given))

    return remembered(weights, given, ("together", x.dtype, activation), make)(x)


class Together:
    """Several products of one x with their weights at hand."""

    def __init__(self, calls: tuple[Prepared, ...], given: tuple[object, ...]) -> None:
        self.calls = calls
        self.given = given  # what it is known by
        first_call = calls[0]
        first = first_call.form
        groups = {c.form.activation_group for c in calls} if first.integer else set()
        kinds = {(c.form.integer, c.form.narrow) for c in calls}
        alike = len(kinds) == 1 and len(groups) < 2
        self.kernel: SideBySide | None = None
        if alike:
            forms = tuple(replace(c.form, label=str(at)) for at, c in enumerate(calls))
            self.kernel = TOGETHER[forms, first_call.level]
        self.own = tuple(own for c in calls for own in c.own)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.kernel is None:
            return tuple(call(x) for call in self.calls)
        found = self.kernel(x.shape[0], *self.calls[0].shared(x), *self.own)
        return tuple(c.result(y) for c, y in zip(self.calls, found, strict=True))


def _single(
    x: torch.Tensor,
    weights: tuple[QuantizedTensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    activation: str,
    residual: torch.Tensor | None,
    epilogue: str,
) -> torch.Tensor:
    if x.dtype not in FLOATS or epilogue not in FUNCTIONS:
        raise UnsupportedError(f"no kernel for activations of {x.dtype} and {epilogue!r}")
    if not x.numel() or not weights[0].shape[0]:
        return without_products(x, weights[0].shape[0], biases, residual, epilogue)
    x, weights = ready(x, weights)
    residual = padded(residual, weights[0].layout.lanes)
    kind = None if residual is None else residual.dtype
    settings = x.dtype, activation, kind, epilogue

    def make() -> Prepared:
        return _prepare(x.dtype, weights, biases, activation, kind, epilogue)

    call = remembered(weights, biases, settings, make)
    return call(x) if residual is None else call(x, residual)


def ready(
    x: torch.Tensor,
    weights: tuple[QuantizedTensor, ...],
    repack: Callable[[QuantizedTensor], QuantizedTensor] | None = None,
) -> tuple[torch.Tensor, tuple[QuantizedTensor, ...]]:
    """x in the order and size that the first weight wants, weights as ``repack`` gives them (None:
    in this machine's lanes)."""
    first = weights[0]
    for other in weights[1:]:
        same = other.order is first.order and other.tensor_scale == first.tensor_scale
        if other.shape[1] != first.shape[1] or not same:
            raise BindError(
                "weights of one kernel need one number of columns, one order and one tensor scale"
            )
    if first.order is not None:
        x = x[:, first.order]
    if first.tensor_scale != 1.0:
        x = x * first.tensor_scale
    return x.contiguous(), tuple(map(repack or for_target, weights))


_kept: WeakKeyDictionary[QuantizedTensor, dict[Any, Any]] = WeakKeyDictionary()
C = TypeVar("C")


def remembered(
    weights: tuple[QuantizedTensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    settings: tuple[object, ...],
    make: Callable[[], C],
) -> C:
    """A call made ready for these tensors and settings, kept as long as the first weight lives."""
    kept = _kept.get(weights[0])
    if kept is None:
        kept = _kept[weights[0]] = {}
    key = (*settings, in_force().rank, *map(id, weights[1:]), *map(id, biases))
    found: C | None = kept.get(key)
    if found is None:
        found = make()
        lanes = weights[0].layout.lanes
        # a padded copy of a bias would not see that one change
        if all(b is None or padded(b, lanes) is b for b in biases):
            kept[key] = found
    return found


def _prepare(
    x: torch.dtype,
    weights: tuple[QuantizedTensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    activation: str,
    residual: torch.dtype | None,
    epilogue: str,
) -> Prepared:
    lanes, rows = weights[0].layout.lanes, weights[0].shape[0]
    for weight in weights:
        check_numbers(weight)
    own: list[torch.Tensor] = []
    forms = []
    for weight, given in zip(weights, biases, strict=True):
        bias = padded(given, lanes)
        own += [part for part in (*flat_parts(weight), bias) if part is not None]
        forms.append(weight_form(weight, bias))
    integer = activation == "int8" and not any(
        why_not_bytes(w.dtype, w.zero_blocks is not None, w.layout.group) for w in weights
    )
    kind = None if residual is None else FLOATS[residual]
    length = weights[0].shape[1]
    level = in_force()
    pairs = level.order != FIXED  # the instruction for pairs has an order of its own
    narrow = pairs and not integer and x == torch.bfloat16
    narrow = narrow and all(in_pairs(f, length) for f in forms)
    form = LinearForm(tuple(forms), length, integer, FLOATS[x], kind, epilogue, narrow=narrow)
    return Prepared(form, rows, tuple(own), (weights[1:], biases), level)


def in_pairs(form: WeightForm, length: int) -> bool:
    """Whether kernels multiply a weight with bf16 as it is."""
    target = kernel_target()
    return pair_table(form.layout, form.dtype, form.zero, length, target) is not None


def check_numbers(weight: QuantizedTensor) -> None:
    """Kernels take every code for a number. Raises UnsupportedError if some are infinite or NaN."""
    if not weight.dtype.special:
        return
    values = torch.from_numpy(weight.dtype.decode(range(1 << weight.dtype.bits)))
    finite = values.isfinite().to(weight.words.device)
    if not finite[weight.codes().long()].all():
        raise UnsupportedError(f"weights of {weight.dtype} that are infinite or not a number")


def flat_parts(weight: QuantizedTensor) -> list[torch.Tensor]:
    """Words, scales and zeros, each [blocks, …], those of all matrices one after the other."""
    blocks = weight.words.shape[:-3].numel()
    found = [weight.words.view(blocks, -1), weight.scale_blocks.view(blocks, -1)]
    if weight.zero_blocks is not None:
        found.append(weight.zero_blocks.view(blocks, -1))
    return found


def weight_form(weight: QuantizedTensor, bias: torch.Tensor | None) -> WeightForm:
    zeros = weight.zero_blocks
    coded = weight.scale_blocks.dtype == torch.uint8
    return WeightForm(
        packing=str(weight.layout),
        dtype=weight.dtype,
        zero=0 if zeros is not None else weight.zero_point,
        zeros=None if zeros is None else _BESIDE[zeros.dtype],
        scales=_BESIDE[weight.scale_blocks.dtype],
        scale_dtype=weight.scale_dtype if coded else F32,
        bias=None if bias is None else FLOATS[bias.dtype],
    )


def padded(x: torch.Tensor | None, lanes: int) -> torch.Tensor | None:
    """With whole blocks of columns, in a dtype and order that kernels read."""
    if x is None:
        return None
    x = x if x.dtype in FLOATS else x.float()
    short = -x.shape[-1] % lanes
    return torch.nn.functional.pad(x, (0, short)) if short else x.contiguous()


def without_products(
    x: torch.Tensor,
    rows: int,
    biases: tuple[torch.Tensor | None, ...],
    residual: torch.Tensor | None,
    epilogue: str,
) -> torch.Tensor:
    """Results that need no weights: none, or sums of nothing."""
    y: torch.Tensor | None = None
    for bias in biases:
        part = torch.zeros(x.shape[0], rows, device=x.device)
        part = part if bias is None else part + bias.float()
        y = FUNCTIONS[epilogue](part) if y is None else y * part
    assert y is not None
    return (y if residual is None else y + residual.float()).to(x.dtype)


Repacked = WeakKeyDictionary[QuantizedTensor, tuple[int, QuantizedTensor]]
_repacked: Repacked = WeakKeyDictionary()
_packing = Guard()


def for_target(weight: QuantizedTensor) -> QuantizedTensor:
    """The weight in as many lanes as this process' kernels have; made once."""
    packing, lanes = weight.layout, kernel_target().lanes
    if packing.order == TILES:
        return repacked(
            weight, lambda: preferred_packing(weight.dtype, packing.group, "float"), _repacked
        )
    if packing.lanes == lanes:
        return weight
    fresh = Packing(packing.order, packing.planes, lanes, packing.group)
    return repacked(weight, lambda: fresh, _repacked)


def repacked(
    weight: QuantizedTensor, packing: Callable[[], Packing], kept: Repacked
) -> QuantizedTensor:
    """The weight under another packing, kept as long as its words stay what they are."""
    version = 0 if weight.words.is_inference() else weight.words._version  # loading changes it

    def made() -> tuple[int, QuantizedTensor]:
        return version, weight.with_layout(packing())

    return kept_fresh(kept, weight, made, lambda known: known[0] == version, _packing)[1]
