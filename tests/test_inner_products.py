"""Programs that make their own keys, values or queries: through memory and inside one kernel.

Both against float64 of the program as written; which of them a call takes is up to the cost model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.attention_programs import distances
from tests.cache_programs import Side
from tests.test_remade_kernels import Problem, expected
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Module
from tilewright.ir.errors import BindError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_remake import Remake
from tilewright.ir.parser import parse
from tilewright.passes.inner_products import cut_products, inner_products, made_again
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.runtime.made_again import MadeAgain
from tilewright.runtime.program import Program
from tilewright.runtime.threads import set_num_threads

SIZES = ("B", "H", "G", "N", "M")
ROTATED = """
  %first = tensor.slice %k {axis = 3, start = 0, stop = HALF}
  %second = tensor.slice %k {axis = 3, start = HALF, stop = HEAD}
  %minus = math.neg %second
  %turned = tensor.concat %minus, %first {axis = 3}
  %kc = math.mul %k, %cos
  %ks = math.mul %turned, %sin
  %kr = math.add %kc, %ks"""
SPELT_OUT = """
  %first = tensor.slice %k {axis = 3, start = 0, stop = HALF}
  %second = tensor.slice %k {axis = 3, start = HALF, stop = HEAD}
  %c = tensor.slice %cos {axis = 1, start = 0, stop = HALF}
  %s1 = tensor.slice %sin {axis = 1, start = 0, stop = HALF}
  %ac = math.mul %first, %c
  %bs = math.mul %second, %s1
  %left = math.sub %ac, %bs
  %bc = math.mul %second, %c
  %as = math.mul %first, %s1
  %right = math.add %bc, %as
  %kr = tensor.concat %left, %right {axis = 3}"""
KINDS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LOST = {"f32": 3e-5, "f16": 4e-3, "bf16": 3e-2}  # keys are rounded, too
TENSOR_PASSES = TO_KERNELS[: [p.name for p in TO_KERNELS].index("to_stream")]
ROPES = {"": "\n  %kr = math.mul %k, %cos", "rotated": ROTATED, "spelt out": SPELT_OUT}


@dataclass(frozen=True)
class Made:
    """Attention whose letters in ``made`` are products; sizes B, H, G, N, M."""

    made: str = "kv"
    width: int = 24
    head: int = 32
    value_head: int = 20
    rope: str = "rotated"
    shape: tuple[int, int, int, int, int] = (1, 2, 2, 1, 70)
    dtype: str = "f32"

    @property
    def text(self) -> str:
        x, d, e = self.width, self.head, self.value_head
        given = {
            "q": [f"%y: tensor<B x N x {x} x f32>", f"%wq: tensor<H x G x {x} x {d} x f32>"],
            "k": [f"%x: tensor<B x M x {x} x f32>", f"%wk: tensor<H x {x} x {d} x f32>"],
            "v": [f"%x: tensor<B x M x {x} x f32>", f"%wv: tensor<H x {x} x {e} x f32>"],
        }
        read = {
            "q": f"%q: tensor<B x H x G x N x {d} x f32>",
            "k": f"%k: tensor<B x H x M x {d} x f32>",
            "v": f"%v: tensor<B x H x M x {e} x f32>",
        }
        params = [p for c in "qkv" for p in (given[c] if c in self.made else [read[c]])]
        params += [f"%{name}: tensor<M x {d} x f32>" for name in ("cos", "sin")]
        products = {
            "q": '%q = tensor.contract %y, %wq {equation = "bnc,hgcd->bhgnd"}',
            "k": '%k = tensor.contract %x, %wk {equation = "bmc,hcd->bhmd"}',
            "v": '%v = tensor.contract %x, %wv {equation = "bmc,hce->bhme"}',
        }
        lines = [products[c] for c in "qkv" if c in self.made]
        rope = ROPES[self.rope].replace("HALF", str(d // 2)).replace("HEAD", str(d))
        taken = ", ".join(dict.fromkeys(params)).replace("f32", self.dtype)
        return (
            f"graph f<B, H, G, N, M>({taken}) {{\n  "
            + "\n  ".join(lines)
            + rope
            + """
  %s = tensor.contract %q, %kr {equation = "bhgnd,bhmd->bhgnm"}
  %p = tensor.softmax %s {axis = 4, safe = true}
  %o = tensor.contract %p, %v {equation = "bhgnm,bhme->bhgne"}
  return %o }"""
        )

    @property
    def module(self) -> Module:
        return parse(self.text)

    def inputs(self, seed: int = 0) -> list[Any]:
        rng, sizes = np.random.default_rng(seed), dict(zip(SIZES, self.shape, strict=True))
        found = []
        for p in self.module.main.params:
            shape = [s.evaluate(sizes) for s in p.type.shape]  # type: ignore[union-attr]
            loud = (self.width if p.hint.startswith("w") else self.head) ** 0.25
            numbers = torch.from_numpy(rng.standard_normal(shape) / loud)
            found.append(numbers.to(KINDS[self.dtype]).float().numpy())
        return found


def chosen(program: Program) -> MadeAgain:
    assert isinstance(program._single, MadeAgain)
    return program._single


def check(made: Made, **options: Any) -> None:
    """Both ways, and the program's own choice."""
    module, inputs = made.module, made.inputs()
    (want,) = evaluate(module, *inputs, precision="f64")
    program = Program(module, **options)
    tensors = tuple(torch.from_numpy(x).to(KINDS[made.dtype]) for x in inputs)
    results = {"as chosen": program(*tensors)[0]}
    if set(made.made) & set("kv"):
        own = chosen(program)
        choice = own.choice(dict(zip(SIZES, made.shape, strict=True)))
        for inside in (True, False):
            results[f"inside: {inside}"] = own._run(replace(choice, inside=inside), tensors)[0]
    size = 1 + (np.abs(want).max() if want.size else 0)
    for way, got in results.items():
        assert got.dtype == KINDS[made.dtype]
        atol = LOST[made.dtype] * size
        np.testing.assert_allclose(got.float().numpy(), want, rtol=0, atol=atol, err_msg=way)


