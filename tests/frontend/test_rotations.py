"""Rotary embeddings become part of attention, however they are written; other joins stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.frontend.standin import StandInProgram
from tilewright.frontend.compile import CompiledFunction, compile
from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError

HALVES: dict[str, Callable[[Tensor], Tensor]] = {
    "slices": lambda x: torch.cat(
        (-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1
    ),
    "numbers": lambda x: torch.cat([-x[:, :, :, 8:16], x[:, :, :, 0:8]], 3),
    "negative starts": lambda x: torch.concat((x[..., -8:].neg(), x[..., :-8]), -1),
    "chunk": lambda x: torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1),
    "unpacked": lambda x: _joined(*x.chunk(2, dim=-1)),
    "split": lambda x: _joined(*torch.split(x, 8, dim=-1)),
    "narrow": lambda x: torch.cat((-x.narrow(-1, 8, 8), x.narrow(3, 0, 8)), -1),
    "function narrow": lambda x: _joined(torch.narrow(x, -1, 0, 8), torch.narrow(x, -1, 8, 8)),
    "three parts": lambda x: torch.cat((x[..., 12:], x[..., 3:12] * 2, x[..., :3].exp()), -1),
}


def _joined(low: Tensor, high: Tensor) -> Tensor:
    return torch.cat((-high, low), -1)


def inputs(dtype: torch.dtype = torch.float32, rows: int = 7) -> list[Tensor]:
    q, k, v = (torch.randn(2, 4, n, 16).to(dtype) for n in (rows, 9, 9))
    tables = [f(torch.rand(n, 16)).to(dtype) for n in (rows, 9) for f in (torch.cos, torch.sin)]
    return [q, k, v, *tables]


def rotary(half: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def function(q: Tensor, k: Tensor, v: Tensor, cq: Tensor, sq: Tensor, ck: Tensor, sk: Tensor):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q * cq + half(q) * sq, k * ck + half(k) * sk, v)

    return function


def left(compiled: CompiledFunction) -> dict[str, int]:
    counts: dict[str, int] = {}
    for graph in compiled.explain().graphs:
        for row in graph.left:
            counts[row.op] = counts.get(row.op, 0) + row.count
    return counts


def check(function: Callable[..., Tensor], given: list[Tensor]) -> CompiledFunction:
    torch._dynamo.reset()
    compiled = compile(function)
    with torch.no_grad():
        ours, theirs = compiled(*given), function(*given)
    bound = 1e-5 if given[0].dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    return compiled


@pytest.mark.parametrize("name", HALVES)
def test_spellings(name: str) -> None:
    compiled = check(rotary(HALVES[name]), inputs())
    (region,) = compiled.explain().regions
    assert region.status == "kernel" and region.ir.count("tensor.concat") == 2
    assert not left(compiled)


def test_products_written_out() -> None:
    """Products and softmax apart, grouped heads, a sum of two rotations."""

    def function(q: Tensor, k: Tensor, v: Tensor, c: Tensor, s: Tensor) -> Tensor:
        half = HALVES["slices"]
        k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
        scores = (q * c + half(q) * s) @ (k * c[:1] + half(k) * s[:1]).mT
        return scores.mul(0.25).softmax(-1) @ v

    q, k, v, c, s, *_ = inputs()
    compiled = check(function, [q, k, v, c, s])
    (region,) = compiled.explain().regions
    assert "tensor.concat" in region.ir and "tensor.softmax" in region.ir


@pytest.mark.parametrize(
    ("dtype", "rows", "count"),
    [(torch.bfloat16, 7, 0), (torch.bfloat16, 1, 2), (torch.float16, 7, 1), (torch.float16, 1, 2)],
    ids=str,
)
def test_sixteen_bits_only_where_faster(dtype: torch.dtype, rows: int, count: int) -> None:
    compiled = check(rotary(HALVES["slices"]), inputs(dtype, rows))
    (region,) = compiled.explain().regions
    assert region.ir.count("tensor.concat") == count


STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "twice a slice": lambda x: torch.cat((x[..., :8], x[..., :8].cumsum(-1)), -1),
    "two whole tensors": lambda x: torch.cat((x, -x), -1),
    "every other element": lambda x: torch.cat((-x[..., 1::2], x[..., ::2]), -1),
    "another dimension": lambda x: torch.cat((-x[..., 4:, :], x[..., :4, :]), -2),
    "of a part": lambda x: torch.cat((_joined(x[..., :4], x[..., 4:8]), x[..., 8:]), -1),
    "a part alone": lambda x: x[..., :8],
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_with_torch(name: str) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(STAYS[name](q), STAYS[name](k), v)

    compiled = check(function, inputs()[:3])
    (region,) = compiled.explain().regions
    assert region.status == "kernel" and "tensor.concat" not in region.ir
    assert len(region.ir.split("{")[0].split("tensor<")) == 4  # three inputs
    assert left(compiled)


def test_rotated_keys_that_others_need_stay() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        half = HALVES["slices"]
        rotated = k * c[:1] + half(k) * s[:1]
        return F.scaled_dot_product_attention(q * c + half(q) * s, rotated, v), rotated

    q, k, v, c, s, *_ = inputs()
    compiled = compile(function)
    with torch.no_grad():
        ours, theirs = compiled(q, k, v, c, s), function(q, k, v, c, s)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (region,) = compiled.explain().regions
    assert region.ir.count("tensor.concat") == 1
    assert left(compiled)["cat"] == 1


@pytest.mark.parametrize("when", ["built", "called"])
@pytest.mark.parametrize("strict", [False, True])
def test_attention_keeps_its_kernel_without_the_rotation(
    when: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel for a roll, found when building or when first called: torch rotates then."""

    def refuse(self: StandInProgram, *_: object) -> None:
        if "tensor.concat" in str(self.module):
            raise UnsupportedError("a roll by 3 of 6 elements")

    make, call = StandInProgram.__init__, StandInProgram.__call__

    def made(self: StandInProgram, module: Module, target: str | None = None) -> None:
        make(self, module, target)
        if when == "built":
            refuse(self)

    def called(self: StandInProgram, *given: Tensor) -> tuple[Tensor, ...]:
        refuse(self)
        return call(self, *given)

    monkeypatch.setattr(StandInProgram, "__init__", made)
    monkeypatch.setattr(StandInProgram, "__call__", called)
    function, given = rotary(HALVES["slices"]), inputs()
    compiled = compile(function, strict=strict)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(*given), function(*given), rtol=1e-5, atol=1e-5)
    (region,) = compiled.explain().regions
    assert region.status == "kernel" and region.calls == 3 and not region.fallbacks
    assert "tensor.concat" not in region.ir


