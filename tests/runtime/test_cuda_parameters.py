"""Parameters and descriptions of tensors as the CUDA driver wants them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.fake_gpu import FakeDriver, fake_gpu
from tilewright.runtime.cuda.driver import Driver, Tiling
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.cuda.start import Layout

pytest.importorskip("triton")


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_gpu() as driver:
        yield driver


def test_tensor_maps_say_what_the_driver_wants(driver: FakeDriver) -> None:
    tiling = Tiling((1, 1, 64, 64), 3, 2, 9)
    made = gpus.driver.tensor_map(tiling, 4096, (2, 3, 1000, 128), (400000, 128, 384, 1))
    assert driver.maps == [(4096, (128, 1000, 3, 2), (768, 256, 800000), (64, 64, 1, 1))]
    assert made[8:] == b"\xff" * 120
    small = gpus.driver.tensor_map(tiling, 4096, (1, 1, 4, 128), (512, 512, 128, 1))
    assert small[10] == 0xFF & ~(1 << 5)  # CUTLASS's correction for drivers up to 13.1
    driver.version = 13020
    assert Driver(driver).tensor_map(tiling, 4096, (1, 1, 4, 128), (512, 512, 128, 1))[10] == 0xFF


@settings(max_examples=30)
@given(
    pointers=st.integers(1, 5),
    ranks=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    integers=st.integers(0, 9),
    wide=st.booleans(),
)
def test_layouts_place_parameters_apart(
    pointers: int, ranks: tuple[int, ...], integers: int, wide: bool
) -> None:
    layout = Layout(pointers, ranks, integers, wide)
    places = list(zip(layout.offsets()[:-2], layout.sizes()[:-2], strict=True))
    assert all(at % min(size, 64) == 0 for at, size in places)
    ordered = sorted(places)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(ordered))
    assert min(at for at, _ in places) == 64