def problems(heads: st.SearchStrategy[int]) -> st.SearchStrategy[Made]:
    few, some = st.integers(1, 3), st.sampled_from([0, 1, 1, 2, 5])
    shape = st.tuples(few, few, few, some, st.integers(0, 40) | st.integers(120, 140))
    made = st.sampled_from(["k", "v", "kv", "qk", "qkv", "q"])
    widths = st.integers(2, 40)
    dtypes = st.sampled_from(["f32", "f32", *KINDS])
    return st.builds(Made, made, widths, heads, widths, st.sampled_from(list(ROPES)), shape, dtypes)


@given(problems(st.just(32)))
@settings(max_examples=5)
def test_any_program_in_the_interpreter(made: Made) -> None:
    check(made, backend="interpreter")


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@given(problems(st.just(32)))
@example(Made("kv", shape=(1, 2, 2, 1, 50), dtype="bf16"))
@settings(max_examples=1)
def test_any_program_in_machine_code(target: str | None, made: Made) -> None:
    check(made, target=target)


@given(problems(st.just(8)))
@settings(max_examples=1)
def test_any_program_with_numba(made: Made) -> None:
    pytest.importorskip("numba")
    check(made, backend="numba")


def test_what_has_no_kernel_through_memory_goes_inside() -> None:
    """A vector of sixteen lanes is made of both halves of a head of 16."""
    made = Made(head=16, shape=(1, 1, 1, 200, 40))
    program = Program(made.module, target="x86-64-v4")
    tensors = tuple(torch.from_numpy(x) for x in made.inputs())
    (want,) = evaluate(made.module, *made.inputs(), precision="f64")
    for _ in range(2):
        np.testing.assert_allclose(program(*tensors)[0].numpy(), want, rtol=0, atol=1e-4)
    assert "made inside one kernel (else: a roll by 8" in str(program.explain())


def test_no_memory_has_the_size_of_the_keys() -> None:
    """One row, 3000 tokens: 18 kB of scratch for each worker, where keys and values take 384 kB."""
    made = Made(head=32, value_head=32, shape=(1, 1, 1, 1, 3000))
    program = Program(made.module)
    program(*(torch.from_numpy(x) for x in made.inputs()))
    report = program.explain()
    assert "%k, %v made inside one kernel" in report.choices[0]
    *steps, inside = report.kernels
    assert len(steps) == 3 and not any(step.variants for step in steps)
    (form,) = inside.variants
    assert form.scratch_bytes < 3000 * 32 * 4 / 4


def test_rows_and_positions_of_one_size() -> None:
    """Self-attention: queries are products along an axis as long as that of the tokens."""
    made = Made("qkv", shape=(1, 2, 1, 9, 9))
    module = parse(made.text.replace(", N, M>", ", M>").replace(" N x", " M x"))
    inner = inner_products(run_passes(module, TENSOR_PASSES).main)
    assert inner is not None and inner.tokens is None
    assert [len(ops) for ops in (inner.along, inner.beside)] == [2, 1]
    tensors = tuple(torch.from_numpy(x) for x in made.inputs())
    own = chosen(Program(module, backend="interpreter"))
    choice = own.choice({"B": 1, "H": 2, "G": 1, "M": 9})
    (want,) = evaluate(made.module, *made.inputs(), precision="f64")
    for way in (True, False):
        got = own._run(replace(choice, inside=way), tensors)[0]
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 60])
def test_an_input_in_codes_is_unpacked_inside(rows: int) -> None:
    """Plain attention over what is projected from codes is one kernel; for few rows the input
    itself is weighed."""
    side = Side(CacheForm("codes", 5, 40, "token", 16), scales="f16")
    problem = Problem(side, 32, 20, shape=(1, 2, 2, rows, 70))
    program = Program(Module((problem.graph,)))
    given = problem.inputs()
    tensors = tuple(torch.from_numpy(given[name]) for name in program.inputs)
    want = expected(problem, given)
    for _ in range(2):
        np.testing.assert_allclose(program(*tensors)[0].numpy(), want, rtol=0, atol=1e-4)
    report = program.explain()
    assert "%k, %v made inside one kernel (their input lies in codes)" in report.choices[0]
    plain, inside = report.kernels
    assert not plain.variants and inside.stream.count("stream.remake") == (1 if rows == 1 else 2)


