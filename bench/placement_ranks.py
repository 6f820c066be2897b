"""Bytes that expert-parallel execution really sends: processes on this machine, joined by gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tilewright.placement import (
    CoherentExperts,
    ExchangeExperts,
    LocalExperts,
    Placement,
    Trace,
    Traffic,
    Wire,
)

HIDDEN, INNER = 64, 8  # rows of 256 bytes; the experts' own work is not what is looked at


def payload_bytes(trace: Trace, placement: Placement) -> dict[str, int]:
    """Bytes of rows that all ranks together sent for the trace, by mode: "exchange", "coherent"."""
    ranks = placement.topology.gpus
    multiprocessing.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            _rank, args=(folder, trace, placement), nprocs=ranks, start_method="forkserver"
        )
        files = [Path(folder) / f"{rank}.pt" for rank in range(ranks)]
        found = [torch.load(file, weights_only=True) for file in files]
    return {mode: sum(each[mode] for each in found) for mode in found[0]}


def _rank(rank: int, folder: str, trace: Trace, placement: Placement) -> None:
    torch.set_num_threads(1)
    ranks = placement.topology.gpus
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(trace.tokens, HIDDEN, generator=draw)
    ids = torch.from_numpy(trace.ids).long()
    weights = torch.full(ids.shape, 1 / trace.choices)
    count = len(placement.local(0, rank))
    local = LocalExperts(
        torch.randn(count, 2 * INNER, HIDDEN, generator=draw) / HIDDEN,
        torch.randn(count, HIDDEN, INNER, generator=draw),
    )
    with torch.no_grad():
        found = {
            "exchange": _exchange(x, ids, weights, placement, local),
            "coherent": _coherent(x, ids, weights, placement, local),
        }
    torch.save({mode: traffic.payload for mode, traffic in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _exchange(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, placement: Placement, local: Any
) -> Traffic:
    wire = Wire()
    starts = [len(x) * rank // wire.size for rank in range(wire.size + 1)]
    mine = slice(starts[wire.rank], starts[wire.rank + 1])
    rows = x[mine]
    for layer in range(placement.layers):
        experts = ExchangeExperts(placement.devices[layer].tolist(), local, wire)
        rows = rows + experts(rows, ids[mine, layer], weights[mine, layer])
    return wire.traffic


def _coherent(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, placement: Placement, local: Any
) -> Traffic:
    wire = Wire()
    layers = [
        CoherentExperts(placement.devices[layer].tolist(), local, wire)
        for layer in range(placement.layers)
    ]
    held = layers[0].enter(x, ids[:, 0])
    for layer, experts in enumerate(layers):
        held, y = experts(held, ids[held.tokens, layer], weights[held.tokens, layer])
        held = held.with_rows(held.rows + y)
    return wire.traffic
