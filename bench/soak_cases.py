"""What the soak's threads call: attention in many forms, rows, low-bit products, experts, routers,
a compiled module, and kernels that come up for the first time in the middle.

Inputs follow from a case's name, so that another process makes the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import tilewright
from tilewright.bench.routing_cases import Routing
from tilewright.experts import ExpertsForm, Product, experts_forward

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TUNED = EXAMPLES / "attention.tw"
TUNED_SIZES = {"B": 1, "K": 2, "G": 1, "N": 200, "M": 200}
SUMS = 1e-5  # of the largest result: f32 sums in another order

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A call that gives the same in every thread. ``bound``: how far results may be off, over the
    largest of them, where the number of threads or a tuned schedule decides the order of sums; 0:
    not by a bit. ``in_children``: False for what torch does not let a forked child call."""

    name: str
    call: Callable[[], Tensors]
    bound: float = 0.0
    in_children: bool = True

    def why_wrong(self, expected: Tensors) -> str:
        """Calls it; '' if the results are those expected, else how they differ."""
        found = self.call()
        if len(found) != len(expected):
            return f"{self.name}: {len(found)} results instead of {len(expected)}"
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{self.name}: result {number} is {a.dtype}{list(a.shape)}"
            if torch.equal(a, b):
                continue
            off, top = float((a.double() - b.double()).abs().max()), float(b.abs().max())
            if not off <= self.bound * top:
                return f"{self.name}: result {number} is off by {off:.3g} of {top:.3g}"
        return ""


def fixed_cases() -> list[Case]:
    """Those that every thread calls from the start."""
    return [*_attention(), *_programs(), *_linears(), *_experts(), *_routing(), _module()]


def late_cases(count: int) -> list[Case]:
    """Kernels that nobody has called before: other head sizes, widths of weights and of codes."""
    found = [_head(8 * n) for n in range(1, count // 2 + 1)]
    dtypes = ("u2", "u3", "u5", "u6", "i8", "f4e2m1", "u1", "u7")
    for n in range(count - len(found)):
        found.append(_linear(dtypes[n % len(dtypes)], 64 + 64 * n, "none", 3))
    return found


def _random(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _heads(name: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensors:
    draw = _random(name)
    return tuple(torch.randn(shape, generator=draw).to(dtype) for shape in shapes)


def _attention() -> Iterator[Case]:
    document = torch.arange(90) // 20
    slope = 2.0 ** -torch.arange(1, 3)

    def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (document[q_idx] == document[kv_idx]) & (q_idx >= kv_idx)

    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score - slope[h] * (q_idx - kv_idx)

    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("dense", {}),
        ("causal", {"is_causal": True}),
        ("documents", {"mask_mod": same_document}),
        ("slopes", {"score_mod": alibi}),
    )
    for kind, options in kinds:
        for rows in (90, 33):
            name = f"attention, {kind}, {rows} rows"
            yield _attended(name, (1, 2, rows, 64), (1, 2, 90, 64), **options)
    yield _attended("attention, decode", (1, 8, 1, 64), (1, 2, 700, 64), bound=SUMS)
    yield _attended("attention, bf16", (1, 2, 50, 64), (1, 2, 50, 64), dtype=torch.bfloat16)


def _attended(
    name: str,
    rows: tuple[int, ...],
    keys: tuple[int, ...],
    *,
    bound: float = 0.0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Case:
    q, k, v = _heads(name, rows, keys, keys, dtype=dtype)
    grouped = rows[1] != keys[1]

    def call() -> Tensors:
        found = tilewright.attention(q, k, v, enable_gqa=grouped, **options)
        return found if isinstance(found, tuple) else (found,)

    return Case(name, call, bound)


def _head(width: int) -> Case:
    shape = (1, 2, 40, width)
    return _attended(f"attention, head of {width}", shape, shape, is_causal=True)


def _programs() -> Iterator[Case]:
    """Text files: rows, sums over rows, and attention that is being tuned meanwhile."""
    sizes: dict[str, list[tuple[int, ...]]] = {
        "log_sum_exp": [(70, 130)],
        "variance": [(70, 130)],
        "entropy": [(70, 64), (90, 64), (90, 64)],
        "attention": [(1, 2, 200, 64)] * 3,
    }
    for stem, shapes in sizes.items():
        program = tilewright.Program(tilewright.parse((EXAMPLES / f"{stem}.tw").read_text()))
        given = _heads(stem, *shapes)
        bound = SUMS if stem == TUNED.stem else 0.0
        yield Case(f"{stem}.tw", lambda p=program, x=given: p(*x), bound)  # type: ignore[misc]


def _linears() -> Iterator[Case]:
    for dtype, activation in (("u4", "none"), ("u4", "int8"), ("f6e3m2", "none")):
        for rows in (1, 5):
            yield _linear(dtype, 256, activation, rows)


def _linear(dtype: str, length: int, activation: str, rows: int) -> Case:
    name = f"linear, {dtype}, {activation}, {length} columns, {rows} rows"
    full, x = _heads(name, (96, length), (rows, length))
    weight = _weight(dtype, full) if length == 256 else _packed(dtype, full)
    options: dict[str, Any] = {} if activation == "none" else {"activation": activation}
    return Case(name, lambda: (tilewright.linear(x, weight, **options),))


def _packed(dtype: str, full: torch.Tensor) -> tilewright.QuantizedTensor:
    return tilewright.QuantizedTensor.from_float(full, dtype, group=32)


_weights: dict[str, tilewright.QuantizedTensor] = {}


def _weight(dtype: str, full: torch.Tensor) -> tilewright.QuantizedTensor:
    """One for all calls of a dtype, so that threads meet at the same weight."""
    return _weights.setdefault(dtype, _packed(dtype, full))


def _experts() -> Iterator[Case]:
    first, down = _heads("experts", (8, 48, 32), (8, 32, 24))
    form = ExpertsForm((Product(first),), Product(down))
    for tokens in (1, 19):
        name = f"experts, {tokens} tokens"
        (x,) = _heads(name, (tokens, 32))
        ids = torch.rand(tokens, 8, generator=_random(name)).topk(3).indices
        weights = torch.rand(tokens, 3, generator=_random(f"{name}, weights"))
        yield Case(
            name,
            lambda x=x, ids=ids, w=weights: (experts_forward(form, x, ids, w),),  # type: ignore[misc]
        )


def _routing() -> Iterator[Case]:
    routing = Routing(8, 32, 16, 2, 3, 2)
    program = routing.program(False)
    for tokens in (1, 50, 700):
        given = routing.inputs(tokens, False)
        ours = (*given[:-2], given[-2].int(), given[-1].int())
        yield Case(f"routing, {tokens} tokens", lambda x=ours: tuple(program(*x)))  # type: ignore[misc]


@cache
def _compiled() -> Any:
    """A block as models have it; its weights are the same in every process."""
    torch.manual_seed(7)
    block = torch.nn.Sequential(
        torch.nn.RMSNorm(64), torch.nn.Linear(64, 96), torch.nn.SiLU(), torch.nn.Linear(96, 64)
    )
    return tilewright.compile(block.requires_grad_(False))


def _module() -> Case:
    (x,) = _heads("module", (17, 64))
    # Dynamo compiles again for each number of torch's threads, and after eight times leaves it be;
    # a thread that looks at its guards while another forks keeps their lock in the child for ever
    return Case("compiled module", lambda: (_compiled()(x),), SUMS, in_children=False)
