"""Experts' quantised weights as grouped kernels read them: stacks of experts of one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.experts.packed_form import Kind, Stack, byte_groups, reads_floats
from tilewright.runtime import huge_pages
from tilewright.runtime.experts.form import ALL, HALVES, Product
from tilewright.runtime.lowbit.linear import (
    check_numbers,
    flat_parts,
    for_target,
    in_pairs,
    weight_form,
    why_not_bytes,
)
from tilewright.runtime.quantized import words
from tilewright.runtime.quantized.rows import each
from tilewright.runtime.quantized.tensor import QuantizedTensor


@dataclass(frozen=True)
class Readers:
    """How the kernels of a device read weights: as ``repack`` gives them; ``in_bytes``: with
    activations as bytes where products ask for that."""

    device: torch.device
    repack: Callable[[QuantizedTensor], QuantizedTensor]
    in_bytes: bool


CPU = Readers(torch.device("cpu"), for_target, True)
Group = tuple[list[int], tuple[QuantizedTensor, ...]]  # numbers of experts, and their weights


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The weights of one product, or of gate and up. ``lookup``: kind of each expert and its place
    among those of its kind, i32 [E] each, if there are several kinds; ``tensors``: every stack's
    words [blocks, …], scales, zeros and factors f32 [E]. ``columns`` are those of one product."""

    length: int
    columns: int
    kinds: tuple[Kind, ...]
    lookup: tuple[torch.Tensor, ...]
    tensors: tuple[tuple[torch.Tensor, ...], ...]  # by kind and stack
    order: torch.Tensor | None
    copied: tuple[torch.Tensor, ...]  # what was copied of the weights,
    version: int  # and how often it had been written to then

    @property
    def fresh(self) -> bool:
        """Whether nothing was written to weights of which this has copies."""
        return not self.copied or self.version == _version(self.copied)

    @cached_property
    def floats(self) -> bool:
        """Whether some product reads x itself."""
        return reads_floats(self.kinds)

    @cached_property
    def byte_groups(self) -> tuple[int, ...]:
        """The sizes of groups in which some product reads x as bytes."""
        return byte_groups(self.kinds, self.length)

    @cached_property
    def own(self) -> tuple[torch.Tensor, ...]:
        return tuple(chain(*self.tensors))

    @cached_property
    def narrow(self) -> bool:
        """Whether all products that read floats read bf16 as it is."""
        stacks = [stack for kind in self.kinds for stack in kind if not stack.integer]
        return all(in_pairs(stack.weight, self.length) for stack in stacks)

    @cached_property
    def sides(self) -> tuple[PackedWeights, PackedWeights]:
        """Gate alone, and up alone."""
        return self._side(0), self._side(1)

    def _side(self, side: int) -> PackedWeights:
        kinds, tensors = [], list(self.tensors)
        for kind in self.kinds:
            if len(kind) == 1:
                kinds.append((replace(kind[0], taken=(side,)),))
            else:
                kinds.append((kind[side],))
        if len(self.kinds[0]) > 1:
            tensors = tensors[side::2]
        return replace(self, kinds=tuple(kinds), tensors=tuple(tensors))


def prepare(products: Sequence[Product], columns: str, readers: Readers = CPU) -> PackedWeights:
    """For ``products`` of the same rows: one, which holds gate and up if ``columns`` says so, or
    both. Raises UnsupportedError if no kernel reads such weights."""
    _check(products, readers.device)
    if len(products) > 1:
        columns = ALL
    kinds, tensors = [], []
    groups = list(_groups(products))
    for _, weights in groups:
        stacks = []
        for product, given in zip(products, weights, strict=True):
            stack, own = _stack(product, given, columns, readers)
            stacks.append(stack)
            tensors.append(own)
        kinds.append(tuple(stacks))
    factors = [
        factor.to(readers.device) for factor in _factors(products, [who for who, _ in groups])
    ]
    if factors:
        kinds = [tuple(replace(stack, factor=True) for stack in kind) for kind in kinds]
        tensors = [(*own, factor) for own, factor in zip(tensors, factors, strict=True)]
    first, copied = products[0], _copied(products, tensors)
    return PackedWeights(
        first.columns,
        first.rows if columns == ALL else first.rows // 2,
        tuple(kinds),
        tuple(table.to(readers.device) for table in _lookup([who for who, _ in groups])),
        tuple(tensors),
        next(_weights(products)).order,
        copied,
        _version(copied),
    )


def _weights(products: Sequence[Product]) -> Iterator[QuantizedTensor]:
    for product in products:
        assert not isinstance(product.weight, torch.Tensor)
        yield from product.weight if isinstance(product.weight, tuple) else (product.weight,)


def _copied(
    products: Sequence[Product], tensors: Sequence[Sequence[torch.Tensor]]
) -> tuple[torch.Tensor, ...]:
    """What kernels read elsewhere; tensors of inference mode do not tell when they change."""
    held = {part.data_ptr() for own in tensors for part in own}
    parts = (part for w in _weights(products) for name, part in w.parts() if name != "order")
    return tuple(p for p in parts if p.data_ptr() not in held and not p.is_inference())


def _version(copied: Sequence[torch.Tensor]) -> int:
    """Writing to a tensor adds to its number."""
    return sum(part._version for part in copied)


