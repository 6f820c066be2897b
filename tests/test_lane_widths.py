"""The number of lanes is a parameter: programs for 4, 8 and 16 lanes give the right results on one
machine, and use no instruction that their target lacks."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import test_attention_kernels as attention
from tests import test_fused_programs as fused
from tests.attention_programs import Attention
from tests.lowbit_programs import Form, Weight, check, lanes_of
from tilewright.cli.compile import Stage, emitted
from tilewright.ir.errors import TargetError
from tilewright.ir.parser import parse
from tilewright.ir.target import from_features, named_target
from tilewright.runtime.program import Program
from tilewright.runtime.targets import needed_features, resolve_target

# 4 lanes as the processor has them; 8 and 16 as several registers of a narrower one
TARGETS = {"x86-64-v2": 4, "x86-64-v2:8": 8, "x86-64-v3:16": 16}
ATTENTION = Attention(24, 40, "f16", causal=True)
ROWS = ("softmax", "LayerNorm")
WEIGHTS = (
    Form((Weight("u3", 20, zeros="f16"),), 70),
    Form((Weight("f6e3m2", 32),), 96, 0, ("silu",)),
    Form((Weight("nf4", 32, scales="bf16"),), 65),  # chosen from a table
)
LIBRARY = r"\b(?:fmaf?|__extend\w+|__trunc\w+|floorf?|exp2?f?)\b"  # of C and of its compiler


def test_targets_have_the_lanes_that_they_name() -> None:
    assert {name: named_target(name).lanes for name in TARGETS} == TARGETS
    assert [resolve_target(f"host:{n}").lanes for n in (4, 8, 16)] == [4, 8, 16]
    assert named_target("x86-64-v3:8") == named_target("x86-64-v3")


@pytest.mark.parametrize("name", ["x86-64-v3:5", "x86-64-v3:", "host:x", "scalar:4", "znver5:32"])
def test_other_widths_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="lanes"):
        resolve_target(name)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6)
@given(
    heads=st.integers(1, 2),
    rows=st.sampled_from([1, 3, 50]),
    length=st.integers(1, 90),
    seed=st.integers(0, 2**31),
)
def test_attention(target: str, heads: int, rows: int, length: int, seed: int) -> None:
    sizes = {"B": 1, "K": heads, "G": 1, "N": rows, "M": length}
    tensors = attention.inputs(ATTENTION, sizes, seed, "plain")
    (out,) = attention.program(ATTENTION, target)(*tensors)
    expected = ATTENTION.reference(*tensors[:3], None)
    tolerance = attention.TOLERANCE["f16"]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6)
@given(
    name=st.sampled_from(ROWS),
    rows=st.integers(1, 20),
    length=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_rows(target: str, name: str, rows: int, length: int, seed: int) -> None:
    fused.check(name, target, rows, length, seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6)
@given(
    form=st.sampled_from(WEIGHTS),
    rows=st.sampled_from([1, 5]),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_products_with_packed_weights(
    target: str, form: Form, rows: int, blocks: int, seed: int
) -> None:
    check(form, rows, blocks, target=target, seed=seed)


@pytest.mark.parametrize("target", TARGETS)
def test_the_interpreter_runs_the_same_programs(target: str) -> None:
    form = Attention(8, 8)
    tensors = attention.inputs(form, {"B": 1, "K": 1, "G": 1, "N": 9, "M": 11}, 0, "plain")
    (out,) = Program(parse(form.text()), target=target, backend="interpreter")(*tensors)
    torch.testing.assert_close(out.double(), form.reference(*tensors[:3], None))


@pytest.mark.parametrize(
    ("source", "dtype"), [("f16", torch.float16), ("f32", torch.float32)], ids=["widen", "narrow"]
)
def test_f16_without_instructions_for_it(source: str, dtype: torch.dtype) -> None:
    """Every f16, and f32 at and around all that rounding decides: the bits are those of torch."""
    other = {"f16": "f32", "f32": "f16"}[source]
    text = f"graph g<N, M>(%x: tensor<N x M x {source}>) {{\n%y = math.cast %x {{dtype = {other}}}"
    program = Program(parse(text + "\nreturn %y }"), target="x86-64-v2")
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    if source == "f16":
        values = halves
    else:
        wide = halves[:0x7C00].astype(np.float64)
        middle = ((wide[:-1] + wide[1:]) / 2).astype(np.float32)
        beside = np.concatenate([middle, np.float32([65504, 65519.99, 65520, 65536, 3e38])])
        around = [np.nextafter(beside, np.float32(side)) for side in (-np.inf, np.inf)]
        special = np.float32([np.inf, np.nan, 0.0, 1e-45, 2.0**-25, 2.0**-26])
        values = np.concatenate([beside, *around, special])
        values = np.concatenate([values, -values])
    x = torch.from_numpy(values[None].astype(values.dtype)).to(dtype)
    (got,) = program(x)
    want = x.to(got.dtype)
    bits = torch.int32 if source == "f16" else torch.int16
    same = got.view(bits) == want.view(bits)
    assert bool((same | (got.isnan() & want.isnan())).all())


def assembly(target: str, text: str) -> str:
    return emitted(parse(text), Stage.asm, target, 0)


@pytest.mark.parametrize(
    ("target", "forbidden"),
    [
        ("x86-64-v2", r"%[yz]mm|^\s+v[a-z]+[ps][sd]\s"),  # AVX: wider registers, three operands
        ("x86-64-v3:16", r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])"),  # AVX-512: masks, 32 registers
        ("aarch64", r"%[xyz]mm"),
    ],
)
def test_no_instruction_that_the_target_lacks(target: str, forbidden: str) -> None:
    lanes = lanes_of(target)
    texts = [ATTENTION.text(), WEIGHTS[0].text(lanes)]
    for text in texts:
        made = assembly(target, text)
        assert not re.findall(forbidden, made, re.MULTILINE)
        assert not re.findall(LIBRARY, made), "a function for every element"


def test_another_kind_of_machine_gets_assembly_and_is_not_run() -> None:
    made = assembly("aarch64", ATTENTION.text())
    assert "fmla" in made and "fcvtl" in made
    with pytest.raises(TargetError, match="cannot run code for aarch64: it lacks a processor of"):
        Program(parse(ATTENTION.text()), target="aarch64")


@settings(max_examples=50)
@given(
    have=st.sets(
        st.sampled_from(
            [
                *("sse4.2", "fma", "f16c", "avx2", "avx512f", "avx512vl", "avx512bw", "avx512dq"),
                *("avx512vnni", "avxvnni", "avx512vbmi", "avx512bf16", "neon"),
            ]
        )
    )
)
def test_a_processor_is_asked_for_what_it_has(have: set[str]) -> None:
    """Instructions are named only where the processor has their set, and the width is theirs."""
    made = from_features("drawn", "generic", ",".join(f"+{name}" for name in sorted(have)))
    assert made.named == {16: "avx512", 8: "avx2", 4: ""}[made.lanes]
    claimed = {"avx512bf16": made.bf16_dot, "avx512vbmi": made.byte_table == 64}
    claimed |= {"avx2": made.named == "avx2", "avx512f": made.named == "avx512"}
    for feature, used in claimed.items():
        assert not used or feature in have
    if made.int8_dot == "vnni":
        assert {"avx512vnni", "avxvnni"} & have
    assert not made.fused or have & {"fma", "neon"} or made.named == "avx512"
    for lanes in (4, 8, 16):
        other = made.with_lanes(lanes)
        assert other.lanes == lanes and other.named in {made.named, "", "avx2"}
        if lanes != made.lanes:
            assert not needed_features(other) & {"avx512bf16", "avx512vbmi", "avx512vnni"}