def decided(made: Made, shape: tuple[int, ...]) -> bool:
    own = chosen(Program(made.module, target="x86-64-v3"))
    return own.choice(dict(zip(SIZES, shape, strict=True))).inside


def test_rows_and_threads_decide() -> None:
    """Few rows make their own keys. Many would make them often; one head leaves threads idle."""
    made = Made("kv", 512, 64, 64)
    try:
        for threads, shape, inside in (
            (1, (1, 8, 4, 1, 4096), True),
            (1, (1, 8, 4, 512, 4096), False),
            (1, (1, 1, 4, 1, 4096), True),
            (8, (1, 8, 4, 1, 4096), True),
            (8, (1, 1, 4, 1, 4096), False),
            (8, (8, 1, 4, 1, 4096), True),
        ):
            set_num_threads(threads)
            assert decided(made, shape) is inside, (threads, shape)
    finally:
        set_num_threads(None)


def test_parts_have_the_results_of_the_whole() -> None:
    """Keys and values that are results, too; a name that is taken already."""
    made = Made("kv", rope="")
    text = made.text.replace("%q", "%k_made").replace("return %o", "return %k, %o, %v")
    module = parse(text)
    inner = inner_products(run_passes(module, TENSOR_PASSES).main)
    assert inner is not None and [op.results[0].hint for op in inner.along] == ["k", "v"]
    program = Program(module)
    tensors = [torch.from_numpy(x) for x in made.inputs()]
    want = evaluate(module, *made.inputs(), precision="f64")
    for got, right in zip(program(*tensors), want, strict=True):
        np.testing.assert_allclose(got.numpy(), right, rtol=1e-4, atol=1e-4)


def test_only_vectors_that_rows_share_are_cut() -> None:
    """Not scores, nor a bias that heads share, nor a row's product for a row."""
    linear = """graph f<H, N, M>(%q: tensor<H x N x 8 x f32>, %k: tensor<H x M x 8 x f32>,
        %v: tensor<H x M x 8 x f32>, %a: tensor<N x 4 x f32>, %b: tensor<M x 4 x f32>) {
      %bias = tensor.contract %a, %b {equation = "nr,mr->nm"}
      %s = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
      %t = math.mul %s, %bias
      %o = tensor.contract %t, %v {equation = "hnm,hmd->hnd"}
      return %o }"""
    layers = """graph f<N>(%x: tensor<N x 24 x f32>, %w: tensor<24 x 48 x f32>,
        %u: tensor<48 x 16 x f32>) {
      %v = tensor.contract %x, %w {equation = "nc,cd->nd"}
      %s = math.tanh %v
      %o = tensor.contract %s, %u {equation = "nd,de->ne"}
      return %o }"""
    for text in (linear, layers):
        assert inner_products(parse(text).main) is None


def test_made_again_is_the_same_program() -> None:
    graph = run_passes(Made().module, TENSOR_PASSES).main
    inner = inner_products(graph)
    assert inner is not None
    again = made_again(graph, inner.along)
    assert [isinstance(op, Remake) for op in again.body.ops] == [
        op in inner.along for op in graph.body.ops
    ]
    assert len(cut_products(graph, inner.along)) == 3


def test_bad_input() -> None:
    program = Program(Made().module)
    tensors = [torch.from_numpy(x) for x in Made().inputs()]
    with pytest.raises(BindError, match="%wk"):
        program(tensors[0], tensors[1], tensors[2][:, :-1], *tensors[3:])
    with pytest.raises(BindError):
        program(*tensors[:-1])
    with pytest.raises(BindError, match="must be a torch tensor"):
        program(tensors[0], None, *tensors[2:])  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["mlir", "numba"])
@pytest.mark.parametrize(("rows", "keys"), [(5, 7), (40, 131), (1, 1)])
def test_distances_for_scores(backend: str, rows: int, keys: int) -> None:
    """Norms of keys beside their scores: made beforehand, read like a bias."""
    program = Program(parse(distances(16, 8)), backend=backend)
    assert len(program.steps) == 2 and program.supported
    q, k, v = (torch.randn(n, d) for n, d in ((rows, 16), (keys, 16), (keys, 8)))
    (got,) = program(q, k, v)
    q, k, v = q.double(), k.double(), v.double()
    want = torch.softmax(q @ k.T - (k * k).sum(-1), -1) @ v
    assert float((got.double() - want).abs().max()) < 1e-5
