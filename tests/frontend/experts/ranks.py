"""What the ranks of the expert-parallel tests run: one process each, gloo, small sizes.

A process group is started once for many cases; each rank saves what it found, and the tests look at
that. Everything random comes from a case's seed, so all processes draw the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tilewright.frontend.experts.parallel import (
    CoherentExperts,
    ExchangeExperts,
    LocalExperts,
    gather_tokens,
    plain_experts,
)
from tilewright.frontend.experts.wire import Wire
from tilewright.ir.errors import TilewrightError


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / x.float().pow(2).mean(-1, keepdim=True).add(1e-6).sqrt().to(x.dtype)


@dataclass(frozen=True)
class Case:
    """A stack of layers y = x + experts(norm(x)), its tokens, and where its experts are."""

    seed: int
    ranks: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=draw))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw).to(self.dtype)

        each, layers = number(1, 3), number(1, 3)
        experts = each * self.ranks
        k = number(1, min(4, experts)) if self.seed % 3 else 1
        sizes = [number(0, 9) for _ in range(self.ranks)]
        sizes[number(0, self.ranks - 1)] = 0  # a rank without tokens
        hidden, inner, tokens = 6, 5, sum(sizes)
        # Some experts are used by nobody.
        popular = torch.randperm(experts, generator=draw)[: max(k, experts - 1)]
        scores = torch.rand(tokens, layers, len(popular), generator=draw)
        slots = torch.arange(self.ranks).repeat_interleave(each)
        values: dict[str, Any] = {
            "sizes": sizes,
            "x": normal(tokens, hidden),
            "ids": popular[scores.argsort(-1)[..., :k]],
            "weights": torch.rand(tokens, layers, k, generator=draw),
            "devices": [
                slots[torch.randperm(experts, generator=draw)].tolist() for _ in range(layers)
            ],
            "experts": [
                LocalExperts(
                    normal(experts, 2 * inner, hidden) / 3, normal(experts, hidden, inner) / 3
                )
                for _ in range(layers)
            ],
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    sizes: list[int] = None  # type: ignore[assignment]  # all drawn above
    x: torch.Tensor = None  # type: ignore[assignment]
    ids: torch.Tensor = None  # type: ignore[assignment]
    weights: torch.Tensor = None  # type: ignore[assignment]
    devices: list[list[int]] = None  # type: ignore[assignment]
    experts: list[LocalExperts] = None  # type: ignore[assignment]

    def alone(self) -> torch.Tensor:
        """[T, H] in one process."""
        x = self.x
        for layer, experts in enumerate(self.experts):
            x = x + plain_experts(norm(x), self.ids[:, layer], self.weights[:, layer], experts)
        return x

    def local(self, layer: int, rank: int) -> tuple[list[int], LocalExperts]:
        devices = self.devices[layer]
        return devices, self.experts[layer].pick(
            [e for e, device in enumerate(devices) if device == rank]
        )

    def exchanged(self, rank: int) -> tuple[torch.Tensor, Wire]:
        """This rank's tokens [T_r, H] through both all-to-alls of each layer."""
        wire = Wire()
        start = sum(self.sizes[:rank])
        mine = slice(start, start + self.sizes[rank])
        x = self.x[mine]
        for layer in range(len(self.devices)):
            experts = ExchangeExperts(*self.local(layer, rank), wire)
            x = x + experts(norm(x), self.ids[mine, layer], self.weights[mine, layer])
        return x, wire

    def coherent(self, rank: int) -> tuple[torch.Tensor, Wire]:
        """All tokens [T, H], gathered at the end; all ranks hold the input."""
        wire = Wire()
        layers = [CoherentExperts(*self.local(at, rank), wire) for at in range(len(self.devices))]
        held = layers[0].enter(self.x, self.ids[:, 0])
        for at, experts in enumerate(layers):
            ids, weights = self.ids[held.tokens, at], self.weights[held.tokens, at]
            held, y = experts(held, ids, weights, norm)
            held = held.with_rows(held.rows + y)
        return gather_tokens(held, len(self.x), wire), wire


def cases(ranks: int) -> list[Case]:
    return [*(Case(seed, ranks) for seed in range(8)), Case(1, ranks, torch.bfloat16)]


def run_cases(rank: int, ranks: int) -> dict[str, Any]:
    """Both modes of every case, twice; and calls that one rank, or all, get wrong."""
    found: dict[str, Any] = {"cases": []}
    for case in cases(ranks):
        (x, wire), (y, other) = case.exchanged(rank), case.coherent(rank)
        again = torch.equal(case.exchanged(rank)[0], x) and torch.equal(case.coherent(rank)[0], y)
        steps = [wire.traffic, other.traffic]
        found["cases"].append({"exchange": x, "coherent": y, "again": again, "steps": steps})
    case = Case(1, ranks)
    experts = ExchangeExperts(*case.local(0, rank), Wire())
    x, ids, weights = torch.ones(2, 6), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    found["out of range"] = refusal(lambda: experts(x, ids + (99 if rank == 1 else 0), weights))
    width = 6 if rank == 1 else 5
    found["other sizes"] = refusal(lambda: experts(torch.ones(2, width), ids, weights))
    found["after"] = experts(x, ids, weights)  # the group is still usable
    return found


def run_cuda(rank: int, ranks: int) -> dict[str, Any]:
    """Two choices of each token, on a GPU."""
    torch.manual_seed(0)
    everything = LocalExperts(
        torch.randn(4, 10, 6, device="cuda"), torch.randn(4, 6, 5, device="cuda")
    )
    x, weights = torch.randn(7, 6, device="cuda"), torch.rand(7, 2, device="cuda")
    ids = torch.rand(7, 4, device="cuda").argsort(1)[:, :2]
    wire = Wire()
    moves = CoherentExperts([0] * 4, everything, wire)
    held, y = moves(moves.enter(x, ids), ids, weights)
    return {
        "alone": plain_experts(x, ids, weights, everything).cpu(),
        "exchange": ExchangeExperts([0] * 4, everything, wire)(x, ids, weights).cpu(),
        "coherent": gather_tokens(held.with_rows(y), 7, wire).cpu(),
    }


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except TilewrightError as error:
        return error.message
    return "nothing was refused"


def _rank(
    rank: int, ranks: int, folder: str, work: Callable[[int, int], Any], backend: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    with torch.no_grad():
        torch.save(work(rank, ranks), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run_ranks(
    folder: Path, ranks: int, work: Callable[[int, int], Any], backend: str = "gloo"
) -> list[Any]:
    """What ``work(rank, ranks)`` gave in each of so many processes.

    They are forked off a server that has imported torch and this module, once for all of them.
    """
    multiprocessing.set_forkserver_preload([__name__])
    arguments = (ranks, str(folder), work, backend)
    start_processes(  # type: ignore[no-untyped-call]
        _rank, args=arguments, nprocs=ranks, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
