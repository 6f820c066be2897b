"""Kernels whose tile programs are kept as text: of every family one or more, on CPUs and on GPUs.

Written for people to read when a lowering changes; whether the programs are right is for the tests
that run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tests.attention_forms import module_of
from tests.attention_programs import Attention
from tests.backends.gpu_corpus import BOTH
from tests.fused_programs import CASES
from tests.lowbit_programs import Form, Weight
from tests.routing_programs import ONE_SORT, groups, lowest
from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import BF16, F16, F32, I64, TABLE
from tilewright.ir.packing import Packing
from tilewright.ir.parser import parse
from tilewright.ir.target import Target, named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_threads.roles import roles_program
from tilewright.passes.to_tile.experts.combine import combine_program
from tilewright.passes.to_tile.experts.floating import grouped_program
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, tiling
from tilewright.passes.to_tile.experts.packed import packed_program
from tilewright.passes.to_tile.experts.packed_form import PackedForm, Stack
from tilewright.passes.to_tile.experts.plan import plan_program
from tilewright.passes.to_tile.lowbit.info import WeightForm
from tilewright.passes.to_tile.lower import routing_programs, to_tile
from tilewright.passes.to_tile.tables import with_tables

GPU = named_target("cuda-sm90")
WIDE, NARROW, PLAIN = map(named_target, ("x86-64-v4", "x86-64-v3", "scalar"))
SWIGLU = GateFunction("silu")
Programs = Iterable[Graph]
BEST_TWO = groups("%s", 'k = 3, ties = "torch", ordered = false', "%ids, %weights")


@dataclass(frozen=True)
class Kept:
    """A kernel's programs, and the lowerings to threads of which the texts are kept, too."""

    programs: Callable[[], Programs]
    threads: bool = False
    roles: bool = False

    def texts(self) -> str:
        """Tile programs, then those of threads, then with roles of warps."""
        made = list(self.programs())
        texts = [Module((program,)) for program in made]
        lowerings = [threads_program] * self.threads + [roles_program] * self.roles
        texts += [Module((lower(made[0], GPU),)) for lower in lowerings]
        return "\n".join(map(str, texts))


# ---- on CPUs


def lowered(text: str | Module, target: Target, rows: int = 0) -> Programs:
    module = parse(text) if isinstance(text, str) else text
    graphs = run_passes(module, TO_KERNELS).graphs
    return to_tile(Module(tuple(map(with_tables, graphs))), target, rows).graphs


def on_cpu(text: str | Module, target: Target = WIDE, rows: int = 0) -> Kept:
    return Kept(partial(lowered, text, target, rows))


def product(form: Form, rows: int, target: Target = WIDE) -> Kept:
    return on_cpu(form.text(target.lanes), target, rows)


def attention(target: Target, rows: int, head: int, dtype: str = "f32", **options: object) -> Kept:
    return on_cpu(Attention(head, head, dtype, **options).text(), target, rows)  # type: ignore[arg-type]


def grouped(rows: int, dtype: str = "f32", target: Target = WIDE, turned: bool = False) -> Kept:
    kind = TABLE[dtype]
    form = FloatForm(40, 24, kind, kind, 2, SWIGLU, F32, True, turned=turned, out=kind)
    return Kept(lambda: [grouped_program(form, target, tiling(form, target, rows))])


def packed(dtype: str, rows: int, integer: bool, gate: bool) -> Kept:
    kind = TABLE[dtype]
    packing = str(Packing.quads(kind.bits, WIDE.lanes, 32))
    weight = WeightForm(packing, kind, 0, None, F16, F32, None)
    stacks = (Stack(weight, integer, 2, (0, 1)) if gate else Stack(weight, integer, factor=True),)
    gated = SWIGLU if gate else GateFunction()
    form = PackedForm(96, 32, (stacks,), F32, gated, F32, not gate, F32, gate)
    return Kept(lambda: [packed_program(form, WIDE, rows)])


U4, U3 = Weight("u4", 32, zeros="f16"), Weight("u3", 32, zero=4)
F6, U8 = Weight("f6e3m2", 32), Weight("u8", 64, zeros="u8", scales="f32")
ON_CPU: dict[str, Kept] = {
    "attention_causal_v3": attention(NARROW, 0, 32, causal=True),
    "attention_few_rows": attention(WIDE, 4, 32),
    "attention_of_bf16": attention(WIDE, 0, 32, "bf16", mask="bool"),
    "attention_scalar": attention(PLAIN, 0, 16, mask="add"),
    "cache_u8_u4": on_cpu(module_of("cache u8, u4"), rows=1),
    "low_bit_u4_v3": product(Form((U4,), 128), 0, NARROW),
    "low_bit_u3_gate_and_up": product(Form((U3, U3), 96, end=("silu", "bias")), 4),
    "low_bit_f6": product(Form((F6,), 96, end=("residual",)), 0),
    "low_bit_u8_of_bytes": product(Form((U8,), 128, activation=64), 1),
    "routing_sort": on_cpu(ONE_SORT),
    "routing_groups": on_cpu(BEST_TWO, PLAIN),
    "experts_one_row": grouped(1),
    "experts_many_rows": grouped(32),
    "experts_of_bf16_turned": grouped(4, "bf16", turned=True),
    "experts_u4_of_bytes": packed("u4", 4, True, True),
    "experts_plan": Kept(lambda: [plan_program(12, 3, I64, F32, 8, WIDE)]),
    "experts_combine": Kept(lambda: [combine_program(3, 40, BF16, WIDE)]),
    "moments": on_cpu(CASES["mean and variance"].text),
    "label_smoothing": on_cpu(CASES["cross-entropy, labels smoothed"].text),
}

# ---- on GPUs


def from_corpus(name: str, threads: bool = False, roles: bool = False) -> Kept:
    return Kept(lambda: BOTH[name].programs(GPU), threads, roles)


def routed(text: str) -> Programs:
    for graph in run_passes(parse(lowest(text)), TO_KERNELS).graphs:
        units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
        yield from routing_programs(graph, GPU, units)


ON_GPU: dict[str, Kept] = {
    "attention_causal": from_corpus("attention bf16 D64 causal", True, True),
    "attention_of_f32": from_corpus("attention f32 D64", True),
    "attention_documents": from_corpus("attention bf16 D128 documents"),
    "attention_window": from_corpus("attention bf16 D128 window"),
    "attention_in_parts": from_corpus("attention bf16 D128 16 rows, in parts", True),
    "attention_pages": from_corpus("attention bf16 D128 pages, many rows"),
    "attention_ragged": from_corpus("attention bf16 D128 ragged, many rows"),
    "cache_u8_u4": from_corpus("attention bf16 D128 cache u8, u4, many rows"),
    "low_bit_u4": from_corpus("low-bit u4 16 rows", True, True),
    "low_bit_u8_many_rows": from_corpus("low-bit u8 many rows", True, True),
    "low_bit_u3": from_corpus("low-bit u3 16 rows"),
    "low_bit_f6": from_corpus("low-bit f6e3m2 many rows"),
    "experts_few_rows": from_corpus("experts 16 rows", True),
    "experts_many_rows": from_corpus("experts 128 rows"),
    "experts_plan": from_corpus("experts, order of tokens"),
    "routing_sort": Kept(lambda: routed(ONE_SORT)),
    "routing_groups": Kept(lambda: routed(BEST_TWO)),
}
KERNELS = {
    **{f"cpu/{name}": kept for name, kept in ON_CPU.items()},
    **{f"gpu/{name}": kept for name, kept in ON_GPU.items()},
}
