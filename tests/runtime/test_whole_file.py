"""Files are written whole or not at all; what is no file is written to as it is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tilewright.ir.errors import DataError
from tilewright.runtime.whole_file import check_folder, check_writable, write_whole


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"first", DataError)
    with pytest.raises(DataError, match="exists: name another file"):
        write_whole(path, b"second", DataError)
    assert path.read_bytes() == b"first"
    write_whole(path, b"third", DataError, force=True)
    assert path.read_bytes() == b"third" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_stays_a_pipe(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_whole(path, b"x" * 100_000, DataError, force)
    reader.join(10)
    assert read == [b"x" * 100_000] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_that_takes_nothing_is_an_error_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    if not link.is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(DataError, match="cannot write"):
        write_whole(link, b"x", DataError, force=True)
    assert link.is_symlink() and link.is_char_device()


def test_an_open_file_is_written_to_not_replaced(tmp_path: Path) -> None:
    """As /dev/stdout is, where a shell sent it to a file."""
    path = tmp_path / "out"
    with open(path, "wb") as opened:
        opened.write(b"before ")
        opened.flush()
        name = Path(f"/proc/self/fd/{opened.fileno()}")
        check_writable(name, DataError)
        write_whole(name, b"text", DataError, force=True)
    assert path.read_bytes() == b"before text" and os.listdir(tmp_path) == ["out"]


def test_names_that_are_too_long_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300)
    with pytest.raises(DataError, match="cannot write"):
        write_whole(path, b"x", DataError)
    with pytest.raises(DataError, match="cannot write"):
        check_writable(path, DataError)
    with pytest.raises(DataError, match="cannot write into"):
        check_folder(path, DataError)


def test_whether_a_file_can_be_written_is_known_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "new", DataError)
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old", DataError)
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "kept"
    for path in (tmp_path, tmp_path / "none" / "x", tmp_path / "old" / "x", Path("/proc/x")):
        with pytest.raises(DataError, match="cannot write"):
            check_writable(path, DataError)


def test_whether_a_folder_can_be_made_is_known_before(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a" / "b"):
        check_folder(folder, DataError)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "b", Path("/proc/x")):
        with pytest.raises(DataError, match="cannot write into"):
            check_folder(folder, DataError)
    assert os.listdir(tmp_path) == ["file"]
