"""Matrix products and einsum as tensor.contract."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F

from tilewright.frontend.op_map.emitter import Emitter, tensor_type
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.registry import Kind, handles
from tilewright.frontend.op_map.shape import settle_ratios_above
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError

# names of leading dimensions, innermost last: [h], [b, h], [a, b, h], …
_LEADING = "zyxwvutsrqpabh"
_FREE = "ndmecfgijkl"


def leading_letters(count: int) -> str:
    """Letters for batch dimensions."""
    if count > len(_LEADING):
        raise UnsupportedError(f"a product with {count} batch dimensions")
    return _LEADING[len(_LEADING) - count :]


def _matrix_letters(e: Emitter, lhs: Value, rhs: Value) -> tuple[str, str, str]:
    """Letters of both operands and the result; a result of a product keeps its letters, so that
    softmax(q k) v reads "bhnd,bhdm->bhnm" and then "bhnm,bhme->bhne"."""
    left, right = len(tensor_type(lhs).shape), len(tensor_type(rhs).shape)
    batch = leading_letters(max(left - 2, right - 2, 0))
    known = e.letters.get(lhs, "")[-2:]
    if len(known) < 2 or set(known) & set(batch):
        known = "nd"
    row, inner = known[0], known[1]
    column = next(c for c in ("m", *_FREE[3:]) if c not in (row, inner, *batch))
    outer = batch[len(batch) - max(left - 2, 0) :]
    a = outer + row + inner if left > 1 else inner
    outer = batch[len(batch) - max(right - 2, 0) :]
    b = outer + inner + column if right > 1 else inner
    out = batch + (row if left > 1 else "") + (column if right > 1 else "")
    return a, b, out


@handles(
    "matmul",
    Kind.CONTRACTION,
    [torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.mv, torch.dot],
    ["matmul", "bmm", "mm", "mv", "dot", "__matmul__"],
    settle=settle_ratios_above,
)
def matmul(e: Emitter, input: Value, other: Value) -> Value:
    """torch.matmul of any ranks, batch dimensions broadcast; sums in f32"""
    a, b, out = _matrix_letters(e, input, other)
    return e.contract(f"{a},{b}->{out}", input, other, e.dtype)


@handles("linear", Kind.CONTRACTION, [F.linear])
def linear(e: Emitter, input: Value, weight: Value, bias: Value | None = None) -> Value:
    """input [..., K] times weight [O, K] transposed, plus bias [O]"""
    rank = len(tensor_type(input).shape)
    rows = leading_letters(max(rank - 2, 0)) + ("n" if rank > 1 else "")
    product = e.contract(f"{rows}k,ok->{rows}o", input, weight, e.dtype)
    return product if bias is None else binary(e, m.Add, product, bias, e.dtype)


@handles("baddbmm", Kind.CONTRACTION, [torch.baddbmm], ["baddbmm"], settle=settle_ratios_above)
def baddbmm(
    e: Emitter, input: Value, batch1: Value, batch2: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    """beta * input + alpha * (batch1 @ batch2); input is not read if beta is 0"""
    product = matmul(e, batch1, batch2)
    if alpha != 1:
        product = binary(e, m.Mul, product, alpha, e.dtype)
    if beta == 0:
        return product
    scaled = input if beta == 1 else binary(e, m.Mul, input, beta, e.dtype)
    return binary(e, m.Add, scaled, product, e.dtype)


@handles("addmm", Kind.CONTRACTION, [torch.addmm], ["addmm"], settle=settle_ratios_above)
def addmm(
    e: Emitter, input: Value, mat1: Value, mat2: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    """beta * input + alpha * (mat1 @ mat2)"""
    return baddbmm(e, input, mat1, mat2, beta=beta, alpha=alpha)


@handles("einsum", Kind.CONTRACTION, [torch.einsum], settle=settle_ratios_above)
def einsum(e: Emitter, equation: str, *operands: Value | tuple[Value, ...]) -> Value:
    """einsum of two tensors, with ``...`` and an implicit result too"""
    flat = [v for entry in operands for v in (entry if isinstance(entry, tuple) else (entry,))]
    if len(flat) != 2:
        raise UnsupportedError(f"einsum of {len(flat)} tensors; only of two")
    left, right, out = _einsum_letters(equation.replace(" ", ""), flat)
    return e.contract(f"{left},{right}->{out}", flat[0], flat[1], e.dtype)


def _einsum_letters(equation: str, operands: list[Value]) -> tuple[str, str, str]:
    """The three terms with ``...`` spelled out and the result made explicit."""
    inputs, _, given = equation.partition("->")
    terms = inputs.split(",")
    ranks = [len(tensor_type(v).shape) for v in operands]
    extra = [r - len(term.replace("...", "")) for r, term in zip(ranks, terms, strict=True)]
    widest = max([n for n, term in zip(extra, terms, strict=True) if "..." in term], default=0)
    spare = [c for c in reversed(_LEADING) if c not in equation][:widest]
    dots = "".join(reversed(spare))
    full = [
        term.replace("...", dots[len(dots) - n :] if n else "")
        for n, term in zip(extra, terms, strict=True)
    ]
    if any(len(set(term)) != len(term) for term in full):
        raise UnsupportedError("einsum that takes a diagonal (a letter twice in one tensor)")
    if "->" in equation:
        return full[0], full[1], given.replace("...", dots)
    once = sorted(c for c in set(inputs) if c.isalpha() and inputs.count(c) == 1)
    return full[0], full[1], dots + "".join(once)
