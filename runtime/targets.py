"""The target of this machine, and targets by name."""

from __future__ import annotations

from functools import cache

from tilewright.ir.target import Target, from_features, named_target
from tilewright.runtime.native import host_cpu


@cache
def host_target() -> Target:
    """This machine: LLVM's name of the CPU and exactly the features it reports."""
    cpu, features = host_cpu()
    return from_features("host", cpu, features)


def resolve_target(name: str | None) -> Target:
    """A target by name; None or "host" is this machine. Raises TargetError with the known names."""
    return host_target() if name in (None, "host") else named_target(str(name))
