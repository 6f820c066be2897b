"""Attention in programs of threads with roles, for tests of the pass and of the CUDA text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from tests.attention_programs import Attention
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_threads.roles import roles_program
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

TARGET = named_target("cuda-sm90")


@dataclass(frozen=True)
class Case:
    """A form of attention and its blocks."""

    form: Attention
    schedule: BlockSchedule

    @cached_property
    def whole(self) -> Graph:
        """The program on whole blocks."""
        (graph,) = run_passes(parse(self.form.text()), TO_KERNELS).graphs
        units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
        return gpu_program(graph, TARGET, units, self.schedule)

    @cached_property
    def threads(self) -> Graph:
        """The program of threads."""
        return roles_program(self.whole, TARGET)


@dataclass(frozen=True)
class Call:
    """Inputs of a form: ``arrays`` as float64 (bool for masks), and what must come out."""

    arrays: tuple[np.ndarray, ...]
    want: np.ndarray
    sizes: dict[str, int]


def call_of(form: Attention, queries: int, keys: int, heads: int = 1, group: int = 1) -> Call:
    """Random inputs; a mask leaves a tenth out, and some rows nothing at all."""
    generator = torch.Generator().manual_seed(1000 * queries + keys)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[form.dtype]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    q = random(1, heads * group, queries, form.head)
    k, v = random(1, heads, keys, form.head), random(1, heads, keys, form.value_head)
    mask = None
    if form.mask == "bool":
        mask = torch.rand(1, 1, 1, queries, keys, generator=generator) > 0.1
        mask[..., ::7, :] = False
    elif form.mask == "add":
        mask = random(1, 1, 1, queries, keys)
    tensors = [q, k, v] if mask is None else [q, k, v, mask]
    arrays = tuple(x.numpy() if x.dtype == torch.bool else x.double().numpy() for x in tensors)
    sizes = {"B": 1, "K": heads, "G": group, "N": queries, "M": keys}
    return Call(arrays, form.reference(q, k, v, mask).numpy(), sizes)
