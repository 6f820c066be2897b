"""``--size N=64``: values of a program's size names, given or chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import typer

from tilewright.ir.core import Graph, Module, size_names
from tilewright.ir.errors import SettingError, close_to
from tilewright.ir.types import BufferType, TensorType
from tilewright.passes.specialise import specialise

LEADING, INNER = 2, 512  # batches, heads, groups; lengths
MOST = 1 << 40

SizeOption = Annotated[
    list[str] | None,
    typer.Option("--size", "-s", metavar="NAME=NUMBER", help="Value of a size name; repeatable."),
]

_ONE = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(\d[\d_]*)\s*", re.ASCII)


def parse_sizes(texts: Iterable[str] | None) -> dict[str, int]:
    """``["N=64", "M=2,K=3"]`` as numbers by name. Raises SettingError."""
    sizes: dict[str, int] = {}
    for text in (part for option in texts or () for part in option.split(",")):
        found = _ONE.fullmatch(text)
        if found is None:
            raise SettingError(f"--size {text!r}: write a name and a number, such as N=1024")
        name, number = found[1], found[2].replace("_", "")
        if len(number) > 13 or int(number) > MOST:
            raise SettingError(f"--size {name}={number}: no size is above {MOST}")
        if sizes.get(name, int(number)) != int(number):
            raise SettingError(f"--size {name}: given as {sizes[name]} and as {int(number)}")
        sizes[name] = int(number)
    return sizes


def names_of(graph: Graph) -> tuple[str, ...]:
    """All size names of a graph, in order of first use."""
    shapes = [p.type.shape for p in graph.params if isinstance(p.type, TensorType | BufferType)]
    used = size_names([size for shape in shapes for size in shape])
    return tuple(dict.fromkeys([*graph.sizes, *used]))


def check_known(given: Mapping[str, int], known: Sequence[str]) -> None:
    """SettingError if a size is given that the program does not have."""
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise SettingError(
                f"--size {name}: the program has no size {name}; its sizes: {has}"
                + close_to(name, known)
            )


def choose_sizes(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """A value for every size name: as given, else 512 for lengths and 2 for batches and heads.

    A length is what occurs among the last two dimensions of an input.
    """
    names = names_of(graph)
    check_known(given, names)
    lengths: set[str] = set()
    for param in graph.params:
        assert isinstance(param.type, TensorType)
        lengths.update(*(size.names for size in param.type.shape[-2:]))
    return {n: given.get(n, INNER if n in lengths else LEADING) for n in names}


def with_sizes(module: Module, given: Mapping[str, int]) -> Module:
    """The module with some size names replaced by numbers."""
    known = tuple(dict.fromkeys(n for graph in module.graphs for n in names_of(graph)))
    check_known(given, known)
    return Module(tuple(specialise(graph, dict(given)) for graph in module.graphs))