@pytest.mark.parametrize("refused", [False, True])
def test_rotated_rows_that_others_need(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel without the rotation gives the rotated rows, which softmax reads, as well."""

    def function(x: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        rotated = x * c + HALVES["slices"](x) * s
        return rotated.softmax(-1).softmax(-1), rotated.flip(-1)

    def called(self: StandInProgram, *given: Tensor) -> tuple[Tensor, ...]:
        if refused and "tensor.concat" in str(self.module):
            raise UnsupportedError("a roll by 3 of 6 elements")
        return call(self, *given)

    call = StandInProgram.__call__
    monkeypatch.setattr(StandInProgram, "__call__", called)
    x, _, _, c, s, *_ = inputs()
    (region,) = check(function, [x, c, s]).explain().regions
    assert region.status == "kernel" and ("tensor.concat" in region.ir) != refused


def test_lengths_stay_open() -> None:
    compiled = compile(rotary(HALVES["slices"]))
    with torch.no_grad():
        for rows in (7, 5, 6):
            given = inputs(rows=rows)
            ours, theirs = compiled(*given), rotary(HALVES["slices"])(*given)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(compiled.explain().graphs) == 1


def test_verified_against_torch() -> None:
    compiled = compile(rotary(HALVES["chunk"]), verify=True)
    with torch.no_grad():
        compiled(*inputs())
    assert "tensor.concat" in compiled.explain().regions[0].ir


def test_a_rotated_attention_after_the_products_that_feed_it() -> None:
    """Its inputs are other nodes since the projections before it have been replaced; what it does
    without the rotation begins at those as well."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(32, n, bias=False) for n in (64, 16, 16))

        def forward(self, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
            half = HALVES["slices"]
            length = x.shape[1]
            each = (p(x).view(1, length, -1, 16) for p in (self.q, self.k, self.v))
            q, k, v = (y.transpose(1, 2) for y in each)
            q, k = (y * c + half(y) * s for y in (q, k))
            k, v = (y[:, :, None].expand(1, 1, 4, -1, 16).reshape(1, 4, -1, 16) for y in (k, v))
            return F.scaled_dot_product_attention(q, k, v)

    def given(length: int) -> list[Tensor]:
        angle = torch.rand(length, 16)
        return [torch.randn(1, length, 32), angle.cos(), angle.sin()]

    layer = Layer()
    compiled = check(layer, given(4))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*(x := given(6))), layer(*x))  # lengths stay open
    attention = next(r for r in compiled.explain().regions if "tensor.softmax" in r.ir)
    assert attention.status == "kernel" and "tensor.concat" in attention.ir
