"""The machine classes, and the speeds that a record names."""

from __future__ import annotations

import pytest

from tilewright.bench.machine import describe_machine, machine_class, measure_machine

WIDE = "avx2 fma avx512f avx512bw avx512dq avx512vl"


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "kind"),
    [
        ("AuthenticAMD", "25", "avx2 fma", "avx2"),
        ("AuthenticAMD", "25", WIDE, "avx512-zen4"),
        ("AuthenticAMD", "26", WIDE, "avx512-zen5"),
        ("GenuineIntel", "6", WIDE, "avx512"),
        ("GenuineIntel", "6", "avx2 fma avx512f", "avx2"),
    ],
)
def test_the_class_of_a_processor(vendor: str, family: str, flags: str, kind: str) -> None:
    assert machine_class({"vendor_id": vendor, "cpu family": family, "flags": flags}) == kind


def test_without_proc_the_architecture_is_the_class() -> None:
    assert machine_class({})


def test_this_machine_has_a_class_and_a_bandwidth() -> None:
    here = measure_machine(describe_machine(), quick=True)
    assert here.kind
    assert here.versions["torch"]
    assert here.read_gb_per_s and here.read_gb_per_s > 0
    assert here.matmul_f32_gflops and here.matmul_f32_gflops > 0
