"""onnxruntime's MatMulNBits in an ONNX file: codes in bytes along K, scales and zeros per block.

Inputs ``B`` uint8 [N, blocks, block_size * bits / 8], ``scales`` [N, blocks], ``zero_points``
packed like B (a row's bits padded to bytes), or floats, or missing: 2**(bits-1). A value is
(code - zero) * scale. Data beside the file is read only from within its folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from tilewright.frontend.checkpoints.bits import unpack_bytes
from tilewright.frontend.checkpoints.gptq import column_order
from tilewright.frontend.checkpoints.source import FLOATS, Entry, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import BackendMissingError, DataError, UnsupportedError

_DTYPES = {
    1: ("F32", torch.float32),
    2: ("U8", torch.uint8),
    3: ("I8", torch.int8),
    5: ("I16", torch.int16),
    6: ("I32", torch.int32),
    7: ("I64", torch.int64),
    9: ("BOOL", torch.bool),
    10: ("F16", torch.float16),
    11: ("F64", torch.float64),
    16: ("BF16", torch.bfloat16),
    17: ("F8_E4M3", torch.float8_e4m3fn),
    19: ("F8_E5M2", torch.float8_e5m2),
}
_OF_WEIGHT = ("B", "scales", "zero_points", "g_idx")
_INPUTS = ("A", *_OF_WEIGHT, "bias")


@dataclass(frozen=True)
class _Node:
    """One MatMulNBits: the names of its inputs ("" where there is none) and its attributes."""

    inputs: dict[str, str]
    bits: int
    rows: int
    length: int
    block: int


def find(source: Source) -> Iterator[Weight]:
    """The MatMulNBits weights of an ONNX file; nothing in other containers."""
    nodes: dict[str, _Node] = source.details.get("nodes", {})
    for name, node in nodes.items():
        examine = partial(_examine, node=node)
        yield from examined(source, iter([name]), ("",), "onnx MatMulNBits", examine)


def _examine(source: Source, base: str, node: _Node) -> Weight:
    if node.bits not in (2, 4, 8):
        raise UnsupportedError(f"codes of {node.bits} bits; 2, 4 and 8 are read")
    if node.block < 16 or node.block & (node.block - 1) or node.rows < 1 or node.length < 1:
        raise DataError(
            f"{base} must have N and K from 1 and a block_size of 16, 32, 64, …; they are "
            f"{node.rows}, {node.length}, {node.block}"
        )
    blocks, blob = -(-node.length // node.block), node.block * node.bits // 8
    why = f"of {node.rows} x {node.length} codes of {node.bits} bits in blocks of {node.block}"
    source.expect(base, ("U8",), (node.rows, blocks, blob), why)
    _sized(source, node.inputs["scales"], FLOATS, node.rows * blocks, why)
    zeros, kind = node.inputs.get("zero_points", ""), f"{1 << node.bits - 1}, the default"
    if zeros:
        packed = source.entry(zeros, why).dtype == "U8"
        each = -(-blocks * node.bits // 8) if packed else blocks
        _sized(source, zeros, ("U8", *FLOATS), node.rows * each, why)
        kind = "whole, per group" if packed else "float, per group"
    if index := node.inputs.get("g_idx", ""):
        source.expect(index, ("I32", "I64"), (node.length,), "the block of every column")
    return Weight(
        name=base,
        format="onnx MatMulNBits",
        tensors=tuple(n for key, n in node.inputs.items() if n and key in _OF_WEIGHT),
        dtype=f"u{node.bits}",
        shape=(node.rows, node.length),
        group=node.block,
        zeros=kind,
        decode=lambda: _decode(source, base, node),
    )


def _sized(source: Source, name: str, dtypes: tuple[str, ...], count: int, why: str) -> None:
    entry = source.expect(name, dtypes, None, why)
    if entry.count != count:
        raise DataError(f"{name} must have {count} elements ({why}); it is {entry}")


def _decode(source: Source, base: str, node: _Node) -> Parts:
    blocks = -(-node.length // node.block)
    codes = unpack_bytes(source.tensor(base), node.bits, node.block).flatten(1)[:, : node.length]
    scales = source.finite(node.inputs["scales"]).reshape(node.rows, blocks)
    zeros, name = None, node.inputs.get("zero_points", "")
    if name and source.entries[name].dtype == "U8":
        given = source.tensor(name).reshape(node.rows, -1)
        zeros = unpack_bytes(given, node.bits, blocks)
    elif name:
        zeros = source.finite(name, "zeros").reshape(node.rows, blocks)
    index = node.inputs.get("g_idx", "")
    order = column_order(source, index, node.block) if index else None
    if order is not None:
        codes = codes[:, order]
    middle = 1 << node.bits - 1
    return Parts(f"u{node.bits}", node.block, codes, scales, zeros, zero_point=middle, order=order)


def open_onnx(path: Path) -> Source:
    """An ONNX file: its initialisers, and its MatMulNBits nodes under ``details``.

    Raises DataError, or BackendMissingError without the package onnx.
    """
    try:
        import onnx
    except ImportError:
        raise BackendMissingError(
            "ONNX files need the package onnx: pip install 'tilewright[checkpoints]'"
        ) from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # protobuf's errors have no common class of their own
        raise DataError(f"{path} must be an ONNX model; it is not: {error}") from None
    initialisers = {
        _text(path, t.name): t for graph in _graphs(model.graph) for t in graph.initializer
    }
    entries = {name: _entry(path, tensor) for name, tensor in initialisers.items()}
    nodes = {}
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.op_type == "MatMulNBits" and node.domain == "com.microsoft":
                found = _node(path, node, entries)
                nodes[found.inputs["B"]] = found

    def load(name: str) -> torch.Tensor:
        return _contents(path, initialisers[name], entries[name])

    return Source(path, "onnx", entries, load, {}, {"nodes": nodes})


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (branches, loops)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _node(path: Path, node: Any, entries: dict[str, Entry]) -> _Node:
    given = (_text(path, name) for name in node.input)
    inputs = dict(zip(_INPUTS, given, strict=False))
    label = node.name or "a MatMulNBits node"
    for needed in ("B", "scales"):
        if inputs.get(needed, "") not in entries:
            raise DataError(
                f"{path}: {label} must have {needed} as an initialiser; it is "
                f"{inputs.get(needed) or 'missing'!r}"
            )
    for other in ("zero_points", "g_idx"):
        if inputs.get(other) and inputs[other] not in entries:
            raise DataError(f"{path}: {label} must have {other} as an initialiser; it is computed")
    values = {a.name: a.i for a in node.attribute}
    missing = [key for key in ("K", "N", "block_size") if key not in values]
    if missing:
        raise DataError(f"{path}: {label} must have the attribute {missing[0]}; it has not")
    bits = values.get("bits", 4)
    return _Node(inputs, bits, values["N"], values["K"], values["block_size"])


def _text(path: Path, value: str | bytes) -> str:
    """Protobuf gives bytes for text that is not UTF-8. Raises DataError for it."""
    if isinstance(value, bytes):
        raise DataError(f"{path}: names must be UTF-8; {value!r} is not")
    return value


def _entry(path: Path, tensor: Any) -> Entry:
    label, dtype = _DTYPES.get(tensor.data_type, (f"type {tensor.data_type}", torch.uint8))
    shape = tuple(int(n) for n in tensor.dims)
    if any(n < 0 for n in shape):
        raise DataError(f"{path}: {tensor.name} must have sizes from 0; they are {shape}")
    nbytes = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    return Entry(tensor.name, label, shape, nbytes, path.name)


def _contents(path: Path, tensor: Any, entry: Entry) -> torch.Tensor:
    """Raises DataError unless there are as many bytes as the shape takes."""
    if tensor.data_type not in _DTYPES:
        raise UnsupportedError(f"{path}: {entry.name} has elements of {entry.dtype}; not read")
    dtype = _DTYPES[tensor.data_type][1]
    if tensor.data_location == 1:  # TensorProto.EXTERNAL
        given = _external(path, tensor, entry)
    elif tensor.HasField("raw_data"):
        given = tensor.raw_data
    else:
        given = _typed_field(path, tensor, entry)
    if len(given) != entry.nbytes:
        raise DataError(
            f"{path}: {entry.name} as {entry} must take {entry.nbytes} bytes; it has {len(given)}"
        )
    if not given:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(bytearray(given), dtype=dtype).view(entry.shape)


def _typed_field(path: Path, tensor: Any, entry: Entry) -> bytes:
    """Contents kept in a field of numbers instead of bytes."""
    from onnx import numpy_helper

    try:
        return bytes(numpy_helper.to_array(tensor).tobytes())
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {entry.name} as {entry} cannot be read: {error}") from None


def _external(path: Path, tensor: Any, entry: Entry) -> bytes:
    """Bytes of a file beside the model. Raises DataError for one outside its folder."""
    facts = {item.key: _text(path, item.value) for item in tensor.external_data}
    location = PurePosixPath(facts.get("location", "").replace("\\", "/"))
    inside = location.parts and not location.is_absolute() and ".." not in location.parts
    if not inside or "\0" in str(location):
        raise DataError(
            f"{path}: {entry.name} must lie in a file within {path.parent}; it names "
            f"{facts.get('location')!r}"
        )
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts.get("length", entry.nbytes))
    except ValueError:
        raise DataError(f"{path}: {entry.name} must have a whole offset and length") from None
    file = path.parent / location
    try:
        size = file.stat().st_size
        if offset < 0 or length != entry.nbytes or offset + length > size:
            raise DataError(
                f"{file}: {entry.name} as {entry} must take {entry.nbytes} bytes of its {size}; it "
                f"is said to be at {offset}, {length} bytes"
            )
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(length)
    except OSError as error:
        raise DataError(f"{file}, which holds {entry.name}, cannot be read: {error}") from None
