"""What children do in place of compiling: whatever a compile might do that it must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tilewright.playground.children import as_json


def misbehave(text: str) -> bytes:
    """The program's first word says how; ``fine`` and anything else answers."""
    word, _, rest = json.loads(text)["program"].partition(" ")
    _end(word, rest)
    if word == "hang":
        if rest:
            Path(rest).write_text(f"{os.getpid()}\n", encoding="utf-8")
        while True:
            time.sleep(0.01)
    if word == "hang-with-a-child":
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(rest).write_text(f"{os.getpid()} {sleeper.pid}\n", encoding="utf-8")
        sleeper.wait()
    if word == "alarm":
        default = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        return json.dumps({"default": default, "left": signal.alarm(0)}).encode()
    if word == "memory":
        kept = []
        while True:
            kept.append(bytearray(64 << 20))
    if word == "much":
        return b'"' + b"x" * (8 << 20) + b'"'
    if word == "count":
        path = Path(rest)
        path.write_text(path.read_text(encoding="utf-8") + "x", encoding="utf-8")
    if word == "error":
        code, _, counted = rest.partition(" ")
        with Path(counted).open("a", encoding="utf-8") as file:
            file.write("x")
        return as_json({"error": {"code": code, "message": "planted"}})
    return b'{"fine":true}'


def _end(word: str, rest: str) -> None:
    """Where the word is a way to end, ends this process."""
    if word == "crash-with-a-child":
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(rest).write_text(f"{sleeper.pid}\n", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "quit":
        os._exit(3)
