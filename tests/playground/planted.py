"""What children do in place of compiling: whatever a compile might do that it must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def misbehave(text: str) -> bytes:
    """The program's first word says how; ``fine`` and anything else answers."""
    word, _, rest = json.loads(text)["program"].partition(" ")
    if word == "hang":
        if rest:
            Path(rest).write_text(f"{os.getpid()}\n", encoding="utf-8")
        while True:
            time.sleep(0.01)
    if word == "hang-with-a-child":
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(rest).write_text(f"{os.getpid()} {sleeper.pid}\n", encoding="utf-8")
        sleeper.wait()
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "quit":
        os._exit(3)
    if word == "memory":
        kept = []
        while True:
            kept.append(bytearray(64 << 20))
    if word == "much":
        return b'"' + b"x" * (8 << 20) + b'"'
    if word == "count":
        path = Path(rest)
        path.write_text(path.read_text(encoding="utf-8") + "x", encoding="utf-8")
    return b'{"fine":true}'
