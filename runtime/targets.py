"""The target of this machine, and targets by name."""

from __future__ import annotations

from functools import cache

import torch

from tilewright.ir.errors import TargetError
from tilewright.ir.target import GPUS, NAMED, Target, from_features, lanes_in, named_target
from tilewright.runtime.bundle.active import bundle_in_use
from tilewright.runtime.gpu_targets import BY_TRITON, GPU_BACKENDS, device_target
from tilewright.runtime.native import host_cpu


@cache
def host_target() -> Target:
    """This machine: LLVM's name of the CPU and exactly the features it reports; or what the bundle
    in use is for, which fits this machine."""
    bundle = bundle_in_use()
    if bundle is not None:
        return bundle.target
    cpu, features = host_cpu()
    return from_features("host", cpu, features)


def resolve_target(name: str | None) -> Target:
    """A target by name; None or "host" is this machine, ``NAME:LANES`` one with vectors of another
    width. Raises TargetError with the known names."""
    plain, colon, lanes = str(name or "host").partition(":")
    if plain != "host":
        return named_target(str(name))
    return host_target().with_lanes(lanes_in(str(name), lanes)) if colon else host_target()


def program_target(name: str | None, backend: str) -> Target:
    """The target of a program for a back end. Raises TargetError where there is none."""
    if backend not in GPU_BACKENDS:
        found = resolve_target(name)
        if found.gpu:
            made_by = " or ".join(f"backend={b!r}" for b in GPU_BACKENDS)
            raise TargetError(f"{found.name} is a GPU: its kernels are made by {made_by}")
        return found
    known = [t.name for t in GPUS.values() if backend in BY_TRITON or t.gpu == "cuda"]
    if name is None:
        if backend == "cuda-host":
            return named_target("cuda-sm90")
        if not torch.cuda.is_available():
            raise TargetError(
                f"backend={backend!r} and no GPU that torch can reach: name a target "
                f"({', '.join(known)}), or leave the back end out to run on the CPU"
            )
        return device_target(torch.cuda.current_device())
    found = resolve_target(name)
    if found.name not in known:
        raise TargetError(f"backend={backend!r} makes kernels for {', '.join(known)}, not {name}")
    return found


_V2 = {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16"}
_V3 = _V2 | {"avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def needed_features(target: Target) -> set[str]:
    """Instruction sets that code for a target uses: what its CPU has, of whatever width."""
    plain = NAMED.get(target.name.partition(":")[0], target)
    if plain.name == "scalar" or plain.triple:
        return set()
    wide = {4: _V2, 8: _V3, 16: _V4}.get(plain.lanes, set())
    wide = wide | {"avx512bf16"} if target.bf16_dot else set(wide)
    if target.int8_dot == "vnni":
        wide |= {"avx512vnni" if target.lanes == 16 else "avxvnni"}
    return wide | {"avx512vbmi"} if target.byte_table == 64 else wide


def require_runnable(target: Target) -> None:
    """Raises TargetError if this machine is of another kind than the target's, or lacks an
    instruction set that its code uses."""
    bundle = bundle_in_use()
    if target.name.partition(":")[0] == "host":
        return
    if bundle is not None and bundle.target.isa == target.isa:
        return
    missing = [f"a processor of {target.triple}"] if target.triple else []
    if not missing:
        have = {f[1:] for f in host_cpu()[1].split(",") if f.startswith("+")}
        missing = sorted(needed_features(target) - have)
    if missing:
        raise TargetError(
            f"this machine cannot run code for {target.name}: it lacks {', '.join(missing)} "
            "(`tilewright compile --emit asm --target` works without running it)"
        )
