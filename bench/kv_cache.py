"""The figures of low-bit caches, as a command: ``python -m tilewright.bench.kv_cache``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import typer

import tilewright
from tilewright.bench.command import add_command, begin, note
from tilewright.bench.records import Comparison, Goal, Record
from tilewright.bench.timing import Effort, interleaved

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NO_GOAL = Goal()
MUST = 2.5
COPIES = 4  # of the cache, taken in turns, so that each call finds it in memory and not in a cache


@dataclass(frozen=True)
class Workload:
    """One attention over a cache: ``options`` are KVCache's, ``rows`` queries of each head."""

    k: str
    v: str
    rows: int = 1
    keys: int = 16384
    heads: int = 32
    groups: int = 8  # heads of keys and values
    head: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    held: bool = False  # to the figure

    @property
    def name(self) -> str:
        more = "".join(f", {key} {value}" for key, value in self.options.items())
        kind = "decode" if self.rows == 1 else f"{self.rows} queries"
        shape = f"{self.heads}/{self.groups} heads, {self.keys:,} keys, D{self.head}"
        return f"K {self.k} V {self.v}{more}: {kind} {shape}"

    def smaller(self) -> Workload:
        """The same with few keys, for trying things out."""
        return replace(self, keys=160, heads=4, groups=2, rows=min(self.rows, 20), held=False)


PER_CHANNEL = {"k_by": "channel", "tokens": 128}
WORKLOADS = (
    Workload("u8", "u4", held=True),
    Workload("u8", "u8"),
    Workload("u4", "u4"),
    Workload("u4", "u4", options=PER_CHANNEL),
    Workload("u6", "u3"),
    Workload("u2", "u2", options={"group": 32}),
    Workload("i8", "i4", keys=4096),
    Workload("u8", "u4", rows=256, keys=4096),
)


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    details: dict[str, Any] = {}
    with torch.inference_mode():
        rows = tuple(_comparisons(effort, quick, only, details))
    record = Record("kv_cache", date, here, rows, (), details)
    return record.without_goals() if quick else record


def _comparisons(
    effort: Effort, quick: bool, only: str, details: dict[str, Any]
) -> Iterator[Comparison]:
    for given in WORKLOADS:
        workload = given.smaller() if quick else given
        if only in workload.name:
            note(workload.name)
            yield compare(workload, effort, details)


def compare(workload: Workload, effort: Effort, details: dict[str, Any]) -> Comparison:
    """A low-bit cache beside the numbers it stands for in f32; both ours."""
    q, caches, k, v = make_inputs(workload)
    turns = itertools.cycle(caches)
    wide: list[tuple[torch.Tensor, torch.Tensor]] = [(k, v)]
    small = caches[0].keys.nbytes + caches[0].values.nbytes
    large = k.nbytes + v.nbytes
    if large < 1 << 27:  # may stay in a cache
        wide += [(k.clone(), v.clone()) for _ in range(COPIES - 1)]
    others = itertools.cycle(wide)

    def ours() -> Any:
        return tilewright.attention(q, next(turns), enable_gqa=True)

    def theirs() -> Any:
        return tilewright.attention(q, *next(others), enable_gqa=True)

    errors = _errors(q, k, v, (ours, theirs))
    times = interleaved(ours, theirs, effort)
    details[workload.name] = {"bytes": small, "f32 bytes": large, "bytes ratio": large / small}
    goal = Goal(MUST, round(large / small, 2)) if workload.held else NO_GOAL
    return Comparison(
        workload.name,
        "our f32 cache",
        *times,
        goal=goal,
        our_error=errors[0],
        their_error=errors[1],
    )


def make_inputs(
    workload: Workload,
) -> tuple[torch.Tensor, list[tilewright.KVCache], torch.Tensor, torch.Tensor]:
    """Queries, the cache several times over, and the keys and values that its codes stand for."""
    generator = torch.Generator().manual_seed(0)
    w = workload

    def normal(heads: int, length: int) -> torch.Tensor:
        return torch.randn(1, heads, length, w.head, generator=generator)

    q, k, v = normal(w.heads, w.rows), normal(w.groups, w.keys), normal(w.groups, w.keys)
    caches = []
    for _ in range(COPIES):
        cache = tilewright.KVCache(1, w.groups, w.head, k=w.k, v=w.v, capacity=w.keys, **w.options)
        caches.append(cache.append(k, v))
    return q, caches, *caches[0].dequantize()


def _errors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sides: tuple[Callable[[], Any], ...]
) -> list[float]:
    """The largest error of each side against float64 on the numbers that the codes stand for."""
    errors = [0.0 for _ in sides]
    results = [side() for side in sides]
    share = q.shape[1] // k.shape[1]
    for head in range(k.shape[1]):  # one at a time: in float64 all of them are large
        some = slice(head * share, (head + 1) * share)
        exact = torch.nn.functional.scaled_dot_product_attention(
            q[:, some].double(),
            k[:, head, None].double().expand(-1, share, -1, -1),
            v[:, head, None].double().expand(-1, share, -1, -1),
        )
        for at, result in enumerate(results):
            errors[at] = max(errors[at], float((result[:, some] - exact).abs().max()))
    return errors


add_command(
    app, run, "Measures attention over low-bit caches against the same over a cache in f32.", 6.0
)

if __name__ == "__main__":
    app()
