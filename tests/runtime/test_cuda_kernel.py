"""CUDA C++ kernels under programs and ``tilewright.attention``, run by the host's emulation."""

from __future__ import annotations

import shutil

import pytest
import torch

import tilewright
from tests.attention_programs import Attention
from tilewright.gpu import using_backend
from tilewright.ir.errors import BackendMissingError, TargetError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
BOUNDS = {"bf16": 1e-2, "f16": 2e-3, "f32": 4e-6}


@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm90"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_programs(target: str, dtype: str) -> None:
    """Many rows, and a few that share out the keys."""
    form = Attention(64, 64, dtype, causal=True)
    program = Program(parse(form.text()), backend="cuda-host", target=target)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 100, 64, dtype=DTYPES[dtype]) for _ in range(3))
    for rows in (100, 3):
        (got,) = program(q[:, :, :rows], k, v)
        want = form.reference(q[:, :, :rows], k, v, None)
        assert float((got.double() - want).abs().max()) < BOUNDS[dtype]


def test_strides_of_odd_numbers_and_odd_addresses() -> None:
    form = Attention(16, 16, "bf16")
    program = Program(parse(form.text()), backend="cuda-host")
    wide = torch.randn(3, 1, 2, 40, 19, dtype=torch.bfloat16)
    q, k, v = wide[..., 1:17]
    (got,) = program(q, k, v)
    assert float((got.double() - form.reference(q, k, v, None)).abs().max()) < BOUNDS["bf16"]


@pytest.mark.parametrize("places", [(0,), (1,), (0, 2)])
def test_some_that_lie_badly(places: tuple[int, ...]) -> None:
    """By their addresses, or by their strides: the others are read 16 bytes at once (what is not at
    a multiple of them is refused), beside biases and logarithms of rows of any length."""
    torch.manual_seed(2)
    bias = torch.randn(1, 69)

    def biased(s, b, h, i, j):  # type: ignore[no-untyped-def]
        return s + bias[b, j]

    for gap, offset in ((0, 1), (3, 0)):
        tensors = [torch.randn(1, 2, 69, 64).bfloat16() for _ in range(3)]
        for place in places:
            memory = torch.zeros(2 * 69 * (64 + gap) + 8, dtype=torch.bfloat16)[offset:]
            odd = memory[: 2 * 69 * (64 + gap)].view(1, 2, 69, 64 + gap)[..., :64]
            tensors[place] = odd.copy_(tensors[place])
        with using_backend("cuda-host"):
            got, lse = tilewright.attention(*tensors, score_mod=biased, return_lse=True)
        q, k, v = (x.double() for x in tensors)
        scores = q @ k.mT / 8 + bias.double()
        assert float((got.double() - torch.softmax(scores, -1) @ v).abs().max()) < BOUNDS["bf16"]
        assert float((lse - scores.logsumexp(-1)).abs().max()) < 1e-4


def test_nothing_to_do() -> None:
    program = Program(parse(Attention(16, 16, "bf16").text()), backend="cuda-host")
    q, k = torch.randn(1, 2, 0, 16).bfloat16(), torch.randn(1, 2, 5, 16).bfloat16()
    assert program(q, k, k)[0].shape == (1, 2, 0, 16)
    (got,) = program(k, q, q)
    assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("kind", ["causal", "bias", "documents"])
def test_attention_in_the_emulation(kind: str) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 4, 70, 64).bfloat16() for _ in range(3))
    documents = torch.arange(70) // 30

    def bias(s, b, h, i, j):  # type: ignore[no-untyped-def]
        return s + (j - i) * 0.1

    def same(b, h, i, j):  # type: ignore[no-untyped-def]
        return documents[i] == documents[j]

    given = {
        "causal": {"is_causal": True},
        "bias": {"score_mod": bias},
        "documents": {"mask_mod": same},
    }[kind]
    want = tilewright.attention(q, k, v, **given)
    with using_backend("cuda-host"):
        got = tilewright.attention(q, k, v, **given)
    assert not torch.equal(got, want)  # another order of sums: it was another kernel
    assert float((got.float() - want.float()).abs().max()) < BOUNDS["bf16"]


def test_ragged_paged_and_shared_out_calls_in_the_emulation() -> None:
    """Bounds found by warps together, pages read through a table, keys shared out in parts."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(90, heads, 64).bfloat16() for heads in (4, 2, 2))
    ends = torch.tensor([0, 30, 31, 90], dtype=torch.int32)
    one, keys, values = (
        torch.randn(3, h, n, 64).bfloat16() for h, n in ((4, 1), (2, 300), (2, 300))
    )
    pages, more = (torch.randn(40, 16, 2, 64).bfloat16() for _ in range(2))
    table = torch.randperm(40)[:30].reshape(3, 10).int()
    used = torch.tensor([150, 1, 77], dtype=torch.int32)
    calls = [
        ((q, k, v), {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "is_causal": True}),
        ((one, keys, values), {}),
        ((one, pages, more), {"block_table": table, "seqused_k": used}),
    ]
    for tensors, given in calls:
        want = tilewright.attention(*tensors, enable_gqa=True, **given)
        with using_backend("cuda-host"):
            got = tilewright.attention(*tensors, enable_gqa=True, **given)
        assert float((got.float() - want.float()).abs().max()) < BOUNDS["bf16"]


def test_back_ends_and_targets_are_checked() -> None:
    known = pytest.raises(BackendMissingError, match="known: gpu, triton, cuda, cuda-host")
    with known, using_backend("cuda-hots"):
        pass
    module = parse(Attention(16, 16).text())
    with pytest.raises(TargetError, match="not hip-gfx942"):
        Program(module, backend="cuda", target="hip-gfx942")
    if not torch.cuda.is_available():
        with pytest.raises(TargetError, match="no GPU that torch can reach"):
            Program(module, backend="cuda")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    torch.manual_seed(0)
    for head, dtype in ((64, torch.bfloat16), (128, torch.float16), (64, torch.float32)):
        q, k, v = (torch.randn(2, 4, 300, head, device="cuda", dtype=dtype) for _ in range(3))
        with using_backend("cuda"):
            got = tilewright.attention(q, k, v, is_causal=True)
        want = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), is_causal=True
        )
        bound = {2: 1e-2, 4: 4e-6}[dtype.itemsize]
        assert got.is_cuda and float((got.double() - want).abs().max()) < bound
