"""Expert memory on CUDA: by a driver of books here, and on a device where there is one."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.fake_cuda import GRANULARITY, FakeCuda
from tilewright.ir.errors import ExpertError, SettingError
from tilewright.runtime.expert_memory import cuda_driver
from tilewright.runtime.expert_memory.cuda import CudaRange
from tilewright.runtime.expert_memory.cuda_driver import CudaDriver
from tilewright.runtime.expert_memory.memory import ExpertMemory
from tilewright.runtime.expert_memory.page_table import PageTable

DEVICE = torch.device("cuda", 0)


def reserved(fake: FakeCuda, size: int) -> tuple[CudaRange, PageTable]:
    area = CudaRange(size, DEVICE, driver=CudaDriver(0, fake))
    return area, PageTable(area.size, area.page)


def pages_of(start: int, stop: int) -> range:
    return range(start // GRANULARITY, (stop - 1) // GRANULARITY + 1)


def test_structures_are_those_of_the_header() -> None:
    assert ctypes.sizeof(cuda_driver._Location) == 8
    assert ctypes.sizeof(cuda_driver._Allocation) == 32
    assert ctypes.sizeof(cuda_driver._Access) == 12
    assert cuda_driver._Allocation.location.offset == 8
    assert cuda_driver._Allocation.flags.offset == 24


@given(st.integers(1, 3 * GRANULARITY), st.lists(st.integers(0, 9), max_size=20))
def test_pieces_are_mapped_and_unmapped_as_the_driver_demands(
    size: int, toggled: list[int]
) -> None:
    fake = FakeCuda()
    area, table = reserved(fake, 10 * size)
    there: set[int] = set()
    for expert in toggled:
        start, stop = expert * size, (expert + 1) * size
        if expert in there:
            for piece in table.give_back(start, stop):
                area.unmap(piece)
        else:
            for piece in table.missing(start, stop):
                area.map(piece)
            table.take(start, stop)
        there ^= {expert}
        assert sum(fake.created.values()) == table.mapped_bytes
        needed = {page for e in there for page in pages_of(e * size, (e + 1) * size)}
        mapped = {p for a, (n, _) in fake.mapped.items() for p in pages_of(a, a + n)}
        first = area.address // GRANULARITY
        assert {page - first for page in mapped} == needed
        assert fake.open == set(fake.mapped)
    del area  # whatever is still mapped
    assert not fake.created and not fake.mapped and not fake.reserved and not fake.contexts


def test_kernels_end_before_the_last_piece_goes() -> None:
    fake = FakeCuda()
    area, table = reserved(fake, GRANULARITY)
    area.map(table.missing(0, 1)[0])
    del area
    assert fake.calls == ["map", "synchronize", "unmap"]


def test_no_memory_left_is_named_and_nothing_stays_mapped() -> None:
    fake = FakeCuda(memory=2 * GRANULARITY)
    area, table = reserved(fake, 8 * GRANULARITY)
    with pytest.raises(ExpertError, match=r"cuMemCreate failed: out of memory \(2\)"):
        area.map(table.missing(0, 5 * GRANULARITY)[1])
    assert not fake.created and not fake.contexts


def test_pages_are_multiples_of_the_granularity() -> None:
    with pytest.raises(SettingError, match="granularity, 2097152"):
        CudaRange(1, DEVICE, 4096, CudaDriver(0, FakeCuda()))
    assert CudaRange(1, DEVICE, 2 * GRANULARITY, CudaDriver(0, FakeCuda())).page == 4 << 20


@pytest.mark.gpu
def test_bytes_on_a_device() -> None:
    """Loads and unloads in random order; every byte read on another stream."""
    memory = ExpertMemory(3, 4)
    base = {"up": torch.randn(5, 700, 333, device="cuda")}
    weight = memory.add_layer(0, base)["up"]
    wanted: dict[str, dict[int, torch.Tensor]] = {}
    source, stream = random.Random(0), torch.cuda.Stream()
    mapped = weight.mapped_bytes
    for _ in range(60):
        name = source.choice("abc")
        if name in wanted:
            memory.unload(name)
            del wanted[name]
        else:
            chosen = source.sample(range(5), source.randint(1, 4))
            wanted[name] = {expert: torch.randn(700, 333) for expert in chosen}
            memory.load(name, {0: {e: {"up": data} for e, data in wanted[name].items()}})
        with memory.lease(wanted) as snapshot, torch.cuda.stream(stream):
            assert torch.equal(weight.tensor[:5], base["up"])
            for owner, experts in wanted.items():
                row = snapshot.maps[0][snapshot.adapters[owner].slot].tolist()
                for expert, data in experts.items():
                    assert torch.equal(weight.tensor[row[expert]].cpu(), data)
    for name in list(wanted):
        memory.unload(name)
    assert weight.mapped_bytes == mapped
