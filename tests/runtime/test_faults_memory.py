"""Limits of memory: the error names what was to be allocated, and how much; a smaller call, or the
same one under a higher limit, works."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tilewright
from tests.attention_programs import Attention
from tests.runtime.faults import FORKS, Rows, in_child
from tilewright.ir.errors import MemoryLimitError, TilewrightError
from tilewright.runtime import kernel, memory_limit, native_code
from tilewright.runtime.cache import Cache

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20


@pytest.fixture(scope="module")
def program() -> tilewright.Program:
    """A kernel with scratch memory, compiled and called."""
    made = tilewright.Program(tilewright.parse(Attention(16, 16).text()))
    made(*inputs())
    return made


def inputs(batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Any number of batches in the memory of one."""
    return tuple(torch.ones(1, 2, 40, 16).expand(batch, 2, 40, 16) for _ in "qkv")


def limited(more: int, work: Callable[[], None], limit: int = resource.RLIMIT_AS) -> None:
    """Runs it in a child that may take so many bytes more than it has."""

    def here() -> None:
        field = "VmSize" if limit == resource.RLIMIT_AS else "VmData"
        status = Path("/proc/self/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found
        resource.setrlimit(limit, (int(found[1]) * 1024 + more, resource.RLIM_INFINITY))
        work()

    assert in_child(here) == 0


def unlimited(limit: int = resource.RLIMIT_AS) -> None:
    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@LINUX
@FORKS
@pytest.mark.parametrize(
    ("limit", "name"), [(resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")]
)
def test_compiling_is_refused_where_llvm_would_end_the_process(limit: int, name: str) -> None:
    Rows().wrong()  # everything is loaded

    def work() -> None:
        rows = Rows()
        native_code.kernel_cache = lambda: Cache(limit=0)  # type: ignore[assignment]
        with pytest.raises(MemoryLimitError) as refused:
            rows.wrong()
        text = str(refused.value)
        assert re.search(r"compiling kernel rows_\d+ needs about \d+ MiB .* of [\d,]+ MiB", text)
        assert name in text and "call again" in text
        unlimited(limit)
        assert not rows.wrong()

    limited(30 * MIB, work, limit)


@LINUX
@FORKS
def test_results_that_there_is_no_memory_for(program: tilewright.Program) -> None:
    def work() -> None:
        words = r"no memory for the results of attention, f32\[40000, 2, 40, 16\], 204,800,000 byt"
        with pytest.raises(MemoryLimitError, match=words):
            program(*inputs(40000))
        assert torch.equal(program(*inputs())[0], torch.ones(1, 2, 40, 16))

    limited(100 * MIB, work)


@LINUX
@FORKS
def test_scratch_that_there_is_no_memory_for(program: tilewright.Program) -> None:
    family = program.steps[0].family
    assert family is not None

    def work() -> None:
        kernel._free_scratch.clear()
        with pytest.raises(MemoryLimitError, match=r"the scratch memory of .* 524,288,000 bytes"):
            kernel._take_scratch(500 * MIB)
        assert torch.equal(program(*inputs())[0], torch.ones(1, 2, 40, 16))

    limited(100 * MIB, work)


@pytest.mark.parametrize("batch", [1 << 38, 1 << 50])
def test_requests_beyond_all_memory(program: tilewright.Program, batch: int) -> None:
    """Also where the system promises more than it has: more than there are addresses for."""
    with pytest.raises(TilewrightError, match=rf"f32\[{batch}, 2, 40, 16\]"):
        program(*inputs(batch))
    assert torch.equal(program(*inputs())[0], torch.ones(1, 2, 40, 16))


def test_it_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="loading x needs about 4398046511104 MiB"):
        memory_limit.require_memory(1 << 62, "loading x")
    memory_limit.require_memory(1 << 20, "nothing")
