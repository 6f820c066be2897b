"""Forgets what this process compiles for, when a bundle that says so comes into use or goes."""

from __future__ import annotations

import sys


def forget_target() -> None:
    """The next kernel asks again which target it is for. Modules that nobody loaded stay so."""
    for module, name in (
        ("tilewright.runtime.targets", "host_target"),
        ("tilewright.runtime.backends", "kernel_target"),
    ):
        function = getattr(sys.modules.get(module), name, None)
        if function is not None:
            function.cache_clear()
