"""Attention over a low-bit cache as programs, with inputs and what float64 makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilewright.ir.cache_form import CacheForm

SOFTMAX = """
  %p = tensor.softmax %t {axis = 4, safe = true}
  %sum = tensor.contract %p, %v {equation = "bkgnm,bkme->bkgne"}
  %out = tensor.reshape %sum {shape = [size(B), size(K*G), size(N), EE]}
  return %out
}
"""
POSITIONS = """  %zero = math.const {value = 0, type = tensor<i64>}
  %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
  %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
  %never = math.const {value = -inf, type = tensor<f32>}
"""


@dataclass(frozen=True)
class Side:
    """Keys or values: their form, whether zeros differ, what scales are stored as."""

    form: CacheForm
    zeros: bool = True
    scales: str = "f32"

    @property
    def zero(self) -> int:
        return 0 if self.zeros else 1 << (self.form.bits - 1)

    def parameters(self, name: str) -> str:
        form, rows = self.form, f"{name.upper()}R"
        if form.by == "token":
            beside = f"tensor<B x K x {form.channel_groups} x M x {self.scales}>"
        else:
            beside = f"tensor<B x K x {name.upper()}S x {form.width} x {self.scales}>"
        words = f"%{name}_words: tensor<B x K x {rows} x {form.columns} x i32>"
        more = f", %{name}_zeros: {beside}" if self.zeros else ""
        return f"{words}, %{name}_scales: {beside}{more}"

    def sizes(self, name: str) -> list[str]:
        by_channel = [f"{name.upper()}S"] if self.form.by == "channel" else []
        return [f"{name.upper()}R", *by_channel]

    def operation(self, name: str) -> str:
        form = self.form
        operands = [f"%{name}_words", f"%{name}_scales", *[f"%{name}_zeros"] * self.zeros]
        operands += ["%tokens"] * (form.by == "channel")
        return (
            f'  %{name} = tensor.cached {", ".join(operands)} {{tokens = "{form.tokens}", '
            f'bits = {form.bits}, by = "{form.by}", group = {form.group}, length = size(M), '
            f"width = {form.width}, zero = {self.zero}, zeros = {str(self.zeros).lower()}}}\n"
        )

    def inputs(self, rng: Any, batch: int, heads: int, tokens: int) -> tuple[list[Any], Any]:
        """Words, scales and zeros, and the values [batch, heads, tokens, width] in float64."""
        form = self.form
        codes = rng.integers(0, 2**form.bits, (batch, heads, tokens, form.width), dtype=np.uint8)
        shape = (batch, heads, *form.scale_shape(tokens))
        host = {"f32": np.float32, "f16": np.float16}[self.scales]
        scales = (rng.uniform(0.5, 1.5, shape) / 2**form.bits).astype(host)
        zeros = rng.uniform(0, 2**form.bits - 1, shape).astype(host)
        wide = form.spread(zeros.astype(np.float64), tokens) if self.zeros else self.zero
        values = (codes - wide) * form.spread(scales.astype(np.float64), tokens)
        return [form.pack(codes), scales, *[zeros] * self.zeros], values


@dataclass(frozen=True)
class Problem:
    """Shapes: batch, key heads, query heads of a key head, queries, keys."""

    keys: Side
    values: Side
    shape: tuple[int, int, int, int, int] = (2, 2, 2, 1, 70)

    def text(self, mask: str = "") -> str:
        """The program; ``mask`` makes %seen of %n, %m and %table."""
        width, wide = self.keys.form.width, self.values.form.width
        tokens = "channel" in (self.keys.form.by, self.values.form.by)
        sizes = ["B", "K", "G", "N", "M", "T", *self.keys.sizes("k"), *self.values.sizes("v")]
        more = ", %tokens: tensor<M x u8>" if tokens else ""
        more += ", %table: tensor<T x i64>" if mask else ""
        chosen = f"{mask}\n  %t = math.select %seen, %s, %never" if mask else ""
        text = (
            f"graph attention<{', '.join(x for x in sizes if mask or x != 'T')}>"
            f"(%q: tensor<B x (K*G) x N x {width} x f32>, {self.keys.parameters('k')}, "
            f"{self.values.parameters('v')}{more}) {{\n"
            f"  %heads = tensor.reshape %q "
            f"{{shape = [size(B), size(K), size(G), size(N), {width}]}}\n"
            f"{self.keys.operation('k')}{self.values.operation('v')}"
            f'  %s = tensor.contract %heads, %k {{equation = "bkgnd,bkmd->bkgnm"}}\n'
            f"{POSITIONS if mask else ''}{chosen}{SOFTMAX}"
        )
        return text.replace("EE]", f"{wide}]").replace("%t {" if not mask else "\0", "%s {")

    def inputs(self, seed: int = 0) -> tuple[list[Any], Any, Any]:
        """The program's inputs (without a table), and keys and values in float64."""
        rng = np.random.default_rng(seed)
        batch, heads, groups, rows, tokens = self.shape
        width = self.keys.form.width
        q = rng.standard_normal((batch, heads * groups, rows, width)).astype("f4") / width**0.5
        k, keys = self.keys.inputs(rng, batch, heads, tokens)
        v, values = self.values.inputs(rng, batch, heads, tokens)
        count = "channel" in (self.keys.form.by, self.values.form.by)
        return [q, *k, *v, *[np.zeros(tokens, np.uint8)] * count], keys, values


def tolerance(q: Any, keys: Any, values: Any) -> float:
    """What rounding queries and weights to 2^-16 of a row's largest may do to a result.

    A score moves by at most 2^-16 max|q| sum|k|, a weight relative to the others by as much, and a
    result by twice that; a block of 128 weights adds 2^-16 sqrt(128) of the values, times four.
    """
    if not keys.size or not values.size:
        return 1e-6
    score = 2.0**-16 * np.abs(q).max() * np.abs(keys).sum(-1).max()
    return float((2 * score + 4 * 2.0**-16 * 128**0.5 + 2e-5) * np.abs(values).max())


def forms(tokens: str) -> st.SearchStrategy[CacheForm]:
    """Forms of any width and group."""

    def made(bits: int, width: int, by: str, share: int) -> CacheForm:
        group = 32 * share if by == "channel" else (16 * share if tokens == "codes" else share * 7)
        return CacheForm(tokens, bits, width, by, group)

    return st.builds(
        made,
        st.integers(1, 8),
        st.integers(2, 70) | st.sampled_from([16, 64, 128]),
        st.sampled_from(["token", "channel"]),
        st.integers(1, 5),
    )


def sides(tokens: str) -> st.SearchStrategy[Side]:
    return st.builds(Side, forms(tokens), st.booleans(), st.sampled_from(["f32", "f16"]))


def lengths() -> st.SearchStrategy[int]:
    """Around the sizes of chunks, blocks and vectors."""
    return st.integers(1, 40) | st.integers(120, 140) | st.integers(250, 300)


def problems(rows: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Problem]:
    some = st.sampled_from([1, 1, 2, 3, 20]) if rows is None else rows
    shape = st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2, 4]), some, lengths()
    )
    return st.builds(Problem, sides("lanes"), sides("codes"), shape)
