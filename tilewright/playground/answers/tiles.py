"""Tile forms: every kernel's program for a target and a row class, and the layouts in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tilewright.cli.compile import load_target, row_class
from tilewright.ir.core import Graph, Module, Region
from tilewright.ir.errors import SettingError, TilewrightError
from tilewright.ir.layout_picture import MOST_CELLS, summary
from tilewright.ir.printer import print_graph
from tilewright.ir.sizes import product
from tilewright.ir.target import GPUS, NAMED, Target
from tilewright.passes.to_tile import to_tile
from tilewright.passes.to_tile.schedule import row_classes
from tilewright.playground.answers.program import lowered, one_of
from tilewright.playground.request import Request

LEVELS = ("stream", "tile")


def answer(request: Request) -> dict[str, Any]:
    """The kernels, each with its program or the reason why it has none."""
    target = load_target(request.target)
    graphs = kernels(request)
    return {
        "target": target.name,
        "gpu": target.gpu,
        "classes": list(row_classes(target)) if not target.gpu else [0],
        "kernels": [_kernel(graph, request, target) for graph in graphs],
    }


def target_names() -> dict[str, list[str]]:
    """The targets that the page offers, by kind."""
    return {"CPU": ["host", *NAMED], "GPU": list(GPUS)}


def kernels(request: Request) -> list[Graph]:
    """All kernels of the program. Raises SettingError where it has none yet."""
    found = [graph for graph in lowered(request).graphs if graph.level in LEVELS]
    if not found:
        raise SettingError("no kernel to lower: the pass to_stream is switched off")
    return found


def tile_program(graph: Graph, target: Target, rows: int) -> Graph:
    """A kernel's program of one work item; a tile program as it is. Raises UnsupportedError."""
    if graph.level == "tile":
        return graph
    chosen = 0 if target.gpu else row_class(rows, target)
    return to_tile(Module((graph,)), target, chosen).main


def tile_kernel(request: Request, target: Target) -> Graph:
    """The program of the request's kernel. Raises SettingError, UnsupportedError."""
    return tile_program(one_of(kernels(request), request.kernel), target, request.rows)


def _kernel(graph: Graph, request: Request, target: Target) -> dict[str, Any]:
    try:
        program = tile_program(graph, target, request.rows)
    except TilewrightError as error:
        from tilewright.playground.work import error_facts

        return {"name": graph.name, "error": error_facts(error)}
    return {"name": graph.name, "text": print_graph(program), "layouts": layouts_of(program)}


def layouts_of(program: Graph) -> list[dict[str, Any]]:
    """The layouts of a program's register tiles, those of most operations first."""
    counts = Counter(_layouts(program.body))
    return [
        {
            "text": str(layout),
            "count": count,
            "summary": summary(layout),
            "cells": product(layout.shape).evaluate({}),
            "drawn": product(layout.shape).evaluate({}) <= MOST_CELLS,
        }
        for layout, count in counts.most_common()
    ]


def _layouts(region: Region) -> list[Any]:
    types = [v.type for op in region.walk() for v in op.results]
    return [layout for t in types if (layout := getattr(t, "layout", None)) is not None]
