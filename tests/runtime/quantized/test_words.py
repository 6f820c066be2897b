"""Packing in torch against ``Packing.pack``, bit by bit."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.quantized.drawing import packings
from tilewright.ir.packing import Packing
from tilewright.runtime.quantized import rows, words


@given(packings(), st.integers(0, 50), st.integers(0, 150), st.sampled_from([40, 1 << 18]))
def test_the_same_bits_as_numpys_whatever_the_pieces(
    packing: Packing, n: int, k: int, piece: int
) -> None:
    codes = np.random.default_rng(n * 151 + k).integers(0, 1 << packing.bits, (n, k), np.uint8)
    with mock.patch.object(rows, "PIECE", piece):
        got = words.pack(packing, torch.from_numpy(codes))
        back = words.unpack(packing, got, n, k)
    np.testing.assert_array_equal(got.numpy(), packing.pack(codes))
    np.testing.assert_array_equal(back.numpy(), codes)


@given(packings(bits=4), st.integers(0, 50), st.integers(0, 9))
def test_groups_lie_as_numpys(packing: Packing, n: int, groups: int) -> None:
    values = torch.randn(n, groups)
    got = words.pack_groups(packing, values)
    np.testing.assert_array_equal(got.numpy(), packing.pack_groups(values.numpy()))
    assert torch.equal(words.unpack_groups(got, n), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_matrix_of_several_threads_chunks(bits: int) -> None:
    packing = Packing.quads(bits, 16, 32)
    codes = torch.randint(0, 1 << bits, (700, 1100), dtype=torch.uint8)
    got = words.pack(packing, codes)
    np.testing.assert_array_equal(got.numpy(), packing.pack(codes.numpy()))
    assert torch.equal(words.unpack(packing, got, 700, 1100), codes)


def test_rows_with_gaps_between_them() -> None:
    packing = Packing.quads(6, 8, 16)
    codes = torch.randint(0, 64, (20, 100), dtype=torch.uint8)[:, 10:74]
    np.testing.assert_array_equal(words.pack(packing, codes).numpy(), packing.pack(codes.numpy()))
