"""Writes the Python function that calls a kernel for a GPU which the driver starts directly.

As ``runtime/calls.py`` does for the CPU: straight-line code for a kernel's very ranks and sizes.
Every statement here costs each call some tens of nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.runtime.calls import (
    Signature,
    call_text,
    dimensions_text,
    grid_text,
    indented,
    name_text,
    size_text,
    tuple_text,
)

Strides = Sequence[tuple[int, int]]
ADDRESSES = 15  # above the low bits of strides in ``low`` are those of addresses


def direct_call_source(
    signature: Signature, strides: Strides, copied: Sequence[int], place: str
) -> str:
    """The text of ``def call(*tensors)`` for a kernel that takes pointers, ``strides`` (buffer,
    dimension) and sizes. ``copied``: buffers that the bulk copy engine may read. ``place``: what
    all inputs must be (``is_cuda``).

    It refers to ``current()``, ``elsewhere(device, tensors)``, ``empty(shape, strides, dtype)``,
    ``start(device, items, values, low, keys)``, and what ``call_text`` refers to. ``low`` has the
    low four bits of every buffer's strides in bytes, and above them those of its address; a key is
    a buffer's address, sizes and strides.
    """
    given = len(signature.inputs)
    begin = ["if device != current():", "    return elsewhere(device, tensors)"]
    begin += _outputs(signature)
    begin += [*grid_text(signature), "if items:"]
    begin += indented(_start(signature, strides, copied), 4)
    same = " == ".join(f"t{i}.get_device()" for i in range(1, given))
    more = ["device = t0.get_device()"]
    if same:
        more.append(f"fits = fits and device == {same}")
    return call_text(signature, place, begin, tuple(more))


def _outputs(signature: Signature) -> Iterator[str]:
    """New contiguous tensors; a shape of a tuple is quick where its strides are given, too."""
    outputs = range(len(signature.inputs), len(signature.params))
    if not outputs:
        return
    yield "try:"
    for i in outputs:
        shape = signature.params[i].shape
        steps = [Size.of(1)] if shape else []
        for size in reversed(shape[1:]):
            steps.insert(0, steps[0] * size)
        extents, gaps = (tuple_text([size_text(s) for s in sizes]) for sizes in (shape, steps))
        yield f"    t{i} = empty({extents}, {gaps}, dtype{i})"
    yield "except OutOfMemory as error:"
    yield "    no_memory(error)"
    yield "    raise"


def _start(signature: Signature, strides: Strides, copied: Sequence[int]) -> Iterator[str]:
    """Addresses and strides, what their low bits are, and the launch."""
    used = {i for i, _ in strides} | set(copied)
    for i, type_ in enumerate(signature.params):
        yield f"p{i} = t{i}.data_ptr()"
        if type_.shape and i in used:
            yield f"{dimensions_text('s', i, type_)} = t{i}.stride()"
    pointers = [f"p{i}" for i in range(len(signature.params))]
    steps = [f"s{i}_{d}" for i, d in strides]
    values = tuple_text([*pointers, *steps, *map(name_text, signature.sizes)])
    keys = []
    for i in copied:
        dims = range(len(signature.params[i].shape))
        facts = [f"{letter}{i}_{d}" for letter in "ns" for d in dims]
        keys.append(tuple_text([f"p{i}", *facts]))
    yield f"start(device, items, {values}, {_low_bits(signature, strides)}, {tuple_text(keys)})"


def _low_bits(signature: Signature, strides: Strides) -> str:
    """All addresses, and all strides in bytes, with "or"."""
    by_size: dict[int, list[str]] = {}
    for i, d in strides:
        by_size.setdefault(element_bytes(signature.params[i]), []).append(f"s{i}_{d}")
    terms = [f"({' | '.join(names)}) * {size}" for size, names in sorted(by_size.items())]
    addresses = " | ".join(f"p{i}" for i in range(len(signature.params)))
    return f"(({addresses}) & 15) << 4 | ({' | '.join(terms) or '0'}) & 15"


def element_bytes(type_: BufferType) -> int:
    """Bytes of an element in memory."""
    return max(1, type_.dtype.bits // 8)


def again_source(signature: Signature, copied: Sequence[int]) -> str:
    """The text of ``def bind(…)``, which gives ``again(*tensors)`` for calls whose dtypes, shapes,
    strides and device are those of a call before: only addresses are new.

    ``bind`` takes the device, ``launch`` and ``stream``, the number of work items, what follows the
    addresses in a launch's values, shapes and strides of the outputs, and a function for each of
    ``copied`` that describes the tensor at an address. ``call`` is the function that checks.
    """
    given, count = len(signature.inputs), len(signature.params)
    everyone = [f"t{i}" for i in range(count)]
    negated = " or ".join(f"{t}.is_neg()" for t in everyone[:given])
    body = [
        f"{tuple_text(everyone[:given])} = tensors",
        f"if device != current() or {negated}:",
        "    return call(*tensors)",
        *indented([f"p{i} = t{i}.data_ptr()" for i in range(given)], 0),
        f"if ({' | '.join(f'p{i}' for i in range(given))}) & 15:",
        "    return call(*tensors)",
    ]
    if count > given:
        body.append("try:")
        for i in range(given, count):
            body.append(f"    t{i} = empty(*out{i}, dtype{i})")
        body += ["except OutOfMemory as error:", "    no_memory(error)", "    raise"]
    pointers = [
        *(f"p{i}" for i in range(given)),
        *(f"t{i}.data_ptr()" for i in range(given, count)),
    ]
    maps = tuple_text([f"map{n}(p{i})" for n, i in enumerate(copied)])
    body.append(f"launch(items, stream(device), {tuple_text([*pointers, '*rest'])}, {maps})")
    body.append(f"return {tuple_text(everyone[given:])}")
    names = ["device", "launch", "stream", "items", "rest"]
    names += [f"out{i}" for i in range(given, count)] + [f"map{n}" for n in range(len(copied))]
    head = [f"def bind({', '.join(names)}):", "    def again(*tensors):"]
    return "\n".join([*head, *indented(body, 8), "    return again", ""])
