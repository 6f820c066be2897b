"""What the machine can do at most, measured in the same run, and the least time that follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tilewright.bench.method.clock import timed
from tilewright.bench.method.peak import measure_peaks
from tilewright.bench.method.statistics import Positive
from tilewright.bench.roofline import Ceilings, Work

MIB = 1 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CACHE_GUESS = 32 * MIB


@dataclass(frozen=True)
class Roofs:
    """Bytes per second from memory and from the last cache, whose bytes are known; operations per
    second by the kind of arithmetic."""

    memory: Positive
    cache: Positive
    cache_bytes: int
    peaks: dict[str, Positive]

    def ceilings(self, arithmetic: str, nbytes: float, warm: bool) -> Ceilings:
        """What bounds a problem: data that stays in the last cache comes from there when warm."""
        cached = warm and nbytes <= self.cache_bytes / 2
        return Ceilings(self.cache if cached else self.memory, self.peak(arithmetic))

    def peak(self, arithmetic: str) -> float:
        """Of f32 where the processor has no instruction for the kind: it widens first."""
        return self.peaks.get(arithmetic, self.peaks.get("f32", float("inf")))

    def floor(self, work: Work, arithmetic: str, warm: bool) -> tuple[float, str]:
        """The least seconds, and what they come from: ``bytes`` or ``operations``."""
        ceilings = self.ceilings(arithmetic, work.bytes, warm)
        return work.seconds(ceilings), work.bound(ceilings)


def measure_roofs(threads: int, quick: bool = False) -> Roofs:
    """Measures them; ``quick`` takes sizes too small to mean anything."""
    cache = last_cache()
    large, small = (4 * MIB, MIB // 4) if quick else (max(512 * MIB, 4 * cache), cache // 4)
    return Roofs(
        memory=read_speed(large, 1, 3 if quick else 9),
        cache=max(read_speed(small, max(1, 32 * MIB // small), 3), read_speed(large, 1, 1)),
        cache_bytes=cache,
        peaks=measure_peaks(threads, 0.001 if quick else 0.02, 2 if quick else 9),
    )


def read_speed(nbytes: int, calls: int, rounds: int) -> float:
    """Bytes per second at which torch's sum reads so much, again and again: the best of rounds."""
    memory = torch.ones(nbytes // 8, dtype=torch.int64)
    memory.sum()
    return nbytes / min(timed(memory.sum, calls) for _ in range(rounds))


def last_cache() -> int:
    """Bytes of the largest cache that the system tells of; a guess where it tells of none."""
    units = {"K": 1 << 10, "M": MIB}
    texts = [path.read_text(encoding="ascii").strip() for path in _CACHES.glob("index*/size")]
    sizes = [int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units]
    return max(sizes, default=CACHE_GUESS)
