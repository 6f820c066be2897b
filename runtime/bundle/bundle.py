"""A loaded bundle: programs by name, and code by key for programs that are compiled here.

Loading reads, checks and maps files. It needs neither a compiler nor the parser, nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from tilewright.ir.errors import BundleError
from tilewright.ir.target import Target
from tilewright.runtime.bundle.folder import Folder
from tilewright.runtime.bundle.kernels import BundledProgram
from tilewright.runtime.bundle.library import Library, load_library
from tilewright.runtime.bundle.machine import require_fit
from tilewright.runtime.bundle.manifest import Code, Manifest, Program, Sized


class Bundle(Mapping[str, BundledProgram]):
    """The programs of a bundle by name: ``bundle["attention"](q, k, v)``.

    Raises BundleError for a folder that is no bundle, is damaged, of a newer version, or for
    another machine.
    """

    def __init__(self, path: Path | str) -> None:
        self._folder = Folder(path)
        self.path: Path = self._folder.path
        self.manifest: Manifest = self._folder.manifest
        if not self.target.gpu:
            require_fit(self.manifest.needs, f"the bundle {self.path}")
        self.codes: dict[str, Code] = {code.symbol: code for code in self.manifest.codes}
        self.sized: dict[str, Sized] = {sized.form: sized for sized in self.manifest.sized}
        self._programs = {p.name: self._callable(p) for p in self.manifest.programs}

    def _callable(self, program: Program) -> BundledProgram:
        where = f"the bundle {self.path}"
        if not self.target.gpu:
            return BundledProgram(program, self.codes, self.sized, self.address, where)
        from tilewright.runtime.bundle.gpu_kernels import GpuProgram  # with torch

        chip = int(self.target.cpu.removeprefix("sm_"))
        return GpuProgram(program, self.codes, self.sized, self.file, where, chip)

    @property
    def target(self) -> Target:
        """The processor that it is for."""
        return self.manifest.target

    @cached_property
    def library(self) -> Library:
        """Its machine code, read and checked when first needed."""
        if self.target.gpu:
            raise BundleError(
                f"the bundle {self.path} is for {self.target.name}: its kernels are called with "
                "tensors on such a GPU"
            )
        name = self.manifest.library
        return load_library(self._folder.file(name), str(self.path / name))

    def address(self, symbol: str) -> int:
        """Where a kernel's machine code is."""
        return self.library.address(symbol)

    def file(self, name: str) -> bytes:
        """A file's bytes, checked."""
        return self._folder.file(name)

    def check(self) -> None:
        """Reads every file and compares its hash. BundleError names the first that is damaged."""
        for name in self.manifest.files:
            self.file(name)

    def __getitem__(self, name: str) -> BundledProgram:
        found = self._programs.get(name)
        if found is None:
            why = self.manifest.uncalled.get(name)
            known = ", ".join(self._programs) or "none"
            more = f": {why}" if why else ""
            raise BundleError(
                f"the bundle {self.path} has no program {name!r}{more}; it has: {known}"
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._programs)

    def __len__(self) -> int:
        return len(self._programs)

    def __contains__(self, name: object) -> bool:
        return name in self._programs

    def __repr__(self) -> str:
        return f"Bundle({self.path}: {', '.join(self) or 'no program by name'})"


def load_bundle(folder: Path | str) -> Bundle:
    """The programs of a bundle as callables by name, on NumPy arrays or torch tensors; no compiler
    is needed, nor torch. Raises BundleError for a folder that is no bundle, is damaged, of a newer
    version, or for another machine.
    """
    return Bundle(folder)
