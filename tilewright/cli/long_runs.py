"""What commands share that work for as long as they are told."""

from __future__ import annotations

import re

from tilewright.ir.errors import SettingError

INTERRUPTED = 130  # exit code of a process ended by Ctrl-C
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def duration(option: str, text: str) -> float:
    """Seconds of a text such as 90, 60s, 10m or 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise SettingError(f"{option} {text!r}: a time such as 60s, 10m or 1h is expected")
    return float(found[1]) * _UNITS[found[2]]
