"""The options of ``tilewright.compile``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``target``: the processor to compile for (None: this one). ``strict``: falling back to torch
    is an error. ``verify``: every kernel's result is compared with torch in float64 (slow)."""

    target: str | None = None
    strict: bool = False
    verify: bool = False
