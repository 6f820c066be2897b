"""GPTQ: words along K, a scale and a zero per group, columns in the order of their activations.

``qweight`` int32 [K * bits / 32, N], ``qzeros`` int32 [groups, N * bits / 32], ``scales`` f16
[groups, N], ``g_idx`` int32 [K] (the group of every column of the weight). Written by AutoGPTQ and
GPTQModel, among others; their sources are the format's reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tilewright.frontend.checkpoints.awq import is_awq
from tilewright.frontend.checkpoints.bits import unpack_fields, words_of
from tilewright.frontend.checkpoints.gptq_zeros import (
    Evidence,
    Sample,
    claimed_rule,
    stored_to_zero,
    weigh,
)
from tilewright.frontend.checkpoints.source import FLOATS, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import DataError

SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")
WIDTHS = (2, 3, 4, 8)
_SAMPLED_LAYERS = 12  # as many, from first to last, tell which rule a checkpoint follows
_SAMPLED_ROWS = 256  # of each


@dataclass(frozen=True)
class _Sizes:
    bits: int
    rows: int
    length: int
    group: int
    ordered: bool  # whether there is a g_idx with contents


def find(source: Source) -> Iterator[Weight]:
    """The GPTQ layers of a checkpoint. ``source.details["zero_rule"]`` overrules the data."""
    rule = lru_cache(maxsize=1)(lambda: zero_rule(source))

    def examine(source: Source, base: str) -> Weight:
        sizes = _sizes(source, base)
        there = tuple(base + s for s in SUFFIXES if base + s in source)
        return Weight(
            name=base,
            format="gptq",
            tensors=there,
            dtype=f"u{sizes.bits}",
            shape=(sizes.rows, sizes.length),
            group=sizes.group,
            zeros="whole, per group",
            zero_rule=rule,
            decode=lambda: decode(source, base, sizes, rule().rule),
        )

    bases = (b for b in source.bases(".qweight") if not is_awq(source, b))
    yield from examined(source, bases, SUFFIXES, "gptq", examine)


def decode(source: Source, base: str, sizes: _Sizes, rule: str) -> Parts:
    """The parts of one layer; ``rule`` as in gptq_zeros.py."""
    codes = _codes(source.tensor(f"{base}.qweight"), sizes.bits, sizes.length)
    scales = source.finite(f"{base}.scales").t()
    stored = source.tensor(f"{base}.qzeros")
    zeros = stored_to_zero(stored, sizes.bits, sizes.rows, rule)
    order = column_order(source, f"{base}.g_idx", sizes.group) if sizes.ordered else None
    if order is not None:
        codes = codes[:, order]
    return Parts(f"u{sizes.bits}", sizes.group, codes, scales, zeros.t(), order=order)


def column_order(source: Source, name: str, group: int) -> torch.Tensor | None:
    """int64 [K]: the columns by their group; None if they lie like that already.

    All 0 or all -1 is how some writers leave it unset; AutoGPTQ's kernels take it so, too.
    Raises DataError unless ``name`` gives every group its full number of columns.
    """
    index = source.tensor(name).to(torch.int64)
    length = len(index)
    groups = -(-length // group)
    low, high = (int(v) for v in torch.aminmax(index))
    if low == high and low in (0, -1):
        return None
    if low < 0 or high >= groups:
        raise DataError(
            f"{name} must hold groups from 0 to {groups - 1}; it goes from {low} to {high}"
        )
    counts = torch.bincount(index, minlength=groups)
    expected = torch.full((groups,), group)
    expected[-1] = length - group * (groups - 1)
    if not torch.equal(counts, expected):
        at = int((counts != expected).nonzero()[0])
        raise DataError(
            f"{name} must name group {at} {int(expected[at])} times, once per column; "
            f"it does {int(counts[at])} times"
        )
    order = torch.argsort(index, stable=True)
    return None if torch.equal(order, torch.arange(length)) else order


def zero_rule(source: Source) -> Evidence:
    """Which rule the stored zeros follow, by the data of some layers; see gptq_zeros.py."""
    asked = source.details.get("zero_rule")
    if asked is not None:
        return Evidence(str(asked), "option", claimed_rule(source.quantization), "as asked for")
    bases = [b for b in source.bases(".qweight") if not is_awq(source, b)]
    step = max(1, len(bases) // _SAMPLED_LAYERS)
    return weigh(_samples(source, bases[::step]), source.quantization)


def _samples(source: Source, bases: list[str]) -> Iterator[Sample]:
    for base in bases:
        try:
            sizes = _sizes(source, base)
            order = column_order(source, f"{base}.g_idx", sizes.group) if sizes.ordered else None
        except DataError:
            continue  # told where the layer is read
        rows = min(sizes.rows, _SAMPLED_ROWS)
        codes = _codes(source.tensor(f"{base}.qweight")[:, :rows], sizes.bits, sizes.length)
        codes = codes if order is None else codes[:, order]
        whole = sizes.length // sizes.group
        if not whole:
            continue
        grouped = codes[:, : whole * sizes.group].reshape(rows, whole, sizes.group)
        words = source.tensor(f"{base}.qzeros")[:whole]
        means = grouped.float().mean(-1)
        spread = float((grouped - means[..., None]).square().mean().sqrt())
        yield Sample(sizes.bits, words, sizes.rows, means, spread)


def _codes(words: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """uint8 [N, K] of words along K, int32 [K * bits / 32, N]."""
    return unpack_fields(words.t().contiguous(), bits, length)


def _sizes(source: Source, base: str) -> _Sizes:
    """What the shapes say; the configuration only where they leave a choice. Raises DataError."""
    weight = source.expect(f"{base}.qweight", ("I32",), (None, None))
    word_rows, rows = weight.shape
    why = f"beside {base}.qweight {list(weight.shape)}"
    scales = source.expect(f"{base}.scales", FLOATS, (None, rows), why)
    groups = scales.shape[0]
    zeros = source.expect(f"{base}.qzeros", ("I32",), (groups, None), why)
    claimed = settings_of(source.quantization)
    index = source.entries.get(f"{base}.g_idx")
    ordered = index is not None and index.count > 0
    if index is not None and ordered:
        source.expect(f"{base}.g_idx", ("I32", "I64"), (None,), why)
        fits = [b for b in WIDTHS if words_of(b, index.count) == word_rows]
    else:
        fits = [b for b in WIDTHS if word_rows * 32 % b == 0]
    fits = [b for b in fits if words_of(b, rows) == zeros.shape[1]]
    if not fits:
        told = f", {base}.g_idx {list(index.shape)}" if index is not None else ""
        raise DataError(
            f"{base}.qweight {list(weight.shape)} and {base}.qzeros {list(zeros.shape)} must hold "
            f"codes of 2, 3, 4 or 8 bits of {rows} rows{told}; no width fits both"
        )
    bits = claimed["bits"] if claimed["bits"] in fits else fits[-1]
    length = index.count if index is not None and ordered else word_rows * 32 // bits
    group = _group(base, length, groups, claimed["group_size"])
    return _Sizes(bits, rows, length, group, ordered)


def _group(base: str, length: int, groups: int, claimed: int) -> int:
    """Columns of a group. Raises DataError if no size gives that many groups."""
    size = length if claimed == -1 else claimed
    if size > 0 and -(-length // size) == groups:
        return size
    if groups and length % groups == 0:
        return length // groups
    told = f"; the configuration's {claimed} gives {-(-length // claimed)}" if claimed > 0 else ""
    raise DataError(
        f"{base}.scales has {groups} groups of the {length} columns; no size of group gives that"
        + told
    )


def settings_of(quantization: Mapping[str, Any]) -> dict[str, int]:
    """The configuration's ``bits`` and ``group_size``; 0 where there is no number."""
    made = {}
    for key in ("bits", "group_size"):
        value = quantization.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        made[key] = int(value) if whole and value is not None else 0
    return made
