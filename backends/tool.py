"""Compilers and linkers that are programs of their own: run, and what became of them in words."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. OSError if it cannot be started."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def why_failed(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed has said, and how it ended if it said nothing or was killed."""
    words = "\n".join(x for x in (done.stderr.strip(), done.stdout.strip()) if x)
    if done.returncode >= 0:
        return words or f"it ended with exit code {done.returncode} and said nothing"
    try:
        name = signal.Signals(-done.returncode).name
    except ValueError:
        name = f"signal {-done.returncode}"
    often = ", as when memory runs out" if name == "SIGKILL" else ""
    ended = f"it was ended by {name}{often}; nothing of it was kept: call again"
    return f"{ended}\n{words}" if words else ended
