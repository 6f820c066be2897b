"""What became of a program: its kernels, their channels and variants, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MachineReport:
    """Machine code of a kernel for a GPU: registers and spilled bytes of a thread, shared memory of
    a block, its warps, and how many blocks of what it reads are under way at once."""

    form: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return (
            f"{self.form}: {self.warps} warps, {self.stages} stages, {self.registers} registers, "
            f"{self.spilled_bytes} bytes spilled, {self.shared_bytes} bytes of shared memory"
        )


@dataclass
class VariantReport:
    """One compiled form of a kernel. ``seconds`` is what making or loading it took. ``schedule`` is
    a GPU kernel's in words, ``machine`` its machine code, each from its first call on."""

    layout_class: str
    target: str
    backend: str
    units: tuple[int, ...]
    static_sizes: dict[str, int]
    scratch_bytes: int
    from_cache: bool
    seconds: float
    schedule: str = ""
    machine: list[MachineReport] = field(default_factory=list)

    def __str__(self) -> str:
        where = "from the disk cache" if self.from_cache else "compiled"
        where = "compiled beforehand, loaded" if self.backend == "bundle" else where
        fixed = ", ".join(f"{k} = {n}" for k, n in self.static_sizes.items())
        memory = f", {self.scratch_bytes} bytes of scratch a worker" if not self.schedule else ""
        return (
            f"{self.layout_class} for {self.target} by {self.backend}: {where} in "
            f"{self.seconds * 1e3:.0f} ms{memory}"
            + (f", {fixed}" if fixed else "")
            + (f", {self.schedule}" if self.schedule else "")
        )


@dataclass
class KernelReport:
    """One kernel: its stream program, its channels, and what was deep before the rules ran."""

    name: str
    stream: str
    channels: list[str]
    runs_on: str = "kernel"
    variants: list[VariantReport] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"kernel {self.name} ({self.runs_on})"]
        deep = sum("deep" in c for c in self.channels)
        lines.append(f"  {len(self.channels)} channels, {deep} of them deep")
        lines += [f"    {channel}" for channel in self.channels]
        for v in self.variants:
            lines.append(f"  {v}")
            lines += [f"    {form}" for form in v.machine]
        return "\n".join(lines)


@dataclass
class ProgramReport:
    """All kernels of a program, and the channels that the reorder rules made shallow. ``choices``:
    for calls of which sizes a product was made again inside a kernel, and why."""

    name: str
    kernels: list[KernelReport]
    made_shallow: list[str]
    choices: list[str] = field(default_factory=list)
    level: str = ""  # of determinism, in words, if one was asked for

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.kernels)} kernel(s)"]
        lines += [f"  deterministic: {self.level}"] if self.level else []
        for channel in self.made_shallow:
            place = channel.split("  ")[0]
            lines.append(f"  was deep, made shallow by reordering: {place}")
        lines += [f"  {choice}" for choice in self.choices]
        for kernel in self.kernels:
            lines += ["  " + line for line in str(kernel).split("\n")]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)
