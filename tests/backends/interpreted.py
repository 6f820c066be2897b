"""Running a test file in Triton's interpreter, which has to be a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_interpreted(name: str) -> None:
    """All tests of a file beside this one pass under ``TRITON_INTERPRET=1``."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / name)],
        cwd=HERE.parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
