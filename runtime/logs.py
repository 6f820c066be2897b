"""Loggers of the package, and what TILEWRIGHT_LOG does. Nothing is logged in a steady call.

What happened is logged; what a user should change is a warning of ``warnings``, with a category of
ours (docs/environment.md has the table).
"""

from __future__ import annotations

import logging

from tilewright.ir.errors import SettingError
from tilewright.runtime.settings import log_level

ROOT = logging.getLogger("tilewright")
KERNELS = logging.getLogger("tilewright.kernels")  # INFO: forms of kernels, as they are made
PROGRAMS = logging.getLogger("tilewright.programs")  # DEBUG: programs and their kernels
CAPTURE = logging.getLogger("tilewright.capture")  # INFO: graphs of torch.compile; DEBUG: the rest
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def start() -> None:
    """What importing the package does: silence unless the program asks for more, and a handler on
    stderr if TILEWRIGHT_LOG does. A wrong value is reported where settings are first read."""
    ROOT.addHandler(logging.NullHandler())
    try:
        level = log_level()
    except SettingError:
        return
    if level:
        to_stderr(level)


def to_stderr(level: str) -> logging.Handler:
    """Write records of at least this level (``settings.LEVELS``) to stderr, from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.setLevel(level.upper())
    ROOT.addHandler(handler)
    ROOT.setLevel(min(ROOT.level or logging.CRITICAL, handler.level))
    return handler
