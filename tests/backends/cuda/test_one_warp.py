"""Few rows over caches in few bits, where one warp has a work item and its threads unpack words of
their own: the program of threads gives the bits of that on whole blocks, and the CUDA text in the
emulation what float64 gives of the numbers that the words stand for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.attention_forms import cached, module_of_form
from tests.backends.cuda.running import run_emulated
from tests.backends.cuda.test_operations import run
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.frontend.attention.form import Form
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import BF16, F16, F32, I32
from tilewright.ir.errors import VerifyError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.packing import Packing
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import BufferType, TensorType
from tilewright.passes.pipeline import kernel_passes, run_passes
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.lower import gpu_program, gpu_programs_in_parts, prepared
from tilewright.passes.to_tile.tables import with_tables
from tilewright.passes.to_tile.whole_blocks.schedule import blocks_of_one_warp

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
SM90 = named_target("cuda-sm90")
CAUSAL = 1  # the last query sees all tokens
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass(frozen=True)
class Case:
    """Four heads share keys; ``queries`` of each, ``tokens`` in the cache."""

    bits: tuple[int, int]
    width: int
    queries: int
    tokens: int
    by: str = "token"
    dtype: str = "bf16"
    causal: bool = False

    @property
    def form(self) -> Form:
        dtype = torch.float16 if self.dtype == "f16" else torch.bfloat16
        return cached(self.bits, self.by, dtype, self.width, self.causal)

    @cached_property
    def graph(self) -> Graph:
        (graph,) = map(
            with_tables, run_passes(module_of_form(self.form), kernel_passes(SM90)).graphs
        )
        return graph

    @property
    def rows(self) -> int:
        return 8 if 4 * self.queries <= 8 else 16

    @property
    def sizes(self) -> dict[str, int]:
        keys, values = self.form.keys, self.form.values
        assert keys is not None and values is not None
        rows = {"KR": keys.form.rows(self.tokens), "VR": values.form.rows(self.tokens)}
        groups = -(-self.tokens // 128)
        return {"B": 1, "K": 1, "N": self.queries, "M": self.tokens, "KS": groups, **rows}

    def inputs(self) -> list[Any]:
        """Any words; scales that give scores of about 1."""
        rng, found = np.random.default_rng(7), []
        for param in self.graph.params:
            type_ = param.type
            assert isinstance(type_, TensorType)
            shape = tuple(s.evaluate(self.sizes) for s in type_.shape)
            if type_.dtype == I32:
                found.append(rng.integers(-(2**31), 2**31, shape).astype(np.int32))
                continue
            bits = self.bits[0 if param.hint.startswith("k") else 1]
            x = rng.standard_normal(shape)
            if "scales" in param.hint:
                x = 0.3 * (0.1 + abs(x)) / 2 ** (bits - 1)
            elif "zeros" in param.hint:
                x = rng.uniform(0, 2**bits, shape)
            found.append(np.asarray(type_.dtype.round(x), np.float32))
        return found

    def exact(self, inputs: list[Any]) -> Any:
        """The results [heads, queries, width] in float64."""
        q, *rest = inputs
        sides, given = (self.form.keys, self.form.values), (rest[:3], rest[3:])
        k, v = (
            (x.form.unpack(words, self.tokens)[0, 0] - x.form.spread(zeros, self.tokens)[0, 0])
            * x.form.spread(scales, self.tokens)[0, 0]
            for x, (words, scales, zeros) in zip(sides, given, strict=True)
            if x is not None
        )
        s = q[0].astype(np.float64) @ k.T * self.width**-0.5
        if self.causal:
            i, j = np.arange(self.queries)[:, None], np.arange(self.tokens)[None]
            s = np.where(j <= i + CAUSAL * (self.tokens - self.queries), s, -np.inf)
        with np.errstate(all="ignore"):
            e = np.exp(s - s.max(-1, keepdims=True))
            return np.nan_to_num(e / e.sum(-1, keepdims=True)) @ v


@lru_cache(maxsize=8)
def programs(case: Case, target: Target = SM90) -> tuple[Graph, Graph]:
    """The program on whole blocks, and that of a warp's threads."""
    units = {p.hint: len(p.type.shape) - 1 for p in case.graph.params}  # type: ignore[union-attr]
    blocks = blocks_of_one_warp(analyse(prepared(case.graph)), target, case.rows)
    assert blocks is not None and blocks.warps == 1
    whole = gpu_program(case.graph, target, units, blocks, case.rows)
    return whole, threads_program(whole, target)


def evaluated(case: Case, graph: Graph, lanes: bool) -> Any:
    sizes = {n: v for n, v in case.sizes.items() if n in graph.sizes}
    (out,) = evaluate_graph(graph, *case.inputs(), sizes=sizes, lanes=lanes)
    return np.asarray(out, np.float64)


