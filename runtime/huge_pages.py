"""Memory in pages of 2 MiB, where Linux gives them on request, for weights that are read front to
back once a call.

Addresses of small pages are looked up every 64 cache lines, in a virtual machine by walking two
tables; that holds up streams whose next lines are there already. A tensor of this memory is one
like any other: copies, files and other processes get its values, in whatever memory they take.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

PAGE = 2 << 20
SMALLEST = PAGE  # bytes of a tensor for which a mapping of its own is worth it
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An uninitialised tensor, in huge pages if it is large, on the CPU, and the system has them.

    They are those that lie in it as a whole: it takes no more memory than in small pages.
    """
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    if _ADVICE is not None and nbytes >= SMALLEST and torch.device(device).type == "cpu":
        found = _mapped(nbytes)
        if found is not None:
            memory, start = found
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=start)
            return flat.view(*shape)
    return torch.empty(*shape, dtype=dtype, device=device)


def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """``torch.stack`` of at least one tensor into such memory."""
    first = parts[0]
    return torch.stack(
        tuple(parts), out=empty((len(parts), *first.shape), first.dtype, first.device)
    )


def _mapped(nbytes: int) -> tuple[mmap.mmap, int] | None:
    """Private memory that lives as long as somebody holds it, and where in it a huge page starts;
    None if the system refuses. No page of it is there yet."""
    assert _ADVICE is not None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, nbytes + PAGE, flags=flags)
        start = -_address(memory) % PAGE
        memory.madvise(_ADVICE, start, nbytes // PAGE * PAGE)
    except OSError:
        return None
    return memory, start


def _address(memory: mmap.mmap) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr()
