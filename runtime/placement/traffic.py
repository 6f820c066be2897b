"""How many rows of activations expert-parallel execution will send for a trace and a placement.

One row is one token's hidden state on its way to another device. ``frontend.experts.parallel``
sends exactly these, which a test holds.

- Two exchanges: a token has a home, its row goes from there to each other device with one of its
  experts (once, however many they are), and one partial sum comes back from each.
- Context coherence: a token moves. Its row goes from where it is to each other device with one of
  its experts; the device with most of them becomes the place where it is (``next_home``), and only
  the other devices' partial sums are sent there. With top-1 there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.runtime.placement.trace import Ints, Trace

_BLOCK = 1 << 22  # tokens x devices looked at together


@dataclass(frozen=True)
class Rows:
    """Rows sent between different devices in each layer, all tokens added up: int64 [layers]."""

    dispatch: Ints
    combine: Ints

    @property
    def total(self) -> int:
        return int(self.dispatch.sum() + self.combine.sum())


def next_home(counts: Ints, home: Ints | None) -> Ints:
    """The device with most of a token's experts; of equals where it is, then the lowest number.

    ``counts`` int64 [tokens, devices]: a token's experts on each; ``home`` int64 [tokens].
    """
    score = 2 * counts
    if home is not None:
        score[np.arange(len(score)), home] += 1
    first: Ints = score.argmax(axis=1)
    return first


def even_homes(tokens: int, devices: int) -> Ints:
    """Tokens dealt out in runs of nearly equal length, as batches are: int64 [tokens]."""
    return np.arange(tokens, dtype=np.int64) * devices // max(tokens, 1)


def exchange_rows(trace: Trace, places: Ints, devices: int, homes: Ints | None = None) -> Rows:
    """What two exchanges send, for ``places`` int64 [layers, experts] and each token's home."""
    homes = even_homes(trace.tokens, devices) if homes is None else homes
    sent = np.zeros(trace.layers, dtype=np.int64)
    for some in _blocks(trace.tokens, devices):
        own = homes[some]
        for layer in range(trace.layers):
            counts = _counts(trace, places, devices, some, layer)
            sent[layer] += _others(counts, own)
    return Rows(sent, sent.copy())


def coherent_rows(trace: Trace, places: Ints, devices: int) -> Rows:
    """What context coherence sends; tokens start where ``next_home`` of the first layer says."""
    dispatch = np.zeros(trace.layers, dtype=np.int64)
    combine = np.zeros(trace.layers, dtype=np.int64)
    for some in _blocks(trace.tokens, devices):
        home = next_home(_counts(trace, places, devices, some, 0), None)
        for layer in range(trace.layers):
            counts = _counts(trace, places, devices, some, layer)
            dispatch[layer] += _others(counts, home)
            home = next_home(counts, home)
            combine[layer] += _others(counts, home)
    return Rows(dispatch, combine)


def _blocks(tokens: int, devices: int) -> list[slice]:
    size = max(1, _BLOCK // devices)
    return [slice(start, min(tokens, start + size)) for start in range(0, tokens, size)]


def _counts(trace: Trace, places: Ints, devices: int, some: slice, layer: int) -> Ints:
    on = places[layer][trace.ids[some, layer]]
    codes = np.arange(len(on))[:, None] * devices + on
    return np.bincount(codes.ravel(), minlength=len(on) * devices).reshape(-1, devices)


def _others(counts: Ints, home: Ints) -> int:
    """Devices with at least one of a token's experts, apart from its home; all tokens."""
    used = counts > 0
    return int(used.sum() - used[np.arange(len(used)), home].sum())
