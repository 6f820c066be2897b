"""Object files to one shared library, by the linker of the machine that makes a bundle."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tilewright.backends.tool import run_tool, why_failed
from tilewright.ir.errors import BackendMissingError, BundleError

_FLAGS = ("-z", "now", "-z", "relro", "-z", "noexecstack", "-z", "defs", "--hash-style=gnu")
_LIBRARIES = ("-lm", "-lc")  # kernels call memset, and functions of the C library such as fmod


def link(objects: Mapping[str, bytes], name: str) -> bytes:
    """The shared library ``name`` of object files by name: the same bytes for the same objects.

    Raises BackendMissingError where there is no linker, BundleError with its words if it fails.
    """
    if platform.system() != "Linux":
        raise BackendMissingError(
            f"bundles are shared libraries of Linux, this is {platform.system()}: make them there"
        )
    with tempfile.TemporaryDirectory(prefix="tilewright-link-") as folder:
        place = Path(folder)
        files = []
        try:
            for number, data in enumerate(objects[n] for n in sorted(objects)):
                files.append(place / f"{number}.o")
                files[-1].write_bytes(data)
        except OSError as error:
            raise BundleError(f"cannot link {name}: {place}: {error.strerror}") from None
        out = place / name
        command = [*_linker(name), "-o", str(out), *map(str, files), *_LIBRARIES]
        done = run_tool(command)
        if done.returncode or not out.exists():
            words = why_failed(done)[-2000:]
            raise BundleError(f"{command[0]} does not link {name}:\n{words}")
        return out.read_bytes()


def _linker(name: str) -> list[str]:
    """The command up to its output: a C compiler knows where the system's libraries are."""
    for compiler in ("cc", "gcc", "clang"):
        if found := shutil.which(compiler):
            passed = [f"-Wl,{','.join(('-soname', name, '--build-id=none', *_FLAGS))}"]
            return [found, "-shared", "-nostartfiles", *passed]
    for linker in ("ld.lld", "ld"):
        if found := shutil.which(linker):
            return [found, "-shared", "-soname", name, "--build-id=none", *_FLAGS]
    raise BackendMissingError(
        "making a bundle needs a linker: cc, gcc, clang, ld.lld or ld on PATH (apt install "
        "binutils gcc); loading one needs none"
    )
