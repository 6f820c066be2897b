"""Bundles that are damaged, newer, foreign, or where they must not be: each is refused by a message
that names what is wrong, nothing is loaded, and no file is changed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests import bundle_programs as programs
from tilewright.ir.errors import BackendMissingError, BundleError, TilewrightError
from tilewright.runtime.bundle import folder as folders
from tilewright.runtime.bundle import library, link, machine
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.folder import Folder, write_folder
from tilewright.runtime.bundle.manifest import MANIFEST, Machine, digest_of
from tilewright.runtime.bundle.manifest_reading import read_manifest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "bundle"
    x = programs.numbers(40, 40)
    programs.write(path, [(programs.ROW_SUMS, (x,)), (programs.TWO_KERNELS, (x, x))])
    return path


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()}


def changed(path: Path, change: Callable[[dict[str, Any]], object], sealed: bool = True) -> None:
    """The manifest with its values changed, under a hash that is right (``sealed``) or not."""
    head = json.loads((path / MANIFEST).read_text())
    change(head["bundle"])
    if sealed:
        head["sha256"] = digest_of(head["bundle"])
    (path / MANIFEST).write_text(json.dumps(head))


def test_writing_and_reading_give_the_same_manifest(good: Path) -> None:
    found = Folder(good)
    again = read_manifest(found.manifest.to_bytes(), "again")
    assert again == found.manifest
    assert found.manifest.to_bytes() == (good / MANIFEST).read_bytes()
    Bundle(good).check()


def test_only_the_owner_may_read_a_bundle(good: Path) -> None:
    assert good.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in good.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["kernels.so", "tilewright_kernels.h"])
def test_a_changed_byte_of_a_file(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged: its SHA-256 is not the one"):
        Bundle(copy).check()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{name} is damaged: .* bytes instead of"):
        Bundle(copy).check()
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"cannot read .*{name}: No such file"):
        Bundle(copy).check()


def test_a_damaged_library_is_not_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((copy / "kernels.so").read_bytes())
    data[-1] ^= 1
    (copy / "kernels.so").write_bytes(data)
    monkeypatch.setattr(library.ctypes, "CDLL", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(BundleError, match="is damaged"):
        Bundle(copy)["sums"](programs.numbers(40, 40))


def test_manifests_cut_or_changed_anywhere_are_refused(copy: Path) -> None:
    data = (copy / MANIFEST).read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        at = rng.randrange(len(data))
        if rng.random() < 0.3:
            damaged = damaged[:at]
        else:
            damaged[at] ^= 1 << rng.randrange(8)
        try:
            same = json.loads(damaged) == json.loads(data)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(BundleError):
                read_manifest(bytes(damaged), "manifest")


NASTY: tuple[Any, ...] = (None, -1, 1 << 80, "../x", "a b", [], {}, True, 0.5, ["x"], "N*", [[1]])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is in a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for at, item in enumerate(value[:3]):
            found += places(item, (*path, at))
    return found


def test_wrong_values_under_a_right_hash_raise_nothing_else(good: Path) -> None:
    head = json.loads((good / MANIFEST).read_text())
    text = json.dumps(head["bundle"])
    everywhere = places(head["bundle"])
    rng = random.Random(1)
    for at in rng.sample(everywhere, min(300, len(everywhere))):
        body = json.loads(text)
        inner = body
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = rng.choice(NASTY)
        data = json.dumps({**head, "bundle": body, "sha256": digest_of(body)}).encode()
        try:
            read_manifest(data, "manifest")
        except TilewrightError as error:
            assert isinstance(error, BundleError), error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(abi=99), "calling convention 99, this Tilewright's is 1"),
        (lambda b: b["files"].update({"../x": {}}), r"names '\.\./x'"),
        (lambda b: b.update(library="../kernels.so"), "'library' is '../kernels.so'"),
        (lambda b: b.update(library="other.so"), "the file 'other.so' has no entry"),
        (lambda b: b["codes"][0].update(symbol="a;b"), "'symbol' is 'a;b'"),
        (lambda b: b["codes"][0].update(scratch_bytes=1 << 60), "'scratch_bytes' is"),
        (lambda b: b["codes"][0]["grid"].append(["Z", 1]), "need 'Z', which follows from no"),
        (lambda b: b["codes"][0]["params"][0].update(dtype="u4"), "'dtype' is 'u4'"),
        (lambda b: b["codes"][1].update(symbol=b["codes"][0]["symbol"]), "two codes have one"),
        (lambda b: b["sized"].pop(), "belongs to no form|of which there is no code"),
        (lambda b: b["programs"][0].update(results=["nothing"]), "name 'nothing', which nothing"),
    ],
)
def test_what_a_manifest_must_not_say(copy: Path, change: Any, message: str) -> None:
    changed(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle(copy)


def test_a_changed_value_under_the_old_hash(copy: Path) -> None:
    changed(copy, lambda b: b["codes"][0].update(scratch_bytes=64), sealed=False)
    with pytest.raises(BundleError, match=r"manifest.json is damaged: .* another SHA-256"):
        Bundle(copy)


def test_newer_and_foreign_files(copy: Path) -> None:
    head = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**head, "version": 7}))
    with pytest.raises(BundleError, match=r"of version 7; .* up to 1: update Tilewright"):
        Bundle(copy)
    (copy / MANIFEST).write_text(json.dumps({**head, "schema": "recipes"}))
    with pytest.raises(BundleError, match="is not a bundle: its schema is 'recipes'"):
        Bundle(copy)
    (copy / MANIFEST).write_text('{"a": ' * 100_000)
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest.json"):
        Bundle(copy)
    with pytest.raises(BundleError, match=r"cannot open the bundle .*: No such file"):
        Bundle(copy / "none")
    (copy / "file").touch()
    with pytest.raises(BundleError, match=r"cannot open the bundle .*: is no folder"):
        Bundle(copy / "file")


@pytest.mark.parametrize("name", [MANIFEST, "kernels.so"])
def test_links_and_other_things_in_place_of_files(copy: Path, name: str, tmp_path: Path) -> None:
    shutil.move(copy / name, tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a symbolic link"):
        Bundle(copy).check()
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BundleError, match=f"{name} is not a plain file"):
        Bundle(copy).check()


@pytest.mark.parametrize("name", ["", MANIFEST, "kernels.so"])
def test_what_others_may_write_is_refused(copy: Path, name: str) -> None:
    for mode, who in ((0o777, "everyone"), (0o770, "its group")):
        (copy / name).chmod(mode)
        with pytest.raises(BundleError, match=rf"may be written by {who}\. Run chmod -R go-w"):
            Bundle(copy).check()


def test_a_right_hash_of_something_that_is_no_library(copy: Path) -> None:
    for data, message in ((b"text", "no shared library"), (b"\x7fELF\x02\x01" * 9, "not load")):
        (copy / "kernels.so").write_bytes(data)
        entry = asdict(folders.entry_of(data))
        changed(copy, lambda b, e=entry: b["files"].update({"kernels.so": e}))
        with pytest.raises(BundleError, match=message):
            Bundle(copy)["sums"](programs.numbers(40, 40))


def test_a_library_of_another_bundle(copy: Path, tmp_path: Path) -> None:
    x = programs.numbers(1, 40)
    programs.write(tmp_path / "other", [(programs.ELEMENTWISE, (x, x.bfloat16()))])
    data = (tmp_path / "other" / "kernels.so").read_bytes()
    (copy / "kernels.so").write_bytes(data)
    entry = asdict(folders.entry_of(data))
    changed(copy, lambda b: b["files"].update({"kernels.so": entry}))
    with pytest.raises(BundleError, match=r"has no function tw_sums_\w+: it is another one"):
        Bundle(copy)["sums"](programs.numbers(40, 40))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Machine("Plan9", "x86_64", ()), "another operating system: Plan9, this machine is Linux"),
        (Machine("Linux", "m68k", ()), "another processor: m68k, this machine is"),
        (Machine("Linux", "x86_64", ("avx2", "amx-fp16")), "a processor with amx-fp16, which"),
    ],
)
def test_bundles_for_other_machines(
    copy: Path, needs: Machine, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    changed(copy, lambda b: b.update(needs={**asdict(needs), "features": list(needs.features)}))
    with pytest.raises(BundleError, match=message):
        Bundle(copy)


def test_this_machine_has_what_its_target_needs(good: Path) -> None:
    needs = Folder(good).manifest.needs
    machine.require_fit(needs, "this")
    assert set(needs.features) & set(machine._X86) or needs.machine != "x86_64"


def test_a_full_disk_leaves_the_old_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, made = contents(copy), Folder(copy)
    real, written = os.fsync, []

    def full(number: int) -> None:
        written.append(number)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(BundleError, match="No space left on device; nothing was changed"):
        write_folder(copy, made.manifest, before, force=True)
    assert contents(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_nothing_is_replaced_unasked(copy: Path, tmp_path: Path) -> None:
    made, before = Folder(copy), contents(copy)
    files = {"kernels.so": before["kernels.so"]}
    with pytest.raises(BundleError, match="holds a bundle already; --force replaces it"):
        write_folder(copy, made.manifest, files)
    assert contents(copy) == before
    write_folder(copy, replace(made.manifest, uncalled={"x": "y"}), files, force=True)
    assert Folder(copy).manifest.uncalled == {"x": "y"}
    (tmp_path / "link").symlink_to(copy)
    (tmp_path / "mine").mkdir()
    write_folder(tmp_path / "mine", made.manifest, files)  # an empty one is taken
    for place, message in (("link", "is a symbolic link"), ("full", "with other files")):
        if place == "full":
            (tmp_path / "full").mkdir()
            (tmp_path / "full" / "letter.txt").write_text("dear")
        with pytest.raises(BundleError, match=message):
            write_folder(tmp_path / place, made.manifest, files, force=True)
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"


def test_linking(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"does not link x\.so:"):
        link.link({"a": b"no object"}, "x.so")
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    with pytest.raises(BackendMissingError, match="needs a linker: cc, gcc, clang"):
        link.link({"a": b""}, "x.so")


def test_the_library_is_the_same_each_time(good: Path, tmp_path: Path) -> None:
    x = programs.numbers(40, 40)
    programs.write(tmp_path / "b", [(programs.TWO_KERNELS, (x, x)), (programs.ROW_SUMS, (x,))])
    assert (tmp_path / "b" / "kernels.so").read_bytes() == (good / "kernels.so").read_bytes()
    assert struct.unpack_from("<H", (good / "kernels.so").read_bytes(), 16)[0] == 3  # ET_DYN


def test_force_replaces_bundles_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    """A web application has a manifest.json, too; and a bundle's folder may hold a letter."""
    made, files = Folder(copy), {"kernels.so": contents(copy)["kernels.so"]}
    application = tmp_path / "application"
    application.mkdir()
    (application / "manifest.json").write_text('{"name": "a web application"}')
    (copy / "letter.txt").write_text("dear")
    for place in (application, copy):
        before = contents(place)
        with pytest.raises(BundleError, match=r"files that are no bundle's .*: it is kept"):
            write_folder(place, made.manifest, files, force=True)
        assert contents(place) == before
    (copy / "letter.txt").unlink()
    damaged = (copy / "manifest.json").read_text().replace('"abi"', '"ibi"')
    (copy / "manifest.json").write_text(damaged)
    write_folder(copy, made.manifest, files, force=True)  # a damaged one may be replaced
    assert Folder(copy).manifest == made.manifest
