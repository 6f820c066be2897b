"""Whole kernels of the Numba back end against the program's meaning in float64."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.attention_programs import Attention
from tests.backends.numba_programs import close, from_memory, lowered, strided, to_memory
from tilewright.backends.numba.build import jit
from tilewright.backends.numba.emit import emit_source
from tilewright.backends.numba.kernel import NumbaKernel, spread
from tilewright.backends.numba.pointwise import dtype_of
from tilewright.ir.dtypes import F32, TABLE, DType
from tilewright.ir.errors import BackendMissingError, BindError, UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile

pytest.importorskip("numba")

# Of outputs, relative to the largest: sums of some hundred terms; 16-bit floats rounded twice.
TOLERANCE = {"f32": 4e-6, "f16": 2e-3, "bf16": 2e-2}
# batch, heads of k and v, heads of q for each of those, length of q, length of k and v
SHAPES = [(2, 3, 2, 0, 5), (2, 3, 2, 5, 0), (1, 1, 1, 1, 1), (2, 3, 2, 7, 70), (1, 2, 3, 70, 7)]
SHAPES += [(3, 2, 1, 33, 64), (0, 1, 1, 3, 4)]

ATTENTION = [
    Attention(1, 1, "bf16", causal=True),
    Attention(3, 5, "f32", causal=True),
    Attention(80, 80, "f32", mask="bool"),
    Attention(8, 8, "f16", causal=True, mask="add"),
]

LINEAR = """
graph linear<N, O>(%x: tensor<N x 20 x f32>, %w: tensor<O x 20 x f32>, %b: tensor<O x f32>) {
  %y = tensor.contract %x, %w {equation = "nk,ok->no"}
  %z = math.add %y, %b
  return %z
}"""

POINTWISE = """
graph gate<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>, %m: tensor<N x M x bool>) {
  %s = math.sigmoid %x
  %p = math.mul %s, %y
  %t = math.tanh %p
  %q = math.select %m, %t, %y
  return %q
}"""


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> Any:
    """Numbers that the dtype holds exactly, as the interpreter wants them."""
    if dtype.name == "bool":
        return rng.random(shape) < 0.7
    return from_memory(to_memory(rng.standard_normal(shape), dtype), dtype)


def attention_inputs(
    form: Attention, shape: tuple[int, ...], rng: np.random.Generator
) -> list[Any]:
    """q, k, v and a mask if there is one."""
    dtype = TABLE[form.dtype]
    b, k, g, n, m = shape
    shapes = [(b, k * g, n, form.head), (b, k, m, form.head), (b, k, m, form.value_head)]
    inputs = [draw(rng, s, dtype) for s in shapes]
    if form.mask != "none":
        kind = TABLE["bool"] if form.mask == "bool" else dtype
        inputs.append(draw(rng, (b, 1, 1, n, m), kind))
    return inputs


@pytest.mark.parametrize("form", ATTENTION, ids=str)
def test_attention_of_any_length(form: Attention) -> None:
    module, rng = parse(form.text()), np.random.default_rng(0)
    graph = lowered(form.text())
    kernel = NumbaKernel(graph, "attention")
    dtypes = [dtype_of(p.type) for p in kernel.inputs]
    for shape in SHAPES:
        inputs, sizes = attention_inputs(form, shape, rng), {"G": shape[2]}
        want = evaluate(module, *inputs, precision="f64", sizes=sizes)[0]
        arrays = [to_memory(x, d) for x, d in zip(inputs, dtypes, strict=True)]
        got = kernel(*arrays, sizes=sizes)[0]
        close(from_memory(got, TABLE[form.dtype]), want, TOLERANCE[form.dtype], str(shape))


@pytest.fixture(scope="module")
def linear() -> NumbaKernel:
    """A product with a bias whose inputs may have any strides."""
    return NumbaKernel(lowered(LINEAR, unit=False), "linear")


@pytest.fixture(scope="module")
def gate() -> NumbaKernel:
    """A pointwise kernel that was promised stride one in the last dimension."""
    return NumbaKernel(lowered(POINTWISE), "gate")


@pytest.mark.parametrize("kind", ["plain", "transposed", "every_other", "backwards", "unaligned"])
@pytest.mark.parametrize(("n", "o"), [(0, 3), (1, 1), (4, 32), (9, 77)])
def test_product_with_any_strides(linear: NumbaKernel, n: int, o: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    x, w, b = draw(rng, (n, 20), F32), draw(rng, (o, 20), F32), draw(rng, (o,), F32)
    want = evaluate(parse(LINEAR), x, w, b, precision="f64")[0]
    close(linear(*(strided(a, kind) for a in (x, w, b)))[0], want, 4e-6)


def test_stride_zero_and_read_only_inputs(linear: NumbaKernel) -> None:
    rng = np.random.default_rng(1)
    x = np.broadcast_to(draw(rng, (1, 20), F32), (11, 20))
    w, b = draw(rng, (13, 20), F32), np.broadcast_to(np.float32(2), (13,))
    assert not x.flags.writeable
    want = evaluate(parse(LINEAR), x, w, b, precision="f64")[0]
    close(linear(x, w, b)[0], want, 4e-6)


@pytest.mark.parametrize("kind", ["plain", "transposed", "every_other", "backwards"])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (6, 35), (65, 33)])
def test_pointwise_results_per_position(
    gate: NumbaKernel, shape: tuple[int, int], kind: str
) -> None:
    """The last dimension's stride is not one for some of these: those inputs are copied."""
    rng = np.random.default_rng(2)
    x, y, mask = draw(rng, shape, F32), draw(rng, shape, F32), draw(rng, shape, TABLE["bool"])
    want = evaluate(parse(POINTWISE), x * 30, y, mask, precision="f64")[0]
    close(gate(*(strided(a, kind) for a in (x * 30, y, mask)))[0], want, 4e-6)


