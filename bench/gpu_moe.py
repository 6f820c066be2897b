"""Layers of experts on a CUDA device: ``python -m tilewright.bench.gpu_moe OUT``.

bf16 experts E128 N704 K2816 top-8, as vLLM's tuned Triton kernels were measured on an H200
(vllm-project/vllm pull request 44818), checked against f64, then timed beside torch._grouped_mm and
one expert after the other; then the same in few bits beside both in bf16. ``--dry`` runs it tiny
under Triton's interpreter (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import sys
from functools import partial

import torch
import torch.nn.functional as F

import tilewright
from tilewright.bench.gpu_lowbit import random_weight
from tilewright.bench.gpu_timing import Call, Suite, run_suite
from tilewright.experts import ExpertsForm, Product, experts_forward
from tilewright.gpu import using_schedule

EXPERTS, HIDDEN, INNER, TOP = 128, 2816, 704, 8
PUBLISHED = {  # microseconds on an H200
    1: 185, 16: 264, 64: 384, 128: 396, 512: 442, 1024: 528, 2048: 728, 4096: 1190,
}  # fmt: skip
TOKENS = (1, 128, 4096, 16, 1024)
BITS = ("u4", "u8")
FEW_BITS_TOKENS = (1, 16, 128, 4096)
GROUP = 64  # of codes: a divisor of both lengths
# rows of a block, columns, warps, stages: tried beside the default ones
SCHEDULES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    1: ((16, 64, 4, 4), (16, 32, 2, 5)),
    128: ((16, 64, 4, 4), (16, 32, 4, 5), (32, 32, 4, 4)),
    4096: ((64, 64, 4, 4), (128, 64, 4, 3), (128, 128, 8, 3), (128, 64, 8, 4)),
}


def main() -> int:
    """1 if a result is wrong."""
    return run_suite(__doc__, 70.0, work, jobs=jobs)


def work(suite: Suite) -> None:
    """Everything, the required figures first."""
    form = layer(suite)
    for tokens in (5,) if suite.dry else TOKENS:
        if suite.left() < 10:
            suite.note(f"{tokens} tokens: no time left")
            return
        beside_torch(suite, form, tokens)
    for dtype in BITS:
        suite.check(f"experts {dtype}", partial(_few_bits_error, suite, dtype), 2e-2)
        packed = in_few_bits(form, dtype)
        for tokens in (5,) if suite.dry else FEW_BITS_TOKENS:
            if suite.left() < 5:
                suite.note(f"{dtype}, {tokens} tokens: no time left")
                return
            beside_floats(suite, packed, form, dtype, tokens)


def jobs(suite: Suite) -> list[Call]:
    """What the measurements will call, its weights made only then."""

    def job(dtype: str, tokens: int) -> object:
        form = layer(suite)
        called = in_few_bits(form, dtype) if dtype else form
        return experts_forward(called, *_tokens(suite, form, tokens))

    return [partial(job, d, n) for d in ("", *BITS) for n in (1, 128, 1024)]


def layer(suite: Suite) -> ExpertsForm:
    """Experts with silu between gate and up, random."""
    experts, hidden, inner = (4, 32, 16) if suite.dry else (EXPERTS, HIDDEN, INNER)
    made = torch.Generator(suite.device).manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        found = torch.randn(*shape, device=suite.device, generator=made, dtype=torch.float32)
        return found.mul_(shape[-1] ** -0.5).bfloat16()

    first, down = weight(experts, 2 * inner, hidden), weight(experts, hidden, inner)
    return ExpertsForm((Product(first),), Product(down))


def beside_torch(suite: Suite, form: ExpertsForm, tokens: int) -> None:
    """One number of tokens: right, then timed."""
    x, ids, weights = _tokens(suite, form, tokens)
    key = f"experts M{tokens}"
    suite.check(key, lambda: _error(form, x, ids, weights), 2e-2)
    calls: dict[str, Call] = {
        "ours": lambda: experts_forward(form, x, ids, weights),
        "torch one after the other": lambda: plain(form, x, ids, weights),
    }
    if hasattr(torch, "_grouped_mm") and not suite.dry:
        calls["torch grouped_mm"] = lambda: grouped_mm(form, x, ids, weights)
    if not suite.dry:
        del calls["torch one after the other"]  # waits for the device at every expert
        for schedule in SCHEDULES.get(tokens, ()):
            calls[" x ".join(map(str, schedule))] = _with(schedule, calls["ours"])
    suite.rounds(key, calls)
    if tokens in PUBLISHED:
        row = suite.found["rows"][key]
        row["published, H200"] = {"ms": PUBLISHED[tokens] / 1e3}
        for name in [n for n in row if n != "published, H200"]:
            row[name]["times_published"] = round(PUBLISHED[tokens] / 1e3 / row[name]["ms"], 3)
        suite.save()


def in_few_bits(form: ExpertsForm, dtype: str) -> ExpertsForm:
    """Experts of the same sizes with random codes and scales."""

    def product(given: Product) -> Product:
        assert isinstance(given.weight, torch.Tensor)
        zero = 1 << (int(dtype[1]) - 1)
        like = given.weight
        return Product(random_weight(dtype, like.shape, like.device, GROUP, zero))

    return ExpertsForm(tuple(map(product, form.first)), product(form.down))


def beside_floats(
    suite: Suite, packed: ExpertsForm, form: ExpertsForm, dtype: str, tokens: int
) -> None:
    """Few bits beside bf16, ours and torch's."""
    given = _tokens(suite, form, tokens)
    calls: dict[str, Call] = {
        "ours": lambda: experts_forward(packed, *given),
        "ours, bf16": lambda: experts_forward(form, *given),
    }
    if hasattr(torch, "_grouped_mm") and not suite.dry:
        calls["torch grouped_mm, bf16"] = lambda: grouped_mm(form, *given)
    suite.rounds(f"experts {dtype} M{tokens}", calls)


