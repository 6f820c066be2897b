"""Random inputs for a program or a function, from a seed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.output import amount
from tilewright.ir.core import Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import SettingError, known_words
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

TRUE = 0.75  # share of a random mask that is true
BELOW = 8  # random integers

InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="2x8x128x64:f32",
        help="An input of a function; of a file's program NAME=KIND,strides=1x64,offset=2.",
    ),
]


@dataclass(frozen=True)
class InputShape:
    """One input: its sizes and its dtype."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        count = self.dtype.bits // 8
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return " x ".join([*map(str, self.shape), str(self.dtype)])


def named_dtype(name: str) -> DType:
    """A dtype by name. Raises SettingError with the known names."""
    known = {row.name: row for row in TABLE.values() if row.addressable}
    if name not in known:
        raise SettingError(f"unknown dtype {name!r}{known_words(name, known)}")
    return known[name]


_INPUT = re.compile(r"(\d+(?:x\d+)*)?(?::(\w+))?", re.ASCII)


def parse_input(text: str, default: str) -> InputShape:
    """``2x8x128x64:f32`` (without a dtype: ``default``; without sizes: a single number)."""
    found = _INPUT.fullmatch(text.replace(" ", ""))
    if found is None or not text.strip():
        raise SettingError(
            f"--input {text!r}: write sizes and a dtype, such as 2x8x128x64:f32 or 128x64"
        )
    sizes = (found[1] or "").split("x") if found[1] else []
    if any(len(size) > 13 for size in sizes):
        raise SettingError(f"--input {text!r}: a size has more than 13 digits")
    return InputShape(tuple(map(int, sizes)), named_dtype(found[2] or default))


def input_shapes(graph: Graph, sizes: Mapping[str, int]) -> list[InputShape]:
    """The inputs of a graph for given sizes."""
    out = []
    for param in graph.params:
        assert isinstance(param.type, TensorType)
        shape = tuple(size.evaluate(sizes) for size in param.type.shape)
        if any(size < 0 for size in shape):
            raise SettingError(f"%{param.hint}: {param.type} has a negative size for these sizes")
        out.append(InputShape(shape, param.type.dtype))
    return out


def result_shapes(graph: Graph, sizes: Mapping[str, int]) -> list[InputShape]:
    """The results of a graph for given sizes."""
    out = []
    for value in graph.results:
        assert isinstance(value.type, TensorType)
        shape = tuple(size.evaluate(sizes) for size in value.type.shape)
        out.append(InputShape(shape, value.type.dtype))
    return out


def check_memory(parts: Sequence[InputShape]) -> None:
    """SettingError if tensors of these shapes would not fit into half of this machine's memory."""
    wanted = sum(part.bytes for part in parts)
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there // 2:
        raise SettingError(
            f"inputs and results take {amount(wanted)}, this machine has {amount(there)}: "
            "choose smaller sizes"
        )


def random_inputs(shapes: Sequence[InputShape], seed: int) -> list[torch.Tensor]:
    """Standard normal floats, integers below 8, masks that are true at three places of four."""
    import torch

    from tilewright.runtime.kernel import TORCH_DTYPES

    generator = torch.Generator().manual_seed(seed)
    out = []
    for wanted in shapes:
        dtype = TORCH_DTYPES[str(wanted.dtype)]
        if wanted.dtype.kind == "bool":
            tensor = torch.rand(wanted.shape, generator=generator) < TRUE
        elif wanted.dtype.is_float:
            tensor = torch.randn(wanted.shape, generator=generator).to(dtype)
        else:
            tensor = torch.randint(0, BELOW, wanted.shape, generator=generator, dtype=dtype)
        out.append(tensor)
    return out


def with_dtype(module: Module, name: str) -> Module:
    """The program with its floating inputs, and all that follows from them, in another dtype."""
    dtype = named_dtype(name)
    if not dtype.is_float:
        raise SettingError(f"--dtype {name}: only floats can stand for floats, {name} is not one")
    graph = module.main
    types = [p.type for p in graph.params if isinstance(p.type, TensorType)]
    known = {x.dtype for x in types if x.dtype.is_float}
    replaced: dict[Value, Value] = {
        p: Value(_retyped(p.type, known, dtype), p.hint) for p in graph.params
    }
    ops: list[Op] = []
    for op in graph.body.ops:
        attrs = {k: _retyped(v, known, dtype) for k, v in op.attrs.items()}
        hints = [r.hint for r in op.results]
        fresh = type(op)(*(replaced[v] for v in op.operands), loc=op.loc, hints=hints, **attrs)
        replaced.update(zip(op.results, fresh.results, strict=True))
        ops.append(fresh)
    params = tuple(replaced[p] for p in graph.params)
    results = tuple(replaced[v] for v in graph.results)
    return Module((graph.with_body(Region(params, tuple(ops), results)),))


def _retyped(value: Any, known: set[DType], dtype: DType) -> Any:
    """A tensor type of one of the ``known`` dtypes with the new one; anything else as it is."""
    if isinstance(value, TensorType) and value.dtype in known:
        return replace(value, dtype=dtype)
    return value
