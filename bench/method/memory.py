"""How much memory a call takes: the process's own high-water mark, which Linux lets one reset."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Growth:
    """Bytes: at the highest while a call ran, beyond before; and what of it stayed."""

    peak: int
    kept: int


def growth(call: Callable[[], object]) -> Growth | None:
    """What the process grew by. None where the system does not say; the call is made anyway."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")  # forgets the highest mark so far
        before = resident()
    except (OSError, LookupError):
        call()
        return None
    kept = call()
    peak, after = _status("VmHWM"), resident()
    del kept
    return Growth(max(0, peak - before), max(0, after - before))


def resident() -> int:
    """Bytes of the process in memory. Raises LookupError or OSError where nobody says."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """Bytes of one line of /proc/self/status, such as ``VmRSS:    123 kB``."""
    text = (_PROC / "status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
