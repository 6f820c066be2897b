"""The benchmark of low-bit products runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tilewright.bench import lowbit
from tilewright.bench import lowbit_peers as peers
from tilewright.bench import lowbit_workloads as w
from tilewright.bench.lowbit_workloads import Problem, Shape
from tilewright.bench.timing import QUICK

pytestmark = pytest.mark.usefixtures("two_threads")
TINY = Shape(48, 128, 32)
ONNXRUNTIME = pytest.mark.skipif(not peers.has_onnxruntime(), reason="onnxruntime is missing")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bytes_of_the_peer_hold_the_codes(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 64), dtype=np.uint8)
    stored = peers.packed_bytes(codes, bits, 32)
    assert stored.shape == (3, 2, 32 * bits // 8)
    ones = np.unpackbits(stored.reshape(3, -1), axis=1, bitorder="little").reshape(3, 64, bits)
    assert (ones @ (1 << np.arange(bits)) == codes).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_have_their_zero_in_the_middle(bits: int) -> None:
    codes, scales = w.codes_of(TINY, bits)[0]
    values = w.values_of((codes, scales))
    expected = (codes - 2.0 ** (bits - 1)) * np.repeat(scales, 32, axis=1)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(Problem(1, 4, "int8", "onnxruntime"), marks=ONNXRUNTIME),
        pytest.param(Problem(3, 2, "float", "onnxruntime"), marks=ONNXRUNTIME),
        Problem(1, 4, "float", "torch int4 bf16"),
        Problem(3, 5, "float", "torch f32"),
    ],
    ids=str,
)
def test_both_sides_multiply_the_same_numbers(problem: Problem) -> None:
    row = w.compare(problem, TINY, QUICK, 2)
    assert row.ours.rounds == 2 and row.name == problem.name
    assert row.our_error is not None and row.their_error is not None
    largest = float(
        w.exact_product(TINY, problem.bits, w.activations(problem.rows, 128)).abs().max()
    )
    rounded = problem.activation == "int8" or problem.peer == "torch int4 bf16"
    bound = largest * (2e-2 if rounded else 1e-6)
    assert row.our_error <= bound and row.their_error <= bound


def test_few_rows_are_told_beside_reading_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs took 4 s and 8 s, reading as much as ours has half of what was read: 1 s and 1 s."""
    monkeypatch.setattr(w, "READ_BYTES", 2048)
    monkeypatch.setattr(w, "in_rounds", lambda sides, _effort: [(2.0, 4.0, 2.0), (3.0, 8.0, 2.0)])
    (ours, theirs), bound = w.beside_reading((lambda: None, lambda: None), 1024.0, QUICK)
    assert (ours.median, theirs.median, bound) == (2.5, 6.0, 6.0)
    monkeypatch.undo()
    few = w.compare(Problem(8, 3, "float", "torch f32"), TINY, QUICK, 2)
    many = w.compare(Problem(9, 3, "float", "torch f32"), TINY, QUICK, 2)
    assert few.unit == "GB/s" and few.bound is not None and few.bound > 0
    assert many.unit == "GFLOP/s" and many.bound is None


def test_figures_say_what_they_are_made_of() -> None:
    found = w.against_reading(TINY, 3, "int8", QUICK)
    speed = found["read_gb_per_s"] * 1e9
    assert found["value"] == pytest.approx(found["ms"] / 1e3 / (TINY.bytes(3) / speed))
    assert TINY.bytes(3) == 48 * 128 * (3 / 8 + 2 / 32)
    found = w.against_integer(TINY, "f4e2m1", 4, QUICK)
    assert found["value"] > 0 and found["integer_ms"] > 0


def test_every_copy_takes_its_turn() -> None:
    seen: list[int] = []
    products = [lambda _x, at=at: seen.append(at) for at in range(3)]
    call = w.turning(products, torch.zeros(1))
    for _ in range(6):
        call()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2] and len(set(seen[:3])) == 3


def test_a_quick_run_is_held_to_nothing() -> None:
    record = lowbit.run(QUICK, quick=True, only="u2")
    assert record.quantities and record.details["shape"] == vars(Shape(256, 512))
    assert all(row.goal.must is None for row in (*record.comparisons, *record.quantities))
