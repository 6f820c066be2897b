"""What became of a program: its kernels, their channels and variants, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class VariantReport:
    """One compiled form of a kernel. ``seconds`` is what making or loading it took."""

    layout_class: str
    target: str
    backend: str
    units: tuple[int, ...]
    static_sizes: dict[str, int]
    scratch_bytes: int
    from_cache: bool
    seconds: float


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
            where = "from the disk cache" if v.from_cache else "compiled"
            fixed = ", ".join(f"{k} = {n}" for k, n in v.static_sizes.items())
            lines.append(
                f"  {v.layout_class} for {v.target} by {v.backend}: {where} in "
                f"{v.seconds * 1e3:.0f} ms, {v.scratch_bytes} bytes of scratch a worker"
                + (f", {fixed}" if fixed else "")
            )
        return "\n".join(lines)


@dataclass
class ProgramReport:
    """All kernels of a program, and the channels that the reorder rules made shallow."""

    name: str
    kernels: list[KernelReport]
    made_shallow: list[str]

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.kernels)} kernel(s)"]
        for channel in self.made_shallow:
            place = channel.split("  ")[0]
            lines.append(f"  was deep, made shallow by reordering: {place}")
        for kernel in self.kernels:
            lines += ["  " + line for line in str(kernel).split("\n")]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)
