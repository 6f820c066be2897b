"""What each level of determinism costs: ``python -m tilewright.bench.determinism``.

Every level takes turns with the default on the same tensors. A figure is the level's time as a
multiple of the default's; that of ``run`` says what the comparison is worth, since both sides then
run the same code.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import typer

import tilewright
from tilewright.bench.command import add_command, begin, note
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.timing import Effort, in_rounds, summary

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NO_GOAL = Goal()
LEVELS: dict[str, dict[str, Any]] = {
    "run": {"deterministic": "run"},
    "threads": {"deterministic": "threads"},
    "batch": {"deterministic": "batch"},
    "reproducible": {"reproducible": True},
}
Call = Callable[..., Any]  # of a level's options


@dataclass(frozen=True)
class Workload:
    """``make(quick)`` gives a call that takes a level's options."""

    name: str
    make: Callable[[bool], Call]


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def decode(keys: int, dtype: torch.dtype) -> Callable[[bool], Call]:
    """One query of 32 heads over the keys of 8."""

    def make(quick: bool) -> Call:
        length = 130 if quick else keys
        q, k, v = (
            _normal(1, h, n, 128, dtype=dtype) for h, n in ((32, 1), (8, length), (8, length))
        )

        def call(**level: Any) -> Any:
            return tilewright.attention(q, k, v, enable_gqa=True, **level)

        return call

    return make


def prefill(length: int, dtype: torch.dtype, causal: bool) -> Callable[[bool], Call]:
    """8 heads of 64 numbers, as many queries as keys."""

    def make(quick: bool) -> Call:
        rows = 130 if quick else length
        q, k, v = (_normal(1, 8, rows, 64, dtype=dtype) for _ in range(3))

        def call(**level: Any) -> Any:
            return tilewright.attention(q, k, v, is_causal=causal, **level)

        return call

    return make


def low_bit(rows: int, activation: str) -> Callable[[bool], Call]:
    """Rows of 4096 numbers and a u4 weight of 4096 of them."""

    def make(quick: bool) -> Call:
        width = 256 if quick else 4096
        weight = tilewright.QuantizedTensor.from_float(_normal(width, width), "u4", group=32)
        x = _normal(rows, width)

        def call(**level: Any) -> Any:
            return tilewright.linear(x, weight, activation=activation, **level)

        return call

    return make


def compiled(rows: int, build: Callable[[int], Any]) -> Callable[[bool], Call]:
    """A compiled function or module of rows of 2048 numbers."""

    def make(quick: bool) -> Call:
        width = 64 if quick else 2048
        x, made = _normal(rows, width), dict[str, Any]()

        def call(**level: Any) -> Any:
            name = str(level)
            if name not in made:
                made[name] = tilewright.compile(build(width), **level)
            return made[name](x)

        return call

    return make


def product(width: int) -> torch.nn.Module:
    """A product with f32 weights, and a function."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.SiLU())


class Normed(torch.nn.Module):
    """Rows whose root mean square is taken to 1, and a product with f32 weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.product = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        out: torch.Tensor = self.product(rows)
        return out


WORKLOADS = (
    Workload("decode 32/8 heads, 4,096 keys, D128, f32", decode(4096, torch.float32)),
    Workload("decode 32/8 heads, 4,096 keys, D128, bf16", decode(4096, torch.bfloat16)),
    Workload("prefill H8 L2048 D64, f32", prefill(2048, torch.float32, False)),
    Workload("prefill H8 L2048 D64, f32 causal", prefill(2048, torch.float32, True)),
    Workload("prefill H8 L2048 D64, bf16", prefill(2048, torch.bfloat16, False)),
    *(
        Workload(f"u4 4096x4096, {activation} activations, {rows} rows", low_bit(rows, activation))
        for activation in ("float", "int8")
        for rows in (1, 16, 256)
    ),
    Workload("f32 linear 2048x2048 and SiLU, 1 row", compiled(1, product)),
    Workload("f32 linear 2048x2048 and SiLU, 256 rows", compiled(256, product)),
    Workload("RMS norm and f32 linear 2048x2048, 1 row", compiled(1, Normed)),
    Workload("RMS norm and f32 linear 2048x2048, 256 rows", compiled(256, Normed)),
)


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` takes small sizes."""
    date, here, effort = begin(effort, quick)
    with torch.inference_mode():
        quantities = tuple(_quantities(effort, quick, only))
    return Record("determinism", date, here, (), quantities, {})


def _quantities(effort: Effort, quick: bool, only: str) -> Iterator[Quantity]:
    for workload in WORKLOADS:
        if only in workload.name:
            note(workload.name)
            yield from measure(workload, effort, quick)


def measure(workload: Workload, effort: Effort, quick: bool) -> Iterator[Quantity]:
    """A level's time over the default's in the same round, the median over rounds."""
    call = workload.make(quick)
    sides: list[Callable[[], Any]] = [call]
    sides += [partial(call, **given) for given in LEVELS.values()]
    rounds = in_rounds(sides, effort)
    default = summary([first for first, *_ in rounds])
    for at, name in enumerate(LEVELS, 1):
        mine = summary([one[at] for one in rounds])
        ratio = statistics.median(one[at] / one[0] for one in rounds)
        details = {"seconds": mine.median, "default seconds": default.median}
        yield Quantity(f"{workload.name}: {name}", ratio, "times the default", NO_GOAL, details)


add_command(app, run, "What each level of determinism costs.", 6.0)

if __name__ == "__main__":
    app()
