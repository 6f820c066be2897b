"""Kernels on CPUs whose work items are too few for the threads: items take parts of an axis.

A step of decoding with one key head, or the loss of a few tokens, is one work item: one thread
would do it all. Such a call is computed by two kernels (passes/to_tile/in_parts.py). How many parts
there are follows from the sizes of a call and the number of threads, never from what tensors hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph
from tilewright.ir.errors import BackendMissingError, BindError, UnsupportedError
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.in_parts import Partials, merging_graph, parts_name
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse
from tilewright.passes.to_tile.lower import first_of_parts, kernel_to_share
from tilewright.passes.to_tile.mask_range import find_mask_range
from tilewright.runtime.calls import (
    defined,
    indented,
    name_text,
    size_text,
    sizes_text,
    tuple_text,
)
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.kernel import TORCH_DTYPES, Kernel, Tensors
from tilewright.runtime.locks import Guard
from tilewright.runtime.logs import KERNELS
from tilewright.runtime.native_code import input_types, native_code

FEW = 4  # work items for each thread: of more, one that is left over costs little
MOST = 64  # parts of a work item
JOINING = 20.0  # microseconds that the second kernel takes, and memory between both
EACH = 0.2  # more for each part
# What an element at a position takes, in microseconds: to read it, or to compute with it for a row.
# (Of a Zen 4 and tensors in its caches. Others take longer: what is shared out pays there, too.)
READING, COMPUTING = 6e-5, 2e-5
MANY_ROWS = 32  # of a work item, if any number of rows may share a read


@dataclass(frozen=True)
class Sharing:
    """A kernel whose work items can take parts of an axis of the size ``inner``: a position takes a
    work item about so many ``microseconds``."""

    inner: Size
    microseconds: float

    @classmethod
    def of(cls, variant: Variant) -> Sharing | None:
        """That of a variant; None where work items compute all of their results."""
        if not variant.shared or variant.order:
            return None
        info = analyse(variant.graph)
        if info.splits or not info.inner.name:
            return None
        rows = variant.rows or MANY_ROWS
        return cls(info.inner.size, _elements(info) * max(READING, rows * COMPUTING))

    @property
    def least(self) -> int:
        """So many positions take long enough for two parts to be quicker."""
        return math.ceil(2 * JOINING / self.microseconds)


def _elements(info: KernelInfo) -> int:
    """How many numbers come at a position; axes of unknown length do not count."""
    comes = (s.Source, s.Gather, CachedStream)
    ops = [op for op in info.graph.body.ops if isinstance(op, comes) and info.varies(op.results[0])]
    lengths = [[a.size.constant or 1 for a in info.element(op.results[0])] for op in ops]
    return max(1, sum(map(math.prod, lengths)))


class SharedKernel(Kernel):
    """A kernel whose calls of few work items are computed in parts."""

    def __init__(self, few: InParts, *parts: Any) -> None:
        self.few = few
        super().__init__(*parts)

    def otherwise(self) -> Sequence[str]:
        """To the parts, if threads would have no work."""
        inner, least = size_text(self.few.sharing.inner), self.few.sharing.least
        return (
            f"if items % workers and items < {FEW} * workers and {inner} >= {least}:",
            f"    joined = kernel.few(tensors, items, workers, {inner})",
            "    if joined is not None:",
            "        return joined",
        )


class InParts:
    """The calls of a variant in parts; both kernels are made when the first needs them."""

    def __init__(self, variant: Variant, sharing: Sharing, target: Target, make: Maker) -> None:
        """``make`` makes the second kernel."""
        self.variant, self.sharing, self.target, self.make = variant, sharing, target, make
        self.guard = Guard()
        self._made: Pair | str | None = None

    def __call__(
        self, tensors: Tensors, items: int, workers: int, positions: int
    ) -> Tensors | None:
        """The results of a call with so many work items; None if they are as good as they are."""
        parts = parts_for(items, int(positions * self.sharing.microseconds), workers)
        pair = (self._made or self._make()) if parts > 1 else None
        return pair(tensors, parts) if isinstance(pair, Pair) else None

    def _make(self) -> Pair | str:
        """Both kernels, or why there are none."""
        with self.guard.lock:
            if self._made is None:
                self._made = self._pair()
            return self._made

    def _pair(self) -> Pair | str:
        name = self.variant.graph.name
        try:
            info = kernel_to_share(self.variant.graph)
            if info is None:
                return "no parts of it can be joined"
            if _leaves_little(info):
                return "masks may leave a few of the positions only"
            pair = Pair(self.variant, info, self.target, self.make)
        except (UnsupportedError, BackendMissingError, BindError) as error:
            KERNELS.debug("%s is not computed in parts: %s", name, error)
            return str(error)
        KERNELS.info("%s, calls of few work items as two kernels", name)
        return pair


def _leaves_little(info: KernelInfo) -> bool:
    """Whether masks know where what is seen begins (a window, documents): it may be so short that
    one thread is quicker, and only the kernel itself finds out."""
    mask = find_mask_range(info)
    return bool(mask.tests) or not all(bound.upper for bound in mask.bounds)


class Pair:
    """Two kernels, the first of which leaves something in memory for the second."""

    def __init__(self, variant: Variant, info: KernelInfo, target: Target, make: Maker) -> None:
        partials = Partials.of(info)
        types = [x for v in partials.buffers if isinstance(x := v.type, BufferType)]
        self.first = _first(variant, partials, types, target)
        merging = merging_graph(info)
        given = [p.hint for p in info.graph.params]
        self.read = [given.index(p.hint) for p in merging.params[len(types) :]]
        last = [len(x.shape) - 1 for x in types]
        units = (*last, *(variant.units[at] for at in self.read))
        self.second, _ = make(Variant(merging, 1, units, {}), target)
        self.between = _between(variant, types, parts_name(info.graph))

    def __call__(self, tensors: Tensors, parts: int) -> Tensors:
        """The results, newly allocated."""
        between = self.between(parts, *tensors)
        self.first(*tensors, *between)
        return self.second(*between, *(tensors[at] for at in self.read))


Maker = Callable[[Variant, Target], tuple[Call, object]]


def _first(variant: Variant, partials: Partials, types: list[BufferType], target: Target) -> Kernel:
    """The first kernel: it writes into the last of its inputs."""
    parts, native, _ = native_code(variant, target, _lower_first, (), "first of parts, ")
    return Kernel(
        variant.graph.name,
        [*input_types(variant), *types],
        (*variant.graph.sizes, *partials.count.names),
        parts.grid,
        0,
        parts.scratch_bytes,
        native,
        [v.hint for v in (*variant.graph.params, *partials.buffers)],
    )


def _lower_first(variant: Variant, target: Target) -> Graph:
    return first_of_parts(variant.graph, target, variant.rows, variant.unit_dims, variant.choice)


def _between(variant: Variant, types: list[BufferType], name: str) -> Callable[..., Tensors]:
    """The memory between both kernels, newly allocated for so many parts and such inputs."""
    text, names = sizes_text(variant.graph)
    names["empty"] = torch.empty
    made = []
    for at, type_ in enumerate(types):
        names[f"dtype{at}"] = TORCH_DTYPES[type_.dtype.name]
        shape = ", ".join(map(size_text, type_.shape))
        made.append(f"empty({shape}, dtype=dtype{at}, device='cpu')")
    head, end = f"def between({name_text(name)}, *tensors):", f"return {tuple_text(made)}"
    what = f"memory between parts of kernel {variant.graph.name}"
    return defined("\n".join([head, *indented([*text, end], 4)]), what, "between", names)


@lru_cache(maxsize=4096)
def parts_for(items: int, microseconds: int, workers: int) -> int:
    """Into how many parts work items that take so long are best cut: what the busiest thread does,
    and joining."""
    best, least = 1, float(-(-items // workers) * microseconds)
    for parts in range(2, MOST + 1):
        busiest = -(-items * parts // workers) * microseconds / parts
        if busiest + JOINING + EACH * parts < least:
            best, least = parts, busiest + JOINING + EACH * parts
    return best
