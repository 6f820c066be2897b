"""Decoding, ragged batches, pages and low-bit caches on GPUs: in Triton's interpreter (a process of
their own), compiled ahead of time, and on a GPU where there is one."""

from __future__ import annotations

import re

import pytest
import torch

import tilewright
from tests.attention_forms import module_of
from tests.backends.interpreted import run_interpreted
from tilewright.backends.triton.build import compile_ahead
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import gpu_programs_in_parts
from tilewright.passes.to_tile.tables import with_tables

pytest.importorskip("triton")


def test_in_tritons_interpreter() -> None:
    run_interpreted("triton_interpreted_attention.py")


def assembly(name: str) -> str:
    """Of the kernel that walks the keys, of the pair that shares them out, for few rows."""
    graph = with_tables(run_passes(module_of(name), TO_KERNELS).graphs[0])
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    target = named_target("cuda-sm90")
    program = gpu_programs_in_parts(graph, target, units, None, 16)[0]
    source = emit_source(program, "kernel", bulk=bool(program.attrs["bulk"]))
    warps, stages = int(program.attrs["warps"]), int(program.attrs["stages"])
    found = compile_ahead(source, program, target, warps, stages)
    assert found.spills == 0
    return found.assembly


def test_what_is_read_comes_in_large_pieces() -> None:
    """Sixteen bytes at a time, ahead of time: pages and words of codes by asynchronous copies,
    dense keys by the bulk copy engine. (What other targets make of it is in the corpus' table.)"""
    for name in ("pages", "cache u8, u4"):
        wide = re.findall(
            r"cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10", assembly(name)
        )
        assert len(wide) >= 8, name
    assert "cp.async.bulk.tensor" in assembly("decode")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """A cache on the device, offsets and tables on the device, one query."""
    q = torch.randn(2, 8, 1, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 2, 3000, 128, device="cuda") for _ in "kv")
    cache = tilewright.KVCache(2, 2, 128, device="cuda").append(k, v)
    keys, values = (x.repeat_interleave(4, 1) for x in cache.dequantize())
    want = torch.nn.functional.scaled_dot_product_attention(q.float(), keys, values)
    got = tilewright.attention(q, cache, enable_gqa=True)
    assert isinstance(got, torch.Tensor) and float((got.float() - want).abs().max()) < 2e-2
    pages = [x.transpose(1, 2).reshape(-1, 10, 2, 128).bfloat16() for x in cache.dequantize()]
    table = torch.arange(600, device="cuda", dtype=torch.int32).view(2, 300)
    got = tilewright.attention(q, *pages, block_table=table, enable_gqa=True)
    assert isinstance(got, torch.Tensor) and float((got.float() - want).abs().max()) < 2e-2
    flat = [x.transpose(1, 2).reshape(6000, 2, 128).bfloat16() for x in cache.dequantize()]
    offsets = [torch.tensor([0, n, 2 * n], device="cuda", dtype=torch.int32) for n in (1, 3000)]
    got = tilewright.attention(
        q[:, :, 0], *flat, cu_seqlens_q=offsets[0], cu_seqlens_k=offsets[1], enable_gqa=True
    )
    assert isinstance(got, torch.Tensor)
    assert float((got.float() - want[:, :, 0]).abs().max()) < 2e-2


FEW_BITS = [  # keys, values, what shares keys' scales, tokens, heads (two of keys), dtype
    ("u8", "u4", "token", 3001, 8, torch.bfloat16),
    ("u4", "u8", "token", 777, 32, torch.bfloat16),
    ("u3", "u3", "token", 300, 8, torch.bfloat16),
    ("u4", "u2", "channel", 500, 8, torch.float16),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("keys", "values", "by", "tokens", "heads", "dtype"), FEW_BITS)
def test_caches_in_few_bits_on_a_gpu(
    keys: str, values: str, by: str, tokens: int, heads: int, dtype: torch.dtype
) -> None:
    q = torch.randn(2, heads, 1, 128, device="cuda", dtype=dtype)
    k, v = (torch.randn(2, 2, tokens, 128, device="cuda") for _ in "kv")
    cache = tilewright.KVCache(2, 2, 128, k=keys, v=values, k_by=by, device="cuda").append(k, v)
    sides = (x.repeat_interleave(heads // 2, 1).float() for x in cache.dequantize())
    want = torch.nn.functional.scaled_dot_product_attention(q.float(), *sides)
    got = tilewright.attention(q, cache, enable_gqa=True)
    assert isinstance(got, torch.Tensor) and float((got.float() - want).abs().max()) < 2e-2


@pytest.mark.gpu
def test_documents_on_a_gpu() -> None:
    """So many heads that their blocks are found before, and so few that they are not."""
    number = torch.randint(0, 6, (1500,), device="cuda").sort().values.int()
    for heads in (1, 64):
        q, k, v = (torch.randn(2, heads, 1500, 64, device="cuda").bfloat16() for _ in "qkv")
        got = tilewright.attention(q, k, v, mask_mod=lambda b, h, i, j: number[i] == number[j])
        seen = number[:, None] == number
        want = torch.nn.functional.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=seen
        )
        assert isinstance(got, torch.Tensor) and float((got.float() - want).abs().max()) < 2e-2
