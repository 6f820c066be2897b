"""Everything that one attention program is compiled for, and the index space of its scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.frontend.op_map.emitter import ONE, Emitter
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

DENSE, RAGGED, PAGED = "dense", "ragged", "paged"


Given = tuple[torch.dtype, tuple[bool, ...]]


@dataclass(frozen=True)
class CacheSide:
    """Keys or values in a low-bit cache; ``zeros``: they have some, else the constant ``zero``.
    ``shared``: the values are the keys."""

    form: CacheForm
    scales: torch.dtype
    zeros: bool
    zero: int
    shared: bool = False


@dataclass(frozen=True)
class Form:
    """What decides a program besides the score and mask functions. Batch, heads, lengths, pages
    and documents stay free.

    ``groups`` query heads share a key head; ``widths`` are the head sizes of keys and values.
    ``mask`` (bool: take part; else added) and ``bias`` (added) are tensors over the scores, known
    by dtype and by which of their dimensions [B, H, N, M] are 1. ``used`` is the dtype of
    ``seqused_k``, ``table`` that of the block table, ``sinks`` that of the sinks; None: not given.
    ``heads_last``: the result is [B, N, H, E] (Hugging Face). ``keys`` and ``values`` say how those
    lie in a low-bit cache; None: they are tensors.
    """

    layout: str
    dtype: torch.dtype
    groups: int
    widths: tuple[int, int]
    scale: float | None
    causal: bool
    lse: bool = False
    largest: bool = False
    one_batch: bool = False
    page: int = 0
    used: torch.dtype | None = None
    table: torch.dtype | None = None
    sinks: torch.dtype | None = None
    mask: Given | None = None
    bias: Given | None = None
    heads_last: bool = False
    keys: CacheSide | None = None
    values: CacheSide | None = None


class Space:
    """The scores' dimensions by letter: b h n m, or b k g n m with grouped heads, without b if
    ragged. Makes the program's parameters, and positions that broadcast against the scores."""

    def __init__(self, e: Emitter, form: Form) -> None:
        self.e, self.form = e, form
        heads = "kg" if form.groups > 1 else "h"
        self.lead = ("" if form.layout == RAGGED else "b") + heads
        self.letters = self.lead + "nm"
        keys = Size.of("M") if form.layout != PAGED else Size.of("T") * form.page
        self.sizes = {"b": Size.of("B"), "n": Size.of("N"), "m": keys}
        self.sizes |= {"h": Size.of("H"), "k": Size.of("K"), "g": Size.of(form.groups)}
        self.parameters: dict[str, Value] = {}
        self._positions: dict[str, Value] = {}

    @property
    def heads(self) -> Size:
        """The number of query heads."""
        return self.sizes["k"] * self.form.groups if "k" in self.lead else self.sizes["h"]

    @property
    def key_heads(self) -> Size:
        return self.sizes["k" if "k" in self.lead else "h"]

    def parameter(self, name: str, shape: tuple[Size, ...], dtype: torch.dtype) -> Value:
        """The program's parameter of that name, made when first asked for."""
        if name not in self.parameters:
            self.parameters[name] = Value(TensorType(shape, ir_dtype(dtype)), name)
        return self.parameters[name]

    def shape(self, letters: str) -> tuple[Size, ...]:
        """A shape that broadcasts against the scores: 1 in all dimensions but these."""
        return tuple(self.sizes[c] if c in letters else ONE for c in self.letters)

    def position(self, letter: str) -> Value:
        """0, 1, 2, … along one dimension of the scores."""
        if letter not in self._positions:
            shape, axis = self.shape(letter), self.letters.index(letter)
            self._positions[letter] = self.e.iota(shape, axis, I64)
        return self._positions[letter]

    def head(self) -> Value:
        """The query head: k * groups + g."""
        if "k" not in self.lead:
            return self.position("h")
        first = self.e.op(m.Mul, self.position("k"), self.e.const(self.form.groups, I64))
        return self.e.op(m.Add, first, self.position("g"))

    def looked_up(self, name: str, letter: str, dtype: torch.dtype = torch.int64) -> Value:
        """``parameter[position]`` as i64, for a parameter along one dimension of the scores."""
        table = self.parameter(name, (self.sizes[letter],), dtype)
        return self.e.cast(self.e.op(t.Gather, table, self.position(letter), hint=name), I64)

    def over_scores(self, name: str, given: Given) -> Value:
        """A parameter [B, H, N, M] in the scores' dimensions."""
        dtype, ones = given
        whole = (self.sizes["b"], self.heads, self.sizes["n"], self.sizes["m"])
        shape = [ONE if one else s for one, s in zip(ones, whole, strict=True)]
        value = self.parameter(name, tuple(shape), dtype)
        if "k" not in self.lead:
            return value
        heads = (ONE, ONE) if ones[1] else (self.sizes["k"], self.sizes["g"])
        return self.e.reshape(value, (shape[0], *heads, *shape[2:]))

    def size(self, letter: str) -> Value:
        """A length as a number."""
        return self.e.op(m.SizeValue, size=self.sizes[letter], type=TensorType((), I64))
