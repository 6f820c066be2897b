"""What a CUDA kernel's machine code takes and is made of, read with cuobjdump; needs no GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tilewright.ir.errors import BackendMissingError

# "/*0a10*/   @!P0 LDG.E.128 R4, [R2.64] ;"
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Zx0-9_.]*)", re.MULTILINE
)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes: registers and stack bytes of a thread (spills lie there), bytes of
    shared memory of a block known to the compiler, and how often each instruction stands in it,
    by its full name (``LDGSTS.E.BYPASS.128``)."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: Counter[str]

    def count(self, name: str) -> int:
        """Instructions of a name in all their forms: ``count("LDSM")``, ``count("LDG.E.128")``."""
        return sum(n for full, n in self.instructions.items() if f"{full}.".startswith(f"{name}."))

    @property
    def spills(self) -> int:
        """Instructions that move registers to the stack and back."""
        return self.count("STL") + self.count("LDL")


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as ``resources``, without reading the code."""
    text = _cuobjdump(cubin, "-res-usage")
    return _most(r"REG:(\d+)", text), _most(r"STACK:(\d+)", text)


def resources(cubin: bytes) -> Resources:
    """What the kernel of a cubin takes (of several, the most of each)."""
    text = _cuobjdump(cubin, "-res-usage")
    return Resources(
        registers=_most(r"REG:(\d+)", text),
        stack_bytes=_most(r"STACK:(\d+)", text),
        shared_bytes=_most(r"SHARED:(\d+)", text),
        instructions=Counter(_INSTRUCTION.findall(assembly(cubin))),
    )


def assembly(cubin: bytes) -> str:
    """The SASS of a cubin."""
    return _cuobjdump(cubin, "-sass")


def disassembler_missing() -> str | None:
    """Why machine code cannot be read here, or None."""
    try:
        _tool()
    except BackendMissingError as error:
        return str(error)
    return None


def _most(pattern: str, text: str) -> int:
    return max(map(int, re.findall(pattern, text)), default=0)


@cache
def _tool() -> str:
    """cuobjdump: Triton's wheel has one, and so has the CUDA toolkit."""
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if not found:
        raise BackendMissingError(
            "reading a kernel's machine code needs cuobjdump: pip install 'triton>=3.6' (Linux) "
            "or pip install nvidia-cuda-cuobjdump"
        )
    return found


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [_tool(), option, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout + done.stderr
