"""Each pass up to kernels keeps the meaning of drawn programs: evaluated before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import run_chain, run_streams, streamed
from tests.strategies import Program, assert_same, attention_programs, tensor_programs
from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.decompose import decompose
from tilewright.passes.partition import partition
from tilewright.passes.precision import precision
from tilewright.passes.reorder import reorder
from tilewright.passes.specialise import specialise
from tilewright.passes.split_sums import result_names
from tilewright.passes.to_stream import to_stream

Pass = Callable[[Module], Module]
TENSOR_PASSES: dict[str, Pass] = {
    "canonicalise": canonicalise,
    "decompose": decompose,
    "precision": precision,
    "both": lambda module: canonicalise(decompose(module)),
}
PROGRAMS = {
    "tensors": tensor_programs(),
    "special values": tensor_programs(special=True),
    "attention": attention_programs(empty=True),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_tensor_passes(kind: str) -> None:
    @given(PROGRAMS[kind], st.sampled_from(sorted(TENSOR_PASSES)))
    @settings(max_examples=80)
    def check(program: Program, name: str) -> None:
        changed = TENSOR_PASSES[name](program.module)
        assert_same(program.run(changed), program.run(), program.scale)

    check()


@pytest.mark.parametrize(
    ("kind", "least"), [("tensors", 0.6), ("special values", 0.6), ("attention", 1)]
)
def test_streaming(kind: str, least: float) -> None:
    """to_stream and canonicalise after it; at least this share of programs is streamed."""
    counts: Counter[bool] = Counter()

    @given(PROGRAMS[kind])
    @settings(max_examples=100)
    def check(program: Program) -> None:
        simple = canonicalise(decompose(program.module))
        try:
            stream = to_stream(simple)
        except UnsupportedError:
            counts[False] += 1
            return
        counts[True] += 1
        want = program.run()
        for module in (stream, canonicalise(stream)):
            names = result_names(module)
            if len(set(names)) == len(names):  # see test_partition on names that are not unique
                assert_same(run_streams(program, module), want, program.scale)
            elif len(module.graphs) == 1:
                assert_same(program.run(module), want, program.scale)

    check()
    assert counts[True] >= least * counts.total(), counts


@pytest.mark.parametrize("kind", ["tensors", "attention"])
def test_reordering_and_partition(kind: str) -> None:
    @given(PROGRAMS[kind], st.booleans())
    @settings(max_examples=100)
    def check(program: Program, reordered: bool) -> None:
        try:
            stream = streamed(program.module)
        except UnsupportedError:
            return
        want = program.run()
        stream = reorder(stream) if reordered else stream
        names = result_names(stream)
        if len(set(names)) == len(names):  # see test_partition on names that are not unique
            graphs = partition(stream).graphs
            assert_same(run_chain(program, graphs, names), want, program.scale)

    check()


@given(attention_programs(empty=True))
@settings(max_examples=40)
def test_attention_is_one_kernel_once_reordered(program: Program) -> None:
    stream = reorder(streamed(program.module))
    assert len(partition(stream).graphs) == 1


@given(tensor_programs(), st.sets(st.sampled_from(["N", "M", "K"])))
@settings(max_examples=60)
def test_specialised_programs(program: Program, names: set[str]) -> None:
    """Names that became numbers: the same meaning, at both levels."""
    known = {n: program.sizes[n] for n in names}
    graph = specialise(program.module.main, known)
    left = {n: v for n, v in program.sizes.items() if n not in names}
    special = Program(Module((graph,)), program.inputs, left)
    assert not names & set(graph.sizes)
    assert_same(special.run(), program.run(), program.scale)


@given(tensor_programs())
@settings(max_examples=60)
def test_canonical_form_is_a_fixed_point(program: Program) -> None:
    once = canonicalise(decompose(program.module))
    assert str(canonicalise(once)) == str(once)


@given(tensor_programs())
@settings(max_examples=40)
def test_passes_leave_their_input_alone(program: Program) -> None:
    before = str(program.module)
    try:
        stream = streamed(program.module)
        text = str(stream)
        partition(reorder(stream))
        assert str(stream) == text
    except UnsupportedError:
        pass
    assert str(program.module) == before
