"""What a suite can be measured on: the processor, a CUDA device, or a rehearsal of one."""

from __future__ import annotations

from tilewright import BenchError
from tilewright.bench.devices.cuda import Cuda, cuda_device
from tilewright.bench.devices.device import Device
from tilewright.bench.devices.host import Host
from tilewright.bench.devices.rehearsal import Rehearsal

__all__ = ["Cuda", "Device", "Host", "Rehearsal", "device"]


def device(name: str, dry: bool = False) -> Device:
    """``cpu``, ``cuda``, ``cuda:1`` …, or (``dry``) a rehearsal of the latter without one. Raises
    BenchError for another name, and where there is no such device."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise BenchError(f"there is no device {name!r}; there are cpu, cuda and cuda:NUMBER")
    if dry:
        if kind != "cuda":
            raise BenchError("only what needs a GPU is rehearsed: --dry goes with --device cuda")
        return Rehearsal()
    return Host() if kind == "cpu" else cuda_device(int(number or 0))
