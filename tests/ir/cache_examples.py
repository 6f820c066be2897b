"""Examples of the operations that say what a low-bit cache means, and what is made from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.ir.examples import Example
from tilewright.ir.cache_form import CacheForm

# Keys of three channels in groups of two, by token; values of three channels, by channel.
CODES = np.array([[[[0, 1, 3], [2, 2, 1]]]])
KEYS = CacheForm("lanes", 2, 3, "token", 2)
VALUES = CacheForm("codes", 2, 3, "channel", 32)
KEY_SCALES = np.array([[[[0.5, -2.0], [1.0, 4.0]]]])  # [group, token]
KEY_ZEROS = np.array([[[[1.0, 0.5], [3.0, 2.0]]]])
VALUE_SCALES = np.array([[[[0.5, 1.0, -1.0]]]])  # [group of tokens, channel]

CACHED = """graph f<M>(%w: tensor<1 x 1 x 2 x 16 x i32>, %s: tensor<1 x 1 x 2 x M x f32>,
    %z: tensor<1 x 1 x 2 x M x f32>) {
  %r = tensor.cached %w, %s, %z {tokens = "lanes", bits = 2, by = "token", group = 2,
      length = size(M), width = 3, zeros = true}
  return %r }"""
STREAM_CACHED = """stream f<M>(%w: tensor<1 x 1 x 2 x 16 x i32>, %s: tensor<1 x 1 x 1 x 3 x f32>,
    %c: tensor<M x u8>) {
  %a = stream.cached %w, %s, %c {tokens = "codes", bits = 2, by = "channel", group = 32, zero = 2,
      dims = [[], [], ["m"], ["d"]], type = stream<m=M; d=3 x f32>}
  %r = stream.sink %a {dims = [["m"], ["d"]], type = tensor<M x 3 x f32>}
  return %r }"""


def _by_token() -> list[list[float]]:
    scales, zeros = KEY_SCALES[0, 0], KEY_ZEROS[0, 0]
    return [
        [(CODES[0, 0, t, c] - zeros[c // 2, t]) * scales[c // 2, t] for c in range(3)]
        for t in range(2)
    ]


def _by_channel() -> list[list[float]]:
    scales = VALUE_SCALES[0, 0, 0]
    return [[(CODES[0, 0, t, c] - 2) * scales[c] for c in range(3)] for t in range(2)]


def _examples() -> Iterator[Example]:
    given = (KEYS.pack(CODES), KEY_SCALES, KEY_ZEROS)
    yield Example("tensor.cached", CACHED, given, np.array([[_by_token()]]))
    count = np.zeros(2, np.uint8)
    given = (VALUES.pack(CODES), VALUE_SCALES, count)
    yield Example("stream.cached", STREAM_CACHED, given, np.array(_by_channel()))


# Keys of two tokens made from an input of two channels: sum over c of x[m, c] w[c, d].
INPUT, WEIGHTS = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[2.0, 0.0, 1.0], [0.5, 4.0, -1.0]])
KEYS_MADE = np.array([[3.0, 8.0, -1.0], [5.5, -4.0, 4.0]])
REMADE = """graph f(%x: tensor<2 x 2 x f64>, %w: tensor<2 x 3 x f64>) {
  %r = tensor.remake %x, %w {equation = "mc,cd->md"} return %r }"""
STREAM_REMADE = """stream f(%x: tensor<2 x 2 x f64>, %w: tensor<2 x 3 x f64>) {
  %a = stream.source %x {dims = [["m"], ["c"]], type = stream<m=2; c=2 x f64>}
  %b = stream.source %w {dims = [["c"], ["d"]], type = stream<m=2; c=2 x d=3 x f64>}
  %k = stream.remake %a, %b {axes = ["c"]}
  %r = stream.sink %k {dims = [["m"], ["d"]], type = tensor<2 x 3 x f64>}
  return %r }"""


def _remade() -> Iterator[Example]:
    yield Example("tensor.remake", REMADE, (INPUT, WEIGHTS), KEYS_MADE)
    yield Example("stream.remake", STREAM_REMADE, (INPUT, WEIGHTS), KEYS_MADE)


CACHE_EXAMPLES = [*_examples(), *_remade()]