def _check(products: Sequence[Product], device: torch.device) -> None:
    if not all(product.quantised for product in products):
        raise UnsupportedError("some weights are floats, others quantised")
    order = next(_weights(products)).order
    for weight in _weights(products):
        if weight.words.device != device:
            raise UnsupportedError(f"weights on {weight.words.device}")
        if weight.axis != -1:
            raise UnsupportedError("weights that are packed along their rows")
        same = weight.order is order
        if not same and weight.order is not None and order is not None:
            same = torch.equal(weight.order, order)
        if not same:
            raise UnsupportedError("experts whose columns lie in other orders")
    if not all(product.rows and product.columns for product in products):
        raise UnsupportedError("weights without elements")


def _groups(products: Sequence[Product]) -> Iterator[Group]:
    """Experts whose weights are of one kind, and these as one tensor of each product."""
    if not any(isinstance(product.weight, tuple) for product in products):
        yield list(range(products[0].experts)), tuple(_weights(products))
        return
    found: dict[tuple[object, ...], list[int]] = {}
    for expert, weights in enumerate(zip(*(p.each for p in products), strict=True)):
        found.setdefault(tuple(map(_key, weights)), []).append(expert)
    for experts in found.values():
        yield experts, tuple(_stacked([p.each[e] for e in experts]) for p in products)


def _key(weight: QuantizedTensor) -> tuple[object, ...]:
    zeros = weight.zero_blocks
    return (
        weight_form(weight, None),
        weight.group,
        weight.scale_dtype,
        None if zeros is None else zeros.dtype,
    )


def _stacked(weights: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Weights of one kind one after the other; their factors are not in it."""
    first = weights[0]
    parts = {
        name: huge_pages.stack([getattr(weight, name) for weight in weights])
        for name, _ in first.parts()
        if name != "order"
    }
    return replace(first, shape=(len(weights), *first.shape), **parts)  # type: ignore[arg-type]


def _stack(
    product: Product, weight: QuantizedTensor, columns: str, readers: Readers
) -> tuple[Stack, tuple[torch.Tensor, ...]]:
    """How kernels read a weight [E, N, K] or [E, 2, N / 2, K], and the tensors."""
    weight = readers.repack(weight)
    lanes, apart = weight.layout.lanes, len(weight.shape) == 4
    half, odd = divmod(weight.shape[-2], 1 if apart else 2)
    both = columns != ALL
    if apart and not both and half % lanes:
        raise UnsupportedError(f"two matrices of {half} rows as one, in {lanes} lanes")
    if both and not apart and (columns != HALVES or half % lanes or odd):
        weight = _taken_apart(weight, columns)
    if weight.dtype.special:
        for e in range(weight.shape[0]):
            check_numbers(weight[e])
    zeros = weight.zero_blocks is not None
    integer = readers.in_bytes and product.activation == "int8"
    integer = integer and not why_not_bytes(weight.dtype, zeros, weight.layout.group)
    taken = (0, 1) if both else (0,)
    stack = Stack(weight_form(weight, None), integer, len(taken), taken)
    return stack, tuple(flat_parts(weight))


def _taken_apart(weight: QuantizedTensor, columns: str) -> QuantizedTensor:
    """[E, 2I, K] as [E, 2, I, K], gate and up, with the same codes."""
    experts, rows, length = weight.shape

    def split(x: torch.Tensor) -> torch.Tensor:
        if columns == HALVES:
            return x.view(experts, 2, rows // 2, -1)
        return x.view(experts, rows // 2, 2, -1).transpose(1, 2)

    def moved(blocks: torch.Tensor) -> torch.Tensor:
        values = split(words.unpack_groups(blocks, rows))
        return each(lambda x: words.pack_groups(weight.layout, x), values)

    zeros = weight.zero_blocks
    return replace(
        weight,
        shape=(experts, 2, rows // 2, length),
        words=each(lambda x: words.pack(weight.layout, x), split(weight.codes())),
        scale_blocks=moved(weight.scale_blocks),
        zero_blocks=None if zeros is None else moved(zeros),
    )


def _factors(products: Sequence[Product], groups: Sequence[list[int]]) -> list[torch.Tensor]:
    """Each stack's scale of the whole tensor for each expert; none if all are 1."""
    if all(weight.tensor_scale == 1.0 for weight in _weights(products)):
        return []
    return [
        torch.tensor([_factor(product, e) for e in experts])
        for experts in groups
        for product in products
    ]


def _factor(product: Product, expert: int) -> float:
    weight = product.weight
    assert not isinstance(weight, torch.Tensor)
    return (weight[expert] if isinstance(weight, tuple) else weight).tensor_scale


def _lookup(groups: Sequence[list[int]]) -> tuple[torch.Tensor, ...]:
    """By expert, its kind and its place in the kind's stacks."""
    if len(groups) == 1:
        return ()
    kinds, slots = torch.empty(2, sum(map(len, groups)), dtype=torch.int32)
    for kind, experts in enumerate(groups):
        at = torch.tensor(experts)
        kinds[at] = kind
        slots[at] = torch.arange(len(experts), dtype=torch.int32)
    return kinds, slots
