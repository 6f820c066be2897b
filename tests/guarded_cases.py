"""Calls for ``guarded.py``: every kind of kernel at the tails of its rows, positions and widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch

from tests import bundle_programs, lowbit_programs
from tests.attention_programs import Attention
from tests.cache_programs import Problem, Side
from tests.guarded import Case
from tests.lowbit_programs import Form, Weight
from tests.routing_inputs import scores
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.parser import parse
from tilewright.runtime.experts import HALVES, ExpertsForm, Gate, Product, experts_forward
from tilewright.runtime.program import Program
from tilewright.runtime.targets import host_target, resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Where = tuple[str, str]
MASKS = ("none", "bool", "add", "rows")
MLIR: tuple[Where, ...] = (("host", "mlir"), ("x86-64-v3", "mlir"))
NUMBA: Where = ("scalar", "numba")
KEYS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65)


@cache
def _program(text: str, where: Where) -> Program:
    return Program(parse(text), target=where[0], backend=where[1])


def _numbers(*shape: int, dtype: str = "f32") -> torch.Tensor:
    made = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=made).to(DTYPES[dtype])


def _wide(x: torch.Tensor, gap: int) -> torch.Tensor:
    """The same with rows further apart than they are long."""
    return torch.nn.functional.pad(x, (0, gap))[..., : x.shape[-1]]


def _turned(x: torch.Tensor) -> torch.Tensor:
    """The same with its columns in one piece."""
    return x.mT.contiguous().mT


PLACED: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x,
    lambda x: _wide(x, 3),
    lambda x: _wide(x, 1),
    _turned,
)


def attention(
    where: Where, form: Attention, rows: Sequence[int], keys: Sequence[int]
) -> Iterator[Case]:
    """Grouped heads, memory placed in turns in each of the ways."""
    program = _program(form.text(), where)
    for at, (n, m) in enumerate(itertools.product(rows, keys)):
        q = _numbers(1, 4, n, form.head, dtype=form.dtype)
        k, v = (_numbers(1, 2, m, d, dtype=form.dtype) for d in (form.head, form.value_head))
        extra = []
        if form.mask in ("bool", "rows"):
            extra = [_numbers(1, 1, 1 if form.mask == "rows" else n, m) > -0.5]
            extra = [extra[0].view(1, 1, 1, 1, m)] if form.mask == "rows" else [extra[0][:, None]]
        elif form.mask == "add":
            extra = [_numbers(1, 1, 1, n, m, dtype=form.dtype)]
        place = PLACED[at % len(PLACED)]
        yield Case(f"{where} {form} N={n} M={m} {at % 4}", program, (q, place(k), place(v), *extra))


def rows_of(
    where: Where, text: str, dtypes: Sequence[str], widths: Sequence[int]
) -> Iterator[Case]:
    """Kernels of rows and elements: [N, M] of each dtype."""
    program = _program(text, where)
    for at, (n, m) in enumerate(itertools.product((1, 2, 5), widths)):
        given = tuple(PLACED[at % 3](_numbers(n, m, dtype=dtype)) for dtype in dtypes)
        yield Case(f"{where} {program.module.main.name} {n}x{m}", program, given)


def low_bit(where: Where, form: Form, rows: Sequence[int], blocks: int = 2) -> Iterator[Case]:
    """Products with packed weights."""
    lanes = 1 if where == NUMBA else lowbit_programs.lanes_of(where[0])
    program = lowbit_programs.program(form, *where)
    for n in rows:
        given = lowbit_programs.draw(form, lanes, n, blocks, 0).inputs
        yield Case(f"{where} {form} rows={n}", program, tuple(lowbit_programs.tensors(form, given)))


def rounding(where: Where, length: int, group: int) -> Iterator[Case]:
    """The kernel that rounds rows to bytes."""
    from tilewright.ir.dtypes import TABLE

    for name in ("f32", "bf16"):
        kernel = lowbit_programs.rounding(length, group, TABLE[name], *where)
        for n in (1, 3):
            x = _numbers(n, length, dtype=name)
            yield Case(f"{where} bytes of {n}x{length} {name}", kernel, (x,))


def caches(where: Where, problem: Problem, tokens: Sequence[int]) -> Iterator[Case]:
    """Attention over keys and values of few bits."""
    program = _program(problem.text(), where)
    for count in tokens:
        shape = (*problem.shape[:4], count)
        given, _, _ = Problem(problem.keys, problem.values, shape).inputs()
        made = tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in given)
        yield Case(f"{where} cache {problem.keys.form} {shape}", program, made)


def routing(where: Where, tokens: Sequence[int], experts: int = 12, k: int = 3) -> Iterator[Case]:
    """Choices of experts, their ranks and counts."""
    text = f"""graph choose<T>(%x: tensor<T x {experts} x f32>) {{
  %w, %i = tensor.top_k %x {{k = {k}}}
  %p = tensor.softmax %w {{axis = 1}}
  %r = tensor.prefix_sum %p {{axis = 1}}
  return %i, %p, %r
}}"""
    program = _program(text, where)
    for count in tokens:
        x = scores(np.random.default_rng(count), count, experts, k, "different")
        yield Case(f"{where} routing {experts} T={count}", program, (_wide(x, 1),))


def experts(dtype: str, sizes: Sequence[tuple[int, int]], tokens: Sequence[int]) -> Iterator[Case]:
    """Layers of experts, from the plan to the sums of a token's results."""

    def call(*given: torch.Tensor) -> list[torch.Tensor]:
        first, bias, down, x, ids, weights = given
        products = (Product(first, bias, False),), Product(down, None, False)
        return [experts_forward(ExpertsForm(*products, Gate("silu"), HALVES), x, ids, weights)]

    for (hidden, inner), count in itertools.product(sizes, tokens):
        layer = [_numbers(5, *shape, dtype=dtype) for shape in ((2 * inner, hidden), (2 * inner,))]
        layer.append(_numbers(5, hidden, inner, dtype=dtype))
        ids = torch.stack([torch.randperm(5)[:2] for _ in range(count)])
        given = (_numbers(count, hidden, dtype=dtype), ids, torch.rand(count, 2))
        yield Case(f"experts {dtype} {hidden}x{inner} T={count}", call, (*layer, *given))


