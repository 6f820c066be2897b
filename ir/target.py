"""What the compiler knows of a processor: vector width, registers, dot instructions, caches."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.errors import TargetError


@dataclass(frozen=True)
class Target:
    """A processor to make code for. ``lanes`` counts 32-bit lanes of a vector register."""

    name: str
    cpu: str  # LLVM's name
    features: str  # LLVM's feature string, "" for the CPU's own
    lanes: int
    registers: int
    folds_broadcast: bool  # an FMA can broadcast a scalar from memory itself
    bf16_dot: bool
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024

    @property
    def isa(self) -> str:
        """What a compiled object depends on."""
        return f"{self.cpu}|{self.features}|{self.lanes}|{self.bf16_dot}"


def from_features(name: str, cpu: str, features: str) -> Target:
    """A target from LLVM's CPU name and feature string (``+avx2,-avx512f,…``)."""
    have = {f[1:] for f in features.split(",") if f.startswith("+")}
    wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= have
    if wide:
        return Target(name, cpu, features, 16, 32, True, "avx512bf16" in have)
    if {"avx2", "fma"} <= have:
        return Target(name, cpu, features, 8, 16, False, False)
    return Target(name, cpu, features, 4, 16, False, False)


NAMED: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", "x86-64-v3", "", 8, 16, False, False),
        Target("x86-64-v4", "x86-64-v4", "", 16, 32, True, False),
        Target("haswell", "haswell", "", 8, 16, False, False),
        Target("znver3", "znver3", "", 8, 16, False, False),
        Target("znver4", "znver4", "", 16, 32, True, True),
        Target("znver5", "znver5", "", 16, 32, True, True, 48 * 1024),
        Target("skylake-avx512", "skylake-avx512", "", 16, 32, True, False),
        Target("sapphirerapids", "sapphirerapids", "", 16, 32, True, True, 48 * 1024, 2 << 20),
        Target("scalar", "generic", "", 1, 16, False, False),
    )
}


def named_target(name: str) -> Target:
    """The target of that name. Raises TargetError with the known names."""
    if name not in NAMED:
        known = ", ".join(["host", *NAMED])
        raise TargetError(f"unknown target {name!r}; known targets: {known}")
    return NAMED[name]
