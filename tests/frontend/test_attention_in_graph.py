"""``tilewright.attention`` inside graphs: torch.compile in one graph, fake tensors, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tilewright
from tilewright.frontend.attention.in_graph import number_of
from tilewright.ir.errors import UnsupportedError

SLOPES = torch.tensor([0.5, 0.25])


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def inputs(length: int = 30) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(1, 2, length, 16, generator=generator) for _ in range(3))


def alibi(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + SLOPES[h] * (j - i)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    return tilewright.attention(q * 2, k, v, is_causal=True) + 1


def scored(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    return tilewright.attention(q * 2, k, v, score_mod=alibi, return_lse=True, return_max=True)


def windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    width = 3
    return tilewright.attention(q, k, v, mask_mod=lambda b, h, i, j: (i - j < width) & (i >= j))


def ragged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    offsets = torch.tensor([0, 10, 30], dtype=torch.int32)
    more = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    return tilewright.attention(q, k, v, is_causal=True, return_lse=True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [plain, scored, windowed, ragged])
def test_one_graph(function: Callable[..., Any]) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = inputs()
    torch.testing.assert_close(compiled(*given), function(*given))


def test_lengths_and_closed_over_tensors_may_change() -> None:
    compiled = torch.compile(scored, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (30, 17, 40):
        torch.testing.assert_close(compiled(*inputs(length)), scored(*inputs(length)))
    SLOPES.mul_(2)
    torch.testing.assert_close(compiled(*inputs()), scored(*inputs()))


def test_what_a_graph_cannot_hold_breaks_it_and_is_right() -> None:
    cache = tilewright.KVCache(1, 2, 16, k="u8", v="u8")
    q, k, v = inputs()
    cache.append(k, v)
    compiled = torch.compile(lambda q: tilewright.attention(q, cache) + 1, backend="aot_eager")
    torch.testing.assert_close(compiled(q), tilewright.attention(q, cache) + 1)


def test_fake_tensors_have_the_real_shapes() -> None:
    q, k, v = inputs()
    real = (*scored(q, k, v), ragged(q, k, v)[1], plain(q.half(), k.half(), v.half()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        a, b, c = (torch.empty(x.shape) for x in (q, k, v))
        fake = (*scored(a, b, c), ragged(a, b, c)[1], plain(a.half(), b.half(), c.half()))
    for x, y in zip(real, fake, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = plain(q, k, v)
            return out

    exported = torch.export.export(Model(), inputs(), strict=False)
    assert "tilewright.attention" in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs()), plain(*inputs()))


def test_what_graphs_cannot_do_is_said() -> None:
    q, k, v = inputs()
    numbers = {number_of(None, None), number_of(alibi, None), number_of(alibi, None)}
    assert len(numbers) == 2 and max(numbers) > 1 << 40  # no other process has this one
    op = torch.ops.tilewright.attention
    with pytest.raises(UnsupportedError, match="another process"):
        op(q, k, v, None, None, None, None, False, None, False, False, False, 77)
    with torch.enable_grad():
        q.requires_grad_()
        compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match="no backward yet"):  # in Dynamo's own words
            compiled(q, k, v).sum().backward()
