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
    int8_dot: str = ""  # which instruction adds up four products of bytes: vnni, maddubs, none
    byte_table: int = 16  # bytes that one shuffle chooses from
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024
    gpu: str = ""  # Triton's name of a GPU's kind (cuda, hip), "" for a CPU

    @property
    def signed_bytes(self) -> bool:
        """Whether the 8-bit dot product adds up pairs in 16 bits, which overflows on unsigned bytes
        of eight bits."""
        return self.int8_dot == "maddubs"

    @property
    def isa(self) -> str:
        """What a compiled object depends on."""
        parts = self.cpu, self.features, self.lanes, self.bf16_dot, self.int8_dot, self.byte_table
        return "|".join(map(str, parts))


def from_features(name: str, cpu: str, features: str) -> Target:
    """A target from LLVM's CPU name and feature string (``+avx2,-avx512f,…``)."""
    have = {f[1:] for f in features.split(",") if f.startswith("+")}
    wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= have
    if wide:
        dot = "vnni" if "avx512vnni" in have else "maddubs"
        table = 64 if "avx512vbmi" in have else 16
        return Target(name, cpu, features, 16, 32, True, "avx512bf16" in have, dot, table)
    if {"avx2", "fma"} <= have:
        dot = "vnni" if "avxvnni" in have else "maddubs"
        return Target(name, cpu, features, 8, 16, False, False, dot)
    return Target(name, cpu, features, 4, 16, False, False)


NAMED: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", "x86-64-v3", "", 8, 16, False, False, "maddubs"),
        Target("x86-64-v4", "x86-64-v4", "", 16, 32, True, False, "maddubs"),
        Target("haswell", "haswell", "", 8, 16, False, False, "maddubs"),
        Target("znver3", "znver3", "", 8, 16, False, False, "maddubs"),
        Target("znver4", "znver4", "", 16, 32, True, True, "vnni", 64),
        Target("znver5", "znver5", "", 16, 32, True, True, "vnni", 64, 48 * 1024),
        Target("skylake-avx512", "skylake-avx512", "", 16, 32, True, False, "maddubs"),
        Target(
            "sapphirerapids",
            "sapphirerapids",
            "",
            16,
            32,
            True,
            True,
            "vnni",
            64,
            48 * 1024,
            2 << 20,
        ),
        Target("scalar", "generic", "", 1, 16, False, False, byte_table=64),
    )
}
# Programs for GPUs hold whole blocks in one lane, which the back end shares out among threads.
GPUS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("cuda-sm80", "sm_80", "", 1, 255, False, False, gpu="cuda"),
        Target("cuda-sm90", "sm_90", "", 1, 255, False, False, gpu="cuda"),
        Target("cuda-sm100", "sm_100", "", 1, 255, False, False, gpu="cuda"),
        Target("hip-gfx942", "gfx942", "", 1, 512, False, False, gpu="hip"),
    )
}


def named_target(name: str) -> Target:
    """The target of that name. Raises TargetError with the known names."""
    found = NAMED.get(name) or GPUS.get(name)
    if found is None:
        known = ", ".join(["host", *NAMED, *GPUS])
        raise TargetError(f"unknown target {name!r}; known targets: {known}")
    return found
