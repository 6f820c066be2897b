"""Products of all experts as plain tensors and a text, and back: what custom ops can take.

``"<kind> <transposed> <bias> <activation>"``, kind ``floats``, ``one`` quantised tensor or one for
``each`` expert, then for every quantised tensor a line with its parts and its form. The tensors are
the bias, if there is one, then the weight or the parts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tilewright.frontend.experts.weights import PACKED
from tilewright.frontend.quantize.form import Form
from tilewright.runtime.experts import Product
from tilewright.runtime.quantized.tensor import QuantizedTensor

T = TypeVar("T")
Stack = tuple[list[torch.Tensor], str]


def stack_of(
    module: torch.nn.Module, parameter: str, given: Mapping[str, torch.Tensor] | None
) -> Stack:
    """A product of a module of transformers' interface; ``given`` tensors count instead of its own.

    Dynamo traces this: no dictionaries of modules, no caches.
    """
    beside = f"{parameter}_bias"
    tensors: list[torch.Tensor] = []
    if module.has_bias:
        own: Any = getattr(module, beside)
        tensors.append(own if given is None else given.get(beside, own))
    biased = "x" if module.has_bias else "-"
    packed: Any = None if given is not None else getattr(module, parameter + PACKED, None)
    if packed is None:
        weight: Any = getattr(module, parameter) if given is None else given[parameter]
        tensors.append(weight)
        return tensors, f"floats {'x' if module.is_transposed else '-'} {biased} float"
    lines = [f"{'one' if hasattr(packed, 'words') else 'each'} - {biased} {packed.activation}"]
    for holder in packed.holders:
        tensors.extend([part for part in holder.parts if part is not None])
        lines.append(holder.text)
    return tensors, "\n".join(lines)


def product_from(tensors: Sequence[torch.Tensor], text: str) -> Product:
    """What ``stack_of`` took apart."""
    first, *lines = text.split("\n")
    kind, transposed, biased, activation = first.split()
    rest = iter(tensors)
    bias = next(rest) if biased == "x" else None
    if kind == "floats":
        return Product(next(rest), bias, transposed == "x")
    weights = []
    for line in lines:
        there, form = line.split(" ", 1)
        parts: Any = tuple(next(rest) if each == "x" else None for each in there)
        weights.append(Form.parse(form).tensor(parts))
    weight: QuantizedTensor | tuple[QuantizedTensor, ...]
    weight = weights[0] if kind == "one" else tuple(weights)
    return Product(weight, bias, activation=activation)


@dataclass
class _Kept:
    """A value, and the tensors that it was made for."""

    refs: list[weakref.ref[torch.Tensor]]
    places: list[int]
    value: Any

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, and have their memory still (``.data`` moves it)."""
        same = all(ref() is t for ref, t in zip(self.refs, tensors, strict=True))
        return same and self.places == [t.data_ptr() for t in tensors]


_kept: Any = WeakTensorKeyDictionary()  # last tensor -> key -> _Kept


def kept(tensors: Sequence[torch.Tensor], key: object, make: Callable[[Any], T]) -> T:
    """``make(tensors)``, kept as long as the last tensor lives and all are the same ones.

    What is kept is made of other tensors of the same memory, since it must not hold the key.
    """
    known: dict[object, _Kept] = _kept.setdefault(tensors[-1], {})
    found = known.get(key)
    if found is None or not found.fits(tensors):
        with torch.no_grad():
            value = make([t.detach() for t in tensors])
        places = [t.data_ptr() for t in tensors]
        found = known[key] = _Kept([weakref.ref(t) for t in tensors], places, value)
    result: T = found.value
    return result
