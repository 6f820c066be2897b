"""The rows of the speed table: one ``Workload`` each, with what it is held to on which machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import tilewright
from tilewright.bench.programs import attention_text
from tilewright.bench.records import Comparison, Goal
from tilewright.bench.timing import Effort, interleaved

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
NO_GOAL = Goal()
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """One attention problem. With one query (decode), its work is the bytes of keys and values."""

    name: str
    queries: int
    keys: int
    head: int
    heads: int = 8
    groups: int = 8  # heads of keys and values
    causal: bool = False
    dtype: str = "f32"
    packed: bool = False  # see torch_attention
    avx2: Goal = NO_GOAL
    avx512: Goal = NO_GOAL

    @property
    def decode(self) -> bool:
        return self.queries == 1

    @property
    def unit(self) -> str:
        return "GB/s" if self.decode else "GFLOP/s"

    @property
    def work(self) -> float:
        """10⁹ bytes of keys and values, or 10⁹ operations of both products."""
        if self.decode:
            bytes_each = DTYPES[self.dtype].itemsize
            return 2 * self.groups * self.keys * self.head * bytes_each / 1e9
        seen = self.queries * self.keys / (2 if self.causal else 1)
        return 4 * self.heads * seen * self.head / 1e9

    def smaller(self) -> Workload:
        """The same problem with an eighth of the lengths, for trying things out."""
        queries, keys = max(1, self.queries // 8), max(1, self.keys // 8)
        return replace(
            self,
            name=f"{self.name}, lengths / 8",
            queries=queries,
            keys=keys,
            avx2=NO_GOAL,
            avx512=NO_GOAL,
        )


def square(
    name: str, length: int, head: int, avx2: Goal, avx512: Goal, causal: bool = False
) -> Workload:
    """Eight heads over ``length`` queries and keys in f32."""
    return Workload(name, length, length, head, causal=causal, avx2=avx2, avx512=avx512)


def decode(keys: int, dtype: str, avx2: Goal = NO_GOAL, avx512: Goal = NO_GOAL) -> Workload:
    """One query, 32 heads of queries over 8 of keys and values, heads of 128."""
    name = f"{dtype} decode 32/8 heads, {keys:,} keys, D128"
    return Workload(name, 1, keys, 128, 32, 8, dtype=dtype, avx2=avx2, avx512=avx512)


def against_packed(workload: Workload) -> Workload:
    """The same, held to nothing, beside a caller who packs the heads of a group for torch."""
    name = f"{workload.name}, packed"
    return replace(workload, name=name, packed=True, avx2=NO_GOAL, avx512=NO_GOAL)


BF16 = (Goal(1.2, 1.3), Goal(2.0, 3.5))
LONG = square("f32 H8 L2048 D64", 2048, 64, Goal(1.15, 1.3), Goal(1.4, 1.9))
NAIVE = square("naive attention f32 H8 L4096 D64", 4096, 64, Goal(3.0), Goal(3.0))
WORKLOADS = (
    LONG,
    square("f32 H8 L2048 D64 causal", 2048, 64, Goal(1.4, 1.8), Goal(1.7, 2.4), causal=True),
    square("f32 H8 L2048 D128", 2048, 128, Goal(1.1, 1.3), Goal(1.3, 1.9)),
    square("f32 H8 L777 D80", 777, 80, Goal(1.2, 1.3), Goal(1.4, 1.9)),
    replace(LONG, name="bf16 H8 L2048 D64", dtype="bf16", avx2=BF16[0], avx512=BF16[1]),
    replace(
        LONG,
        name="bf16 H8 L2048 D64 causal",
        dtype="bf16",
        causal=True,
        avx2=BF16[0],
        avx512=BF16[1],
    ),
    decode(4096, "f32", Goal(3.0), Goal(2.0)),
    decode(16384, "f32", Goal(6.0), Goal(5.0)),
    against_packed(decode(4096, "f32")),
    against_packed(decode(16384, "f32")),
    against_packed(decode(4096, "bf16")),
    against_packed(decode(16384, "bf16")),
)


def compare(workload: Workload, wide: bool, effort: Effort) -> Comparison:
    """Our kernel and torch's scaled_dot_product_attention at its best on one problem."""
    text = attention_text(workload.head, causal=workload.causal, dtype=workload.dtype)
    program = tilewright.Program(tilewright.parse(text))
    return _compare(
        workload,
        lambda q, k, v: program(q, k, v)[0],
        torch_attention(workload),
        "torch SDPA, packed heads" if workload.packed else "torch SDPA",
        wide,
        effort,
    )


def compare_naive(workload: Workload, wide: bool, effort: Effort) -> Comparison:
    """``naive_attention`` as it stands, and through ``tilewright.compile``."""
    compiled = tilewright.compile(naive_attention)
    return _compare(workload, compiled, naive_attention, "torch eager", wide, effort)


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention as one would write it down without knowing better."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores, -1) @ v


def torch_attention(workload: Workload) -> Attention:
    """torch's own attention with what lets it take its fastest way: is_causal and enable_gqa.

    With one query, the heads of a group may as well be ``packed`` as several queries of one head:
    torch then reads keys and values once for all of them, as it does not with enable_gqa, and is 2
    to 9 times faster. transformers packs where there is a mask.
    """
    causal, grouped = workload.causal, workload.groups != workload.heads
    if workload.packed:
        assert workload.decode, "only the heads of a single query can be packed"
        return _packed_attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=grouped
        )

    return attention


def _packed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, heads, _, head = q.shape
    groups = k.shape[1]
    packed = q.reshape(batch, groups, heads // groups, head)
    out = torch.nn.functional.scaled_dot_product_attention(packed, k, v)
    return out.reshape(batch, heads, 1, head)


def make_inputs(workload: Workload) -> Tensors:
    """Normal numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def normal(heads: int, length: int) -> torch.Tensor:
        x = torch.randn(1, heads, length, workload.head, generator=generator)
        return x.to(DTYPES[workload.dtype])

    keys = (workload.groups, workload.keys)
    return normal(workload.heads, workload.queries), normal(*keys), normal(*keys)


def _compare(
    workload: Workload, ours: Attention, theirs: Attention, peer: str, wide: bool, effort: Effort
) -> Comparison:
    inputs = make_inputs(workload)
    q, k, v = inputs
    with torch.inference_mode():
        exact = torch_attention(workload)(q.double(), k.double(), v.double())
        errors = [float((f(q, k, v) - exact).abs().max()) for f in (ours, theirs)]
        del exact
        times = interleaved(lambda: ours(q, k, v), lambda: theirs(q, k, v), effort)
    return Comparison(
        workload.name,
        peer,
        *times,
        goal=workload.avx512 if wide else workload.avx2,
        work=workload.work,
        unit=workload.unit,
        our_error=errors[0],
        their_error=errors[1],
    )
