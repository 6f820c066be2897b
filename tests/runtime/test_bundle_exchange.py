"""A bundle that is replaced is there at every moment: the old one or the new one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tilewright.ir.errors import BundleError
from tilewright.runtime.bundle import exchange, folder
from tilewright.runtime.bundle.exchange import exchanged, put_back, remove_leftovers
from tilewright.runtime.bundle.folder import Folder, check_place

HIDDEN = ".place.0123456789abcdef"


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    (path / "file").write_text("old")
    return path


def fresh_beside(path: Path) -> Path:
    made = path.with_name(f"{HIDDEN}.new")
    made.mkdir()
    (made / "file").write_text("new")
    return made


def text(path: Path) -> str:
    return (path / "file").read_text()


def test_two_folders_change_names_at_once(place: Path) -> None:
    fresh = fresh_beside(place)
    if not exchanged(fresh, place):
        pytest.skip("this system or file system cannot exchange names")
    assert text(place) == "new" and text(fresh) == "old"
    assert not exchanged(place, place.with_name("missing")) and text(place) == "new"


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Every step that changes names is counted; this one is the last of the process."""
    steps: list[str] = []

    def counted(name: str, do: object) -> object:
        def run(*names: object, **more: object) -> object:
            if len(steps) == step:
                raise Killed
            steps.append(name)
            assert callable(do)
            return do(*names, **more)

        return run

    monkeypatch.setattr(folder.os, "rename", counted("rename", os.rename))
    monkeypatch.setattr(folder, "exchanged", counted("exchange", folder.exchanged))
    monkeypatch.setattr(folder.shutil, "rmtree", counted("remove", folder.shutil.rmtree))
    return steps


@pytest.mark.parametrize("whole", [True, False])
def test_a_kill_between_any_two_steps_leaves_one_of_both(
    place: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Also without the system's exchange: the next use gives the old one its name back."""
    if not whole:
        monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    for step in range(6):
        (place / "file").write_text("old")
        fresh = fresh_beside(place)
        with monkeypatch.context() as patch:
            steps = killed_at(patch, step)
            try:
                folder._put(fresh, place)
                ended = True
            except Killed:
                ended = False
        if whole and "exchange" in steps:
            assert place.exists(), "never without its name"
        put_back(place)
        assert text(place) in {"old", "new"}
        assert text(place) == "new" or not ended
        for each in place.parent.glob(f"{HIDDEN}*"):
            exchange.shutil.rmtree(each)
        for each in place.parent.glob(".place.*.old"):
            exchange.shutil.rmtree(each)
        if ended:
            return
    raise AssertionError("more steps than expected")


def test_every_use_puts_back(place: Path) -> None:
    """Reading, and writing, look first; what is there stays."""
    hidden = place.with_name(f"{HIDDEN}.old")
    place.rename(hidden)
    with pytest.raises(BundleError, match="no bundle"):
        Folder(place)
    assert text(place) == "old" and not hidden.exists()
    place.rename(hidden)
    with pytest.raises(BundleError, match="other files"):
        check_place(place, True)
    assert text(place) == "old"
    (hidden).mkdir()
    put_back(place)
    assert text(place) == "old" and hidden.exists()


def test_leftovers_go_after_an_hour(place: Path) -> None:
    young, old = place.with_name(f"{HIDDEN}.new"), place.with_name(f"{HIDDEN}.old")
    other = place.with_name(".place.of-someone.old")
    for each in (young, old, other):
        each.mkdir()
    before = time.time() - 4000.0
    for each in (old, other):
        os.utime(each, (before, before))
    remove_leftovers(place)
    assert young.exists() and other.exists() and not old.exists()
    os.utime(young, (before, before))
    place.rename(place.with_name("away"))
    remove_leftovers(place)
    assert young.exists(), "nothing goes while the bundle is missing"
