"""Folders of killed tuners go at the next start, those in use never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tilewright.runtime.tuning import scratch
from tilewright.runtime.tuning.scratch import ScratchFolder, remove_abandoned

HOLDS = """
import sys, tempfile
from tilewright.runtime.tuning.scratch import ScratchFolder
tempfile.tempdir = sys.argv[1]
print(ScratchFolder().path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(path: Path) -> None:
    """As if nothing had been written there for an hour."""
    before = time.time() - 3600.0
    os.utime(path, (before, before))


def test_it_goes_with_the_block() -> None:
    with ScratchFolder() as folder:
        (Path(folder) / "file").write_text("kept meanwhile")
        age(Path(folder))
        remove_abandoned()
        assert (Path(folder) / "file").exists(), "it is in use"
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert not Path(folder).exists()


def test_what_a_killed_process_left_goes_at_the_next_start(place: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(place)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        age(folder)
        with ScratchFolder():
            assert folder.exists(), "its process is alive"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with ScratchFolder():
        assert not folder.exists()


def test_what_is_young_or_not_ours_stays(place: Path) -> None:
    young = place / f"{scratch.PREFIX}young"
    young.mkdir()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (place / f"{scratch.PREFIX}link").symlink_to(elsewhere)
    age(elsewhere)
    file = place / f"{scratch.PREFIX}file"
    file.write_text("")
    age(file)
    remove_abandoned()
    assert young.exists() and elsewhere.exists() and file.exists()
    age(young)
    remove_abandoned()
    assert not young.exists(), "killed before it had a lock"