OFF_BY_ONE = """
tile beyond<N>(%x: buffer<N x f32, unit 0>, %o: buffer<N x f32, unit 0>)
    with {grid = [[size(N), 1]], outputs = 1} {
  %n = tile.block {dim = 0}
  %by = math.const {value = BY, type = index}
  %at = math.add %n, %by
  %v = tile.load %x, %at {dims = [-1], layout = local(1)}
  tile.store %v, %o, %n {dims = [-1]}
  return
}
"""


def planted(by: int) -> Iterator[Case]:
    """A program that reads one element too far, on the one side or the other."""
    text = OFF_BY_ONE.replace("BY", str(by))
    kernel = make_tile_kernel(parse(text).main, resolve_target("host"), "mlir")
    yield (
        Case("right before", kernel, (_numbers(5),))
        if not by
        else Case(f"planted {by}", kernel, (_numbers(16),))
    )


U3 = Form((Weight("u3", 20, zeros="u8", scales="bf16"),), 33, 0, ("bias",))
BYTES = Form((Weight("u4", 32, zeros="u8"), Weight("u2", 32, zero=1)), 96, 32, ("silu",))
CACHE = Problem(
    Side(CacheForm("lanes", 4, 20, "token", 7)), Side(CacheForm("codes", 2, 24, "channel", 32)),
    (1, 2, 2, 1, 0),
)  # fmt: skip


def fast() -> Iterator[Case]:
    """A few of each kind, the host's lanes and AVX2's; each form has to be compiled."""
    lanes = host_target().lanes
    host, avx2 = MLIR
    causal = Attention(20, 24, "f32", causal=True, mask="bool")
    yield from attention(host, causal, (1, 2 * lanes + 1), (1, 17, 65))
    yield from attention(avx2, Attention(20, 24, "bf16", mask="rows"), (9, 17), (1, 33, 65))
    yield from rows_of(host, bundle_programs.ELEMENTWISE, ("f32", "bf16"), WIDTHS)
    for where in MLIR:
        yield from rows_of(where, bundle_programs.ROW_SUMS, ("f32",), WIDTHS)
    yield from low_bit(host, U3, (3,))
    yield from low_bit(avx2, BYTES, (1,))
    yield from caches(host, CACHE, (1, 33, 129))
    yield from routing(host, (1, 5, 17))
    yield from experts("f32", ((17, 9),), (1, 7))
    yield from rows_of(NUMBA, bundle_programs.ROW_SUMS, ("f32",), (1, 5))


