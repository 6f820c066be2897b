"""The options of ``tilewright.compile``."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.runtime.determinism import Level, level


@dataclass(frozen=True)
class Options:
    """``target``: the processor to compile for (None: this one). ``strict``: falling back to torch
    is an error. ``verify``: a kernel's results are compared with torch in float64, True: at the
    first call of every class (verify.py), "always": at every call (slow). ``deterministic`` and
    ``reproducible``: what bits may not depend on (docs/determinism.md)."""

    target: str | None = None
    strict: bool = False
    verify: bool | str = False
    deterministic: str | None = None
    reproducible: bool = False

    @property
    def level(self) -> Level:
        """The level of determinism that is asked for, or in force. Raises SettingError."""
        return level(self.deterministic, self.reproducible or None)