def test_bits_do_not_depend_on_threads(linear: NumbaKernel) -> None:
    rng = np.random.default_rng(3)
    x, w, b = draw(rng, (123, 20), F32), draw(rng, (77, 20), F32), draw(rng, (77,), F32)
    results = [linear(x, w, b, threads=n)[0].tobytes() for n in (1, 2, 3, 16, 100)]
    assert len(set(results)) == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_every_item_is_done_once(total: int, threads: int) -> None:
    done: list[int] = []
    spread(lambda lo, hi: done.extend(range(lo, hi)), total, threads)
    assert sorted(done) == list(range(total))


def test_an_error_in_a_helper_thread_arrives() -> None:
    def work(lo: int, hi: int) -> None:
        raise ValueError(lo)

    with pytest.raises(ValueError, match=r"\d"):
        spread(work, 50, 4)


def test_results_into_given_arrays(linear: NumbaKernel) -> None:
    rng = np.random.default_rng(4)
    inputs = [draw(rng, shape, F32) for shape in ((5, 20), (6, 20), (6,))]
    out = np.full((5, 9), np.float32(-7))
    linear.run(inputs, [out[:, :6]], linear.bind(inputs))
    assert np.array_equal(out[:, :6], linear(*inputs)[0])
    assert (out[:, 6:] == -7).all()
    with pytest.raises(BindError, match="out_z"):
        linear.run(inputs, [np.empty((6, 5), np.float32).T], linear.bind(inputs))


def test_inputs_that_do_not_fit(linear: NumbaKernel) -> None:
    x, w, b = np.ones((5, 20), "f4"), np.ones((6, 20), "f4"), np.ones(6, "f4")
    with pytest.raises(BindError, match="%b"):
        linear(x, w, b[:5])
    with pytest.raises(BindError, match=r"%x.*float32.*float64"):
        linear(x.astype("f8"), w, b)
    with pytest.raises(BindError, match="takes 3 inputs"):
        linear(x, w)


def test_a_program_of_many_lanes_is_refused() -> None:
    graph = run_passes(parse(LINEAR), TO_KERNELS).graphs[0]
    wide = kernel_to_tile(graph, named_target("x86-64-v3"), 0, {})
    with pytest.raises(UnsupportedError, match="8 lanes"):
        emit_source(wide, "kernel")


def test_the_source_is_python_that_names_what_it_computes() -> None:
    source = emit_source(lowered(ATTENTION[1].text()), "attention")
    compile(source, "<test>", "exec")
    assert source.startswith('"""attention: items')
    assert "import numba" not in source
    for name in ("q_packed", "running_state", "s", "e"):
        assert name in source


def test_equal_programs_give_equal_text() -> None:
    def text() -> str:
        return emit_source(lowered(ATTENTION[0].text()), "attention")

    assert text() == text()


def test_without_numba_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendMissingError, match="pip install"):
        jit(lambda x: x)
