"""Which way of keeping a layer's tokens is the cheapest on this machine."""

from __future__ import annotations

from collections.abc import Collection

from tilewright.ir.errors import SettingError
from tilewright.passes.rematerialise import (
    ABSORBED,
    FUSED,
    KEYS_AND_VALUES,
    REMADE,
    Balance,
    Layer,
)
from tilewright.runtime.targets import host_target
from tilewright.runtime.threads import num_threads


def choose_way(
    layer: Layer,
    rows: int,
    tokens: int,
    most_bytes: float | None,
    way: str | None,
    among: Collection[str] | None = None,
) -> str:
    """``way`` if it is given and there is one for this layer (SettingError), else the fastest out
    of ``among`` (None: all) that keeps at most ``most_bytes`` for a token (UnsupportedError if none
    does)."""
    known = layer.costs(rows, tokens)
    if way is None:
        return layer.choose(rows, tokens, _balance(), most_bytes, among)
    if way not in known:
        raise SettingError(f"way={way!r}; this layer has: {', '.join(known)}")
    return way


def way_table(layer: Layer, rows: int, tokens: int, most_bytes: float | None) -> str:
    """What every way costs on this machine, as text."""
    return layer.table(rows, tokens, _balance(), most_bytes)


def _balance() -> Balance:
    return Balance.of(host_target(), num_threads())


__all__ = [
    "ABSORBED",
    "FUSED",
    "KEYS_AND_VALUES",
    "REMADE",
    "Layer",
    "choose_way",
    "way_table",
]
