"""The program of a request: parsed, with its sizes, and taken through the chosen passes."""

from __future__ import annotations

import sys

from tilewright.cli.sizes import INNER, choose_sizes, names_of
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import SettingError, VerifyError
from tilewright.ir.parser import parse
from tilewright.ir.types import TensorType
from tilewright.passes.pipeline import TO_KERNELS, Pass
from tilewright.playground.request import Request

LENGTH = 64  # of what is a length, if the page says nothing
NAME = "program"  # in errors


def parsed(request: Request) -> Module:
    """Raises ParseError, VerifyError."""
    return parse(request.program, NAME)


def chosen_passes(request: Request) -> tuple[Pass, ...]:
    """The passes to run, in the pipeline's order. Raises SettingError for an unknown one."""
    known = {p.name for p in TO_KERNELS}
    wanted = known if request.passes is None else set(request.passes)
    if unknown := sorted(wanted - known):
        raise SettingError(f"unknown pass {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return tuple(p for p in TO_KERNELS if p.name in wanted)


def lowered(request: Request) -> Module:
    """The program after the chosen passes."""
    module = parsed(request)
    for step in chosen_passes(request):
        module = step.run(module)
    return module


def stream_kernel(request: Request) -> Graph:
    """The request's kernel as a stream graph. Raises SettingError where there is none."""
    graphs = [g for g in lowered(request).graphs if g.level == "stream"]
    if not graphs:
        raise SettingError(
            "there is no stream form: the program begins at the tile level, or the pass to_stream "
            "is switched off"
        )
    return one_of(graphs, request.kernel)


def one_of(graphs: list[Graph] | tuple[Graph, ...], number: int) -> Graph:
    """A graph by its number; the last one if there are fewer."""
    return graphs[min(number, len(graphs) - 1)]


def sizes_for(graph: Graph, request: Request) -> dict[str, int]:
    """A value for each size name of a graph: the page's, or 2 for batches and 64 for lengths."""
    for param in graph.params:
        if not isinstance(param.type, TensorType):
            raise VerifyError(f"{graph.name}: %{param.hint} is {param.type}, no tensor")
    names = names_of(graph)
    given = {name: value for name, value in request.sizes.items() if name in names}
    chosen = choose_sizes(graph, given)
    return {
        name: value if name in given or value != INNER else LENGTH for name, value in chosen.items()
    }


def about(step: Pass) -> str:
    """A pass in one sentence: the first of its module."""
    text = sys.modules[step.run.__module__].__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split()).rstrip(":")
