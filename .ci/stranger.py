#!/usr/bin/env python3
"""A stranger's path: README's quick start in an empty environment, word for word, with its times.

    .ci/stranger.py [--python python3.12] [--out bench/results/CLASS/stranger-DATE.json]

Copies what git knows of the checkout, takes the commands of the first console block under "Quick
start" out of README.md, and runs them with a new home folder: no cache of pip, no kernels. Fails if
a command does, if the last line tells no speed-up, or if it all takes more than ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 600.0
# Where packages come from, and who vouches for it, is the machine's matter; all else is new.
KEPT = re.compile(
    r"PATH|LANG|LC_.*|TERM|PIP_.*|.*_proxy|.*_PROXY|SSL_.*|.*_CA_CERTS|OMP_WAIT_POLICY"
)


def quick_start(readme: str) -> list[str]:
    """The commands of the first console block under the heading."""
    section = readme.partition("\n## Quick start\n")[2].partition("\n## ")[0]
    found = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert found, "README.md has no console block under 'Quick start'"
    return [line for line in found[1].splitlines() if line.strip()]


def copy_checkout(to: Path) -> None:
    """What git knows or does not ignore, links as links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def environment(home: Path, python: str) -> dict[str, str]:
    """A new user's: ``python3`` is the interpreter that was asked for."""
    there = shutil.which(python)
    assert there, f"no {python} here"
    programs = home / "bin"
    programs.mkdir(parents=True)
    # a script, since a link would make an interpreter look for its library beside it
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{there}" "$@"\n', encoding="utf-8")
    (programs / "python3").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | {"HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def run(commands: list[str], folder: Path, variables: dict[str, str]) -> tuple[list[float], str]:
    """The commands in one shell; the seconds of each, and what they printed."""
    clock = folder.parent / "seconds"
    script = ["set -e", f"cd '{folder}'"]
    for command in commands:
        script += [f"date +%s.%N >> '{clock}'", command]
    script.append(f"date +%s.%N >> '{clock}'")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\na command of README.md failed: exit code {done.returncode}")
    marks = [float(line) for line in clock.read_text().split()]
    return [b - a for a, b in pairwise(marks)], done.stdout


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="python3", help="the interpreter to use")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    commands = quick_start((ROOT / "README.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="tilewright-stranger-") as name:
        folder, home = Path(name) / "tilewright", Path(name) / "home"
        copy_checkout(folder)
        load = os.getloadavg()[0]
        start = time.perf_counter()
        seconds, output = run(commands, folder, environment(home, asked.python))
        total = time.perf_counter() - start
        version = subprocess.run(
            [folder / ".venv" / "bin" / "python", "-c", "import torch; print(torch.__version__)"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()
        installed = size_of(folder / ".venv")
    speed_up = re.search(r"([\d.]+) times as fast", output)
    record = {
        "about": "README's quick start, every command copied from it, in a new home folder with no "
        "cache: seconds of each command, downloads included (.ci/stranger.py).",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version() if asked.python == "python3" else asked.python,
        "torch": version,
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "seconds": round(total, 1),
        "must_seconds": MOST_SECONDS,
        "commands": [
            {"command": c, "seconds": round(s, 1)} for c, s in zip(commands, seconds, strict=True)
        ],
        "installed_mb": round(installed / 1e6),
        "speed_up": float(speed_up[1]) if speed_up else None,
        "output": output.splitlines()[-3:],
    }
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if not speed_up or total > MOST_SECONDS:
        sys.exit("no speed-up was printed, or it took more than ten minutes")


if __name__ == "__main__":
    main()