def _few_bits_error(suite: Suite, dtype: str) -> float:
    """Of a smaller layer, against f64 with the weights that its codes stand for."""
    experts, hidden, inner = (4, 64, 32) if suite.dry else (16, 512, 320)
    made = torch.Generator(suite.device).manual_seed(0)

    def weight(*shape: int) -> tilewright.QuantizedTensor:
        w = torch.randn(*shape, device=suite.device, generator=made) * shape[-1] ** -0.5
        return tilewright.QuantizedTensor.from_float(w, dtype, 32)

    first, down = weight(experts, 2 * inner, hidden), weight(experts, hidden, inner)
    wide = ExpertsForm((Product(first.dequantize()),), Product(down.dequantize()))
    packed, found = ExpertsForm((Product(first),), Product(down)), []
    for tokens in (1, 40) if suite.dry else (1, 40, 700):
        x, ids, weights = _tokens(suite, wide, tokens)
        got = experts_forward(packed, x, ids, weights)[:64].double()
        want = plain(wide, x[:64].double(), ids[:64], weights[:64].double())
        found.append(float((got - want).norm() / want.norm()))
    return max(found)


def _tokens(
    suite: Suite, form: ExpertsForm, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, ids and weights, random."""
    made = torch.Generator(suite.device).manual_seed(tokens)
    x = torch.randn(tokens, form.hidden, device=suite.device, generator=made).bfloat16()
    scores = torch.rand(tokens, form.experts, device=suite.device, generator=made)
    weights, ids = scores.topk(min(TOP, form.experts // 2))
    return x, ids, weights


def _with(schedule: tuple[int, int, int, int], call: Call) -> Call:
    def found() -> object:
        with using_schedule(*schedule):
            return call()

    return found


def plain(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The layer in x's dtype, one expert after the other."""
    first, down = _weights(form)
    out = torch.zeros_like(x)
    for e in range(form.experts):
        token, choice = torch.where(ids == e)
        if len(token):
            gate, up = (x[token] @ first[e].to(x.dtype).T).chunk(2, -1)
            y = (F.silu(gate) * up) @ down[e].to(x.dtype).T
            out.index_add_(0, token, y * weights[token, choice, None].to(x.dtype))
    return out


def grouped_mm(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The layer by torch's grouped product, as transformers does."""
    first, down = _weights(form)
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = torch.histc(flat.float(), form.experts, 0, form.experts - 1).cumsum(0).int()
    rows = x[order // ids.shape[1]]
    gate, up = torch._grouped_mm(rows, first.mT, offs=ends).chunk(2, -1)
    y = torch._grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    y = y * weights.reshape(-1)[order, None].to(y.dtype)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return y[back].view(*ids.shape, -1).sum(1)


def _weights(form: ExpertsForm) -> tuple[torch.Tensor, torch.Tensor]:
    first, down = form.first[0].weight, form.down.weight
    assert isinstance(first, torch.Tensor) and isinstance(down, torch.Tensor)
    return first, down


def _error(form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> float:
    """Of the first tokens, against f64."""
    got = experts_forward(form, x, ids, weights)[:64].double()
    want = plain(form, x[:64].double(), ids[:64], weights[:64].double())
    return float((got - want).norm() / want.norm())


if __name__ == "__main__":
    sys.exit(main())