WHERE = (*MLIR, NUMBA)  # Numba is slow to compile, and one lane has no tails: few of its calls


def all_attention() -> Iterator[Case]:
    """All row counts to two vectors and one, keys around blocks, heads, dtypes, masks."""
    for where in WHERE:
        rows = (1, 2) if where == NUMBA else range(2 * resolve_target(where[0]).lanes + 2)
        for form in _attentions()[:: 7 if where == NUMBA else 1]:
            yield from attention(where, form, rows, KEYS)


def all_rows() -> Iterator[Case]:
    """Rows of every length to two vectors and one."""
    for where, (text, dtypes) in itertools.product(WHERE, TEXTS):
        lanes = resolve_target(where[0]).lanes
        widths = (1, 5) if where == NUMBA else range(1, 2 * lanes + 2)
        yield from rows_of(where, text, dtypes, widths)


def all_low_bit() -> Iterator[Case]:
    """Every width of code and order of bits."""
    for where in WHERE:
        found = _low_bits(where, resolve_target(where[0]).lanes)
        yield from itertools.islice(found, 40 if where == NUMBA else None)


def all_caches() -> Iterator[Case]:
    """Keys and values of few bits, by token and by channel."""
    for where in WHERE:
        for bits, by, n in _CACHES[:: 9 if where == NUMBA else 1]:
            forms = [CacheForm(kind, bits, 20 + 4 * bits, by, 32) for kind in ("lanes", "codes")]
            yield from caches(where, Problem(*map(Side, forms), (1, 2, 2, n, 0)), KEYS)


def all_experts() -> Iterator[Case]:
    """Choices of experts, and layers of them."""
    for where in WHERE:
        lanes = resolve_target(where[0]).lanes
        for tokens, count, k in ((range(1, 2 * lanes + 2), 12, 3), ((1, 7, 33), 70, 9)):
            yield from routing(where, tokens, count, k)
    for dtype in DTYPES:
        yield from experts(dtype, ((1, 1), (17, 9), (33, 20), (64, 32)), range(1, 20))


def everything() -> Iterator[Case]:
    """All of these."""
    for some in (fast, all_rows, all_low_bit, all_caches, all_experts, all_attention):
        yield from some()


def _attentions() -> list[Attention]:
    """Heads of every remainder, each dtype with two kinds of mask."""
    found = []
    for at, (head, dtype) in enumerate(itertools.product((5, 40, 64), DTYPES)):
        for mask in (MASKS[at % 4], MASKS[(at + 2) % 4]):
            found.append(Attention(head, head + 8 * (at % 2), dtype, at % 3 == 0, mask))
    return found


_CACHES = list(itertools.product((1, 2, 3, 4, 5, 8), ("token", "channel"), (1, 2, 20)))[::2]
TEXTS = (
    (bundle_programs.ELEMENTWISE, ("f32", "bf16")),
    (bundle_programs.ROW_SUMS, ("f32",)),
)


def _low_bits(where: Where, lanes: int) -> Iterator[Case]:
    """Every width and order, with what may stand beside the codes, in turns."""
    zeros, scales = ("", "u8", "f16", "bf16"), ("f16", "bf16", "f32", "e8m0")
    for at, (bits, order) in enumerate(itertools.product(range(1, 9), ("quads", "halves"))):
        group = (32, 20, 7, 64)[at % 4]
        weight = Weight(f"u{bits}", group, order, 0, zeros[at % 4], scales[at // 2 % 4])
        for activation in (0, weight.group):
            end = (("bias",), ("residual",), ())[at % 3]
            form = Form((weight,), (33, 65, 96, 31)[at % 4], activation, end)
            yield from low_bit(where, form, (1, 2, 3, 8, 9, 17), 1 + at % 3)
    for length, group in ((33, 20), (96, 32), (7, 7), (65, 64)):
        yield from rounding(where, length, group)


SETS: dict[str, Callable[[], Iterator[Case]]] = {
    "fast": fast,
    "rows": all_rows,
    "low-bit": all_low_bit,
    "caches": all_caches,
    "experts": all_experts,
    "attention": all_attention,
    "everything": everything,
    "planted": lambda: itertools.chain(planted(0), planted(1), planted(-1)),
}
