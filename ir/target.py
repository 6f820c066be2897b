"""What the compiler knows of a processor: vector width, registers, dot instructions, caches."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    named: str = ""  # whose instructions code of this width may name: avx2, avx512, "" for none
    fused: bool = True  # multiply-adds are instructions; elsewhere they would be calls of libm
    halves: bool = True  # f16 becomes f32 and back by instructions
    triple: str = ""  # LLVM's name of another kind of machine, "" for this one's

    @property
    def signed_bytes(self) -> bool:
        """Whether the 8-bit dot product adds up pairs in 16 bits, which overflows on unsigned bytes
        of eight bits."""
        return self.int8_dot == "maddubs"

    @property
    def isa(self) -> str:
        """What a compiled object depends on."""
        parts = self.cpu, self.features, self.lanes, self.bf16_dot, self.int8_dot, self.byte_table
        return "|".join(map(str, (*parts, self.named, self.fused, self.halves, self.triple)))

    def with_lanes(self, lanes: int) -> Target:
        """The same processor with vectors of 4, 8 or 16 lanes. LLVM makes several registers of a
        wider vector, and a part of one of a narrower. Instructions that exist for another width
        only are left out. Raises TargetError for other widths and for what has no vectors."""
        if lanes not in WIDTHS or self.lanes not in WIDTHS:
            known = ", ".join(map(str, WIDTHS))
            raise TargetError(
                f"{self.name}:{lanes}: vectors have {known} lanes, and {self.name} has {self.lanes}"
            )
        if lanes == self.lanes:
            return self
        narrow = lanes == 8 and self.named == "avx512"  # AVX-512 has AVX2's instructions, too
        return replace(
            self,
            name=f"{self.name}:{lanes}",
            lanes=lanes,
            registers=max(_FEWEST, self.registers * self.lanes // lanes)
            if lanes > self.lanes
            else self.registers,
            bf16_dot=False,
            int8_dot="maddubs" if narrow else "",
            byte_table=16 if narrow else 0,
            named="avx2" if narrow else "",
        )


WIDTHS = (4, 8, 16)  # 32-bit lanes of a vector that programs can be made for
_FEWEST = 8  # registers that a schedule can count on; what is beyond lies in memory


def from_features(name: str, cpu: str, features: str) -> Target:
    """A target from LLVM's CPU name and feature string (``+avx2,-avx512f,…``)."""
    have = {f[1:] for f in features.split(",") if f.startswith("+")}
    wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= have
    if wide:
        dot = "vnni" if "avx512vnni" in have else "maddubs"
        table = 64 if "avx512vbmi" in have else 16
        return _avx512(name, cpu, features, bf16_dot="avx512bf16" in have, dot=dot, table=table)
    if {"avx2", "fma"} <= have:
        return _avx2(name, cpu, features, dot="vnni" if "avxvnni" in have else "maddubs")
    fused, halves = bool(have & {"fma", "neon"}), bool(have & {"f16c", "neon"})
    return _narrow(name, cpu, features, fused=fused, halves=halves)


def _avx512(
    name: str,
    cpu: str = "",
    features: str = "",
    *,
    bf16_dot: bool = False,
    dot: str = "maddubs",
    table: int = 16,
    **more: int,
) -> Target:
    made = Target(name, cpu or name, features, 16, 32, True, bf16_dot, dot, table, named="avx512")
    return replace(made, **more)  # type: ignore[arg-type]  # sizes of caches


def _avx2(name: str, cpu: str = "", features: str = "", dot: str = "maddubs") -> Target:
    return Target(name, cpu or name, features, 8, 16, False, False, dot, named="avx2")


def _narrow(
    name: str, cpu: str = "", features: str = "", *, fused: bool, halves: bool, triple: str = ""
) -> Target:
    """Vectors of 128 bits, of which LLVM chooses all instructions."""
    registers = 32 if triple.startswith("aarch64") or "+neon" in features.split(",") else 16
    made = Target(name, cpu or name, features, 4, registers, False, False, byte_table=0)
    return replace(made, fused=fused, halves=halves, triple=triple)


_ARM = "aarch64-unknown-linux-gnu"
NAMED: dict[str, Target] = {
    t.name: t
    for t in (
        _narrow("x86-64-v2", fused=False, halves=False),
        _avx2("x86-64-v3"),
        _avx512("x86-64-v4"),
        _avx2("haswell"),
        _avx2("znver3"),
        _avx512("skylake-avx512"),
        _avx512("znver4", bf16_dot=True, dot="vnni", table=64),
        _avx512("znver5", bf16_dot=True, dot="vnni", table=64, l1_bytes=48 * 1024),
        _avx512(
            "sapphirerapids",
            bf16_dot=True,
            dot="vnni",
            table=64,
            l1_bytes=48 * 1024,
            l2_bytes=2 << 20,
        ),
        _narrow("aarch64", "generic", "+neon", fused=True, halves=True, triple=_ARM),
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
    """The target of that name; ``NAME:LANES`` is one with vectors of another width. Raises
    TargetError with the known names."""
    plain, colon, lanes = name.partition(":")
    found = NAMED.get(plain) or GPUS.get(plain)
    if found is None:
        known = ", ".join(["host", *NAMED, *GPUS])
        raise TargetError(f"unknown target {name!r}; known targets: {known}")
    return found.with_lanes(lanes_in(name, lanes)) if colon else found


def lanes_in(name: str, lanes: str) -> int:
    """The number behind the colon of a target's name. Raises TargetError."""
    if not (lanes.isascii() and lanes.isdigit() and len(lanes) < 4):
        raise TargetError(
            f"target {name!r}: {lanes!r} is no number of lanes, such as in x86-64-v3:16"
        )
    return int(lanes)