CASES = [
    Case((8, 4), 32, 1, 45),
    Case((8, 4), 32, 3, 100, causal=True),
    Case((8, 4), 64, 2, 33, dtype="f16"),
    Case((4, 4), 32, 2, 70, by="channel"),
    Case((2, 6), 64, 1, 70),
    Case((3, 5), 128, 1, 140),
    Case((1, 1), 128, 2, 129, causal=True),
    Case((8, 8), 80, 1, 64, causal=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_give_the_bits_of_whole_blocks(case: Case) -> None:
    """In the interpreter, which refuses elements of other lanes."""
    whole, threads = programs(case)
    units = {op.unit for op in threads.body.walk() if isinstance(op, t.MatrixProduct)}
    assert len(units) == 1 and "_turned" in units.pop()
    assert int(threads.attrs["shared_bytes"]) == 0
    assert not {"tile.barrier", "tile.copy_async"} & {op.name for op in threads.body.walk()}
    np.testing.assert_array_equal(evaluated(case, threads, True), evaluated(case, whole, False))


@needs_compiler
@settings(max_examples=8, phases=QUICK, deadline=None)
@given(
    bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    width=st.sampled_from([32, 64, 96, 128]),
    queries=st.integers(1, 4),
    tokens=st.integers(1, 300),
    by=st.sampled_from(["token", "channel"]),
    dtype=st.sampled_from(["bf16", "f16"]),
    causal=st.booleans(),
    apart=st.sampled_from([0, 1]),
)
@example((8, 4), 128, 1, 96, "token", "bf16", False, 0)
@example((8, 4), 32, 1, 33, "token", "bf16", False, 1)  # nothing lies at multiples of 16 bytes
@example((4, 4), 64, 1, 90, "token", "f16", False, 0)
@example((3, 7), 128, 2, 257, "token", "bf16", True, 0)
@example((4, 2), 64, 2, 64, "channel", "f16", False, 0)
def test_in_the_emulation(
    bits: tuple[int, int],
    width: int,
    queries: int,
    tokens: int,
    by: str,
    dtype: str,
    causal: bool,
    apart: int,
) -> None:
    """Which refuses accesses out of bounds: words are read a turn ahead."""
    case = Case(bits, width, queries, tokens, by, dtype, causal)
    if blocks_of_one_warp(analyse(prepared(case.graph)), SM90, case.rows) is not None:
        close(case, emulated(case, apart), case.inputs())


@needs_compiler
@pytest.mark.parametrize(("rows", "scales"), [(17, -13), (-17, 4), (-110, 0)])
def test_rows_of_any_size_meet_bytes(rows: int, scales: int) -> None:
    """bf16 has numbers that f16 lacks: rows and keys' scales times powers of two."""
    case = Case((8, 4), 32, 1, 40)
    inputs = case.inputs()
    inputs[0] = inputs[0] * np.float32(2.0) ** rows
    inputs[2] = np.asarray(F16.round(inputs[2] * 2.0**scales), np.float32)
    _, threads = programs(case)
    (got,) = run_emulated(threads, emit_cuda(threads, "kernel"), inputs, case.sizes)
    close(case, got, inputs)


@needs_compiler
@pytest.mark.parametrize("bits", [(8, 4), (4, 2)])
def test_weights_have_the_bits_of_f16(bits: tuple[int, int]) -> None:
    """A single token's values come back, rounded to f16 once."""
    case = Case(bits, 64, 1, 1, dtype="f16")
    inputs = case.inputs()
    want = case.exact(inputs)
    np.testing.assert_allclose(emulated(case)[0], want, rtol=2**-10, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_without_a_block(parts: int) -> None:
    """Three blocks of a cache whose memory ends with them; parts that have none read nothing."""
    case = Case((8, 4), 32, 1, 96)
    units = {p.hint: len(p.type.shape) - 1 for p in case.graph.params}  # type: ignore[union-attr]
    blocks = blocks_of_one_warp(analyse(prepared(case.graph)), SM90, case.rows)
    pair = gpu_programs_in_parts(case.graph, SM90, units, blocks, case.rows)
    first, merge = (threads_program(x, SM90) for x in pair)
    sizes, inputs = {**case.sizes, "parts": parts}, case.inputs()
    memory = run_emulated(first, emit_cuda(first, "kernel"), inputs, sizes)
    (got,) = run_emulated(merge, emit_cuda(merge, "kernel"), [*inputs, *memory], sizes)
    close(case, got, inputs)


def emulated(case: Case, apart: int = 0) -> Any:
    _, threads = programs(case)
    source = emit_cuda(threads, "kernel", range(len(threads.params)) if apart else ())
    (got,) = run_emulated(threads, source, case.inputs(), case.sizes, apart=apart)
    return got


def close(case: Case, got: Any, inputs: list[Any]) -> None:
    """Weights and results are rounded to the rows' dtype."""
    if case.by == "channel":  # the last tokens lie beside the cache
        want = evaluated(case, programs(case)[0], False)[0]
    else:
        want = case.exact(inputs)
    bound = 2e-2 if case.dtype == "bf16" else 2e-3
    np.testing.assert_allclose(got[0], want, rtol=0, atol=bound * max(1.0, np.abs(want).max()))


# ---- unpacking


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dim", [0, 1])
def test_unpacking_is_what_packings_say(bits: int, dim: int) -> None:
    group = Packing.quads(bits, 16, 1).chunk
    packing, rng = Packing.quads(bits, 16, group), np.random.default_rng(bits)
    lines, chunks = 16, 2
    codes = rng.integers(0, 1 << bits, (lines, chunks * packing.chunk)).astype(np.uint8)
    words = packing.pack(codes).reshape(packing.chunks(codes.shape[1]), packing.words, lines)
    b, (rows, columns) = TileBuilder(), (chunks, lines) if dim == 0 else (lines, chunks)
    wide = [rows, columns]
    wide[dim] *= packing.chunk
    tiles = [b.filled(0, I32, Layout(2).local(rows, columns)) for _ in range(packing.words)]
    attrs = {"packing": str(packing), "dim": dim, "dtype": F32, "layout": Layout(2).local(*wide)}
    op = t.Unpack(*tiles, **attrs)
    given = [words[:, w] if dim == 0 else words[:, w].T for w in range(packing.words)]
    got = op.reference(*given)
    np.testing.assert_array_equal(got if dim == 1 else got.T, codes)


@needs_compiler
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_every_code_in_cuda(bits: int, dtype: Any) -> None:
    """All codes at all places of their words, as numbers of every dtype, exactly."""
    packing = Packing.quads(bits, 16, 32)
    lines, chunks = 32, 8 * max(1, 256 // packing.chunk)
    rng = np.random.default_rng(bits)
    codes = rng.permuted(np.arange(chunks * packing.chunk)[None].repeat(lines, 0), axis=1)
    codes = (codes % (1 << bits)).astype(np.uint8)
    stored = packing.pack(codes).reshape(lines // 16, chunks, packing.words, 16)
    words = [
        stored[:, :, w].transpose(1, 0, 2).reshape(chunks, lines) for w in range(packing.words)
    ]
    text = unpacking(packing, chunks, dtype)
    source = emit_cuda(text, "kernel")
    (got,) = run_emulated(text, source, words, {})
    np.testing.assert_array_equal(got, codes.T.astype(np.float32))


def unpacking(packing: Packing, chunks: int, dtype: Any) -> Graph:
    """The program of a warp that unpacks words [chunks, 32], a column in each lane."""

    def memory(rows: int, dtype: Any, hint: str) -> Value:
        return Value(BufferType((Size.of(rows), Size.of(32)), dtype, 1), hint)

    b = TileBuilder()
    given = [memory(chunks, I32, f"words{w}") for w in range(packing.words)]
    out = memory(chunks * packing.chunk, F32, "out")
    lane, zero = Layout(2).local(chunks, 1).spatial(1, 32), b.index(0)
    words = [b.load(x, [zero, zero], (0, 1), lane, hint="words") for x in given]
    layout = lane.local(packing.chunk, 1)
    attrs = {"packing": str(packing), "dim": 0, "dtype": dtype, "layout": layout}
    codes = b(t.Unpack, *words, hint="codes", **attrs)
    codes = codes if dtype == F32 else b(m.Cast, codes, dtype=F32, hint="codes")
    b.store(codes, out, [zero, zero], (0, 1))
    attrs = {
        "grid": ((Size.of(1), 1),),
        "outputs": 1,
        "target": "cuda-sm90",
        "warps": 1,
        "stages": 1,
    }
    attrs |= {"bulk": False, "shared": (), "shared_bytes": 0}
    return Graph("tile", "unpacking", (), Region((*given, out), tuple(b.top.ops)), attrs)


def test_lanes_unpack_their_own_words() -> None:
    """A layout in which a lane has codes of another lane's word is refused."""
    b, packing = TileBuilder(), Packing.quads(8, 16, 32)
    words = b.filled(0, I32, Layout(2).spatial(8, 4))
    good = Layout(2).spatial(8, 4).local(4, 1)
    attrs = {"packing": str(packing), "dim": 0, "dtype": F32}
    assert b(t.Unpack, words, layout=good, **attrs).type.layout == good
    bad = Layout(2).local(4, 1).spatial(8, 4), Layout(2).spatial(4, 4).local(4, 1).spatial(2, 1)
    for layout in bad:
        with pytest.raises(VerifyError, match="lanes have codes of other words"):
            b(t.Unpack, words, layout=layout, **attrs)


@needs_compiler
def test_movmatrix() -> None:
    """Thread 4·r + c / 2 gives elements (r, c) and (r, c + 1), and gets (c, r) and (c + 1, r)."""
    matrices = np.arange(2 * 64, dtype=np.uint16).reshape(2, 8, 8)
    out = np.zeros((2, 32), np.uint32)
    run("const uint32_t* x, uint32_t* y", "y[t] = tw::movmatrix(x[t]);", matrices, out, threads=64)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(2, 8, 8), matrices.swapaxes(1, 2))
