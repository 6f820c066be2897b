"""Files that were right, changed: bytes anywhere, or values and names of JSON inside its form."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 64, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 64, -(1 << 63),
    10**18, 10**30, 0.5, -0.0, 1e300, float("inf"), float("nan"), "", "a", "../x", "/etc/passwd",
    "a\0b", "é\u2028\ud800", "x" * 5000, "1", "N*M", "-", "f32", "u4", [], [[]], [1], ["x"],
    [[1, "x"]],
    [0] * 40, {}, {"": 0}, {"a": {"b": []}}, [None], [10**18, 10**18], [-1, -1], [1e300], [[[1]]],
)  # fmt: skip
NUMBERS = (0, 1, 2, 127, 128, 255, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)


def few(source: random.Random) -> int:
    """1, 2, 3, … each half as often as the one before."""
    count = 1
    while count < 8 and source.random() < 0.5:
        count += 1
    return count


def damaged_bytes(source: random.Random, data: bytes) -> bytes:
    """Data with bits turned, numbers replaced, and pieces removed, doubled or exchanged."""
    out = bytearray(data)
    for _ in range(few(source)):
        at, how = source.randrange(len(out) + 1), source.random()
        if how < 0.35 and out:
            out[at % len(out)] ^= 1 << source.randrange(8)
        elif how < 0.55:
            size = source.choice("BHIQ")
            number = source.choice(NUMBERS) % (1 << 8 * struct.calcsize(size))
            out[at : at + struct.calcsize(size)] = struct.pack(f"<{size}", number)
        elif how < 0.65:
            del out[at:]
        elif how < 0.8:
            del out[at : at + source.choice((1, 2, 4, 8, 100))]
        elif how < 0.95:
            start = source.randrange(len(out) + 1)
            out[at:at] = out[start : start + source.choice((1, 4, 8, 64, 1000))]
        else:
            out[at:at] = source.randbytes(source.choice((1, 8, 64)))
    return bytes(out)


def damaged_json(source: random.Random, value: Any) -> Any:
    """A copy of a JSON value with something replaced, removed, renamed, doubled, wrapped, or taken
    from elsewhere in it."""
    out = copy.deepcopy(value)
    for _ in range(few(source)):
        places = list(_places(out))
        if not places:
            return source.choice(NASTY)
        _change(source, *source.choice(places), source.choice(places))
    return out


Place = tuple[Any, Any]  # a list or object, and where in it


def _change(source: random.Random, inside: Any, key: Any, other: Place) -> None:
    how = source.random()
    if how < 0.55:
        inside[key] = copy.deepcopy(source.choice(NASTY))
    elif how < 0.65:
        del inside[key]
    elif how < 0.75:
        elsewhere, name = other
        inside[key] = copy.deepcopy(elsewhere[name])
    elif how < 0.82:
        inside[key] = [inside[key]] if source.random() < 0.5 else {"x": inside[key]}
    elif how < 0.9 and isinstance(inside[key], int | float):
        inside[key] = inside[key] * source.choice((-1, 2, 10**9)) + source.choice((-1, 0, 1))
    elif isinstance(inside, dict):
        inside[source.choice(("", "a", "x" * 300, "../x", "é", str(key) + "_"))] = inside.pop(key)
    else:
        inside.insert(0, copy.deepcopy(inside[key]))


def _places(value: Any, depth: int = 0) -> Any:
    if depth > 12:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(pairs)[:200]:
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item, depth + 1)


def json_bytes(source: random.Random, value: Any) -> bytes:
    """A value as text; now and then nested deeper than any reader goes, or not quite JSON."""
    text = json.dumps(value)
    if source.random() < 0.01:
        depth = source.choice((100, 2_000, 200_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    data = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(source, data) if source.random() < 0.1 else data
