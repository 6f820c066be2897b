"""GPUs as targets, and the schedules that measurements try in place of the default ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from tilewright.ir.errors import BackendMissingError, TargetError
from tilewright.ir.target import GPUS, Target, named_target
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

_FORCED: ContextVar[BlockSchedule | None] = ContextVar("tilewright_gpu_schedule", default=None)
# "gpu": for each kernel the faster of the next two; the last on CPU tensors, by emulation
GPU_BACKENDS = ("gpu", "triton", "cuda", "cuda-host")
BY_TRITON = ("gpu", "triton")  # whose kernels are Triton's where no other is faster
LEAST = 80  # compute capability 8.0


def forced_schedule() -> BlockSchedule | None:
    """The schedule that kernels are made with instead of their own choice."""
    return _FORCED.get()


@contextmanager
def using_schedule(
    rows: int, inner: int, warps: int, stages: int, bulk: bool = False
) -> Iterator[None]:
    """GPU kernels called inside are made with these blocks: for measurements and tuning. Under
    ``TRITON_INTERPRET=1`` CPU tensors get GPU kernels inside, too, run by Triton's interpreter."""
    from tilewright.backends.triton.build import interpreting

    at_once = 8 if warps == 1 else 2
    token = _FORCED.set(BlockSchedule(rows, inner, warps, stages, bulk, at_once))
    before, pretended.on = pretended.on, interpreting()
    try:
        yield
    finally:
        pretended.on = before
        _FORCED.reset(token)


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Programs called inside with a GPU's tensors run kernels of this back end: ``triton``,
    ``cuda``, or ``gpu``, the default: of the faster one for each kernel. ``cuda-host``: programs
    called with CPU tensors run CUDA kernels, thread by thread in the host's emulation, which
    refuses races and accesses out of bounds.

    Raises BackendMissingError for another name.
    """
    if name not in GPU_BACKENDS:
        raise BackendMissingError(
            f"unknown GPU back end {name!r}; known: {', '.join(GPU_BACKENDS)}"
        )
    before, pretended.backend = pretended.backend, name
    try:
        yield
    finally:
        pretended.backend = before


class _Pretended:
    """Whether CPU tensors stand for a GPU's (``on``: in Triton's interpreter), and which back end
    makes a GPU's kernels."""

    on = False
    backend = "gpu"


pretended = _Pretended()


def chosen_by_caller() -> tuple[BlockSchedule | None, str]:
    """What ``using_schedule`` and ``using_backend`` say around a call: its kernels depend on it."""
    return _FORCED.get(), pretended.backend


@cache
def device_target(index: int | None) -> Target:
    """The target of a CUDA or ROCm device; None stands for Triton's interpreter. Raises TargetError
    for one that is too old."""
    if index is None:
        return named_target("cuda-sm90")
    if torch.version.hip is not None:
        return named_target("hip-gfx942")
    major, minor = torch.cuda.get_device_capability(index)
    capability = major * 10 + minor
    if capability < LEAST:
        name = torch.cuda.get_device_name(index)
        raise TargetError(
            f"{name} has compute capability {major}.{minor}; kernels for GPUs need 8.0 or newer: "
            "move the tensors to the CPU (x.cpu()), or stay with torch's own operators"
        )
    # 12.x has 8.x's shared memory and matrix instructions of warps, not those of 9.0 and 10.x
    like = LEAST if capability >= 120 else capability
    fits = [t for t in GPUS.values() if t.gpu == "cuda" and int(t.cpu[3:]) <= like]
    return max(fits, key=lambda t: int(t.cpu[3:]))
