"""Several tile programs as one: their work items share one queue, and what they read one signature.

For products that read the same rows and have nothing else to do with each other (queries, keys and
values of an attention): one call, and no wait for the slowest between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.choices import DEFAULT, Choice
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lower import default_schedule
from tilewright.passes.to_tile.spaces import kernel_info


def common_choice(graphs: Sequence[Graph], target: Target, rows: int) -> Choice:
    """Tile sizes for stream graphs of products that are to share one queue: those of the one whose
    weights take the most work to unpack, which has the most rows in registers."""
    schedules = [default_schedule(kernel_info(graph), target, rows) for graph in graphs]
    packed = [y for y in schedules if isinstance(y, PackedSchedule)]
    if len(packed) < len(schedules):
        return DEFAULT
    best = max(packed, key=lambda y: y.rows)
    return {"vectors": best.vectors, "rows": best.rows, "item_rows": best.item_rows}


def side_by_side(programs: Sequence[Graph]) -> Graph:
    """One program that does the work of all: inputs of one name are one, then all outputs.

    The first dimension of the grid may have another size in each program, the rest of it and all
    tile sizes must agree (UnsupportedError).
    """
    first = programs[0]
    grids = [p.attrs["grid"] for p in programs]
    if any(g[1:] != grids[0][1:] or g[0][1] != grids[0][0][1] for g in grids):
        raise UnsupportedError("programs with other grids cannot share one queue")
    tile = int(grids[0][0][1])
    params: dict[str, Value] = {}
    outputs: list[Value] = []
    b = TileBuilder()
    item, before = b(t.BlockId, dim=0, hint="item"), b.index(0)
    for program, grid in zip(programs, grids, strict=True):
        count = int(program.attrs["outputs"])
        given, results = program.params[:-count], program.params[-count:]
        mapping = {p: params.setdefault(p.hint, p) for p in given}
        _check_shared(mapping)
        outputs += results
        blocks = b.add(b.size(Size.of(grid[0][0])), tile - 1)
        after = b.add(before, b.div(blocks, tile))
        with b.when_less(b.sub(before, 1), item), b.when_less(item, after):
            _clone(b, program.body, {**mapping, **{r: r for r in results}}, b.sub(item, before))
        before = after
    body = Region((*params.values(), *outputs), tuple(b.top.ops))
    extent = sum((Size.of(g[0][0]) for g in grids), Size.of((tile - 1) * (len(grids) - 1)))
    attrs = {**first.attrs, "grid": ((extent, tile), *grids[0][1:]), "outputs": len(outputs)}
    names = tuple(dict.fromkeys(n for p in programs for n in p.sizes))
    return canonicalise_graph(Graph("tile", first.name, names, body, attrs))


def _check_shared(mapping: dict[Value, Value]) -> None:
    for own, shared in mapping.items():
        if own.type != shared.type:
            raise UnsupportedError(f"%{own.hint} is {own.type} and {shared.type} side by side")


def _clone(b: TileBuilder, region: Region, mapping: dict[Value, Value], item: Value) -> None:
    """The operations of a program, its position on the grid counted from its own first item."""
    for op in region.ops:
        if isinstance(op, t.BlockId) and op.dim == 0:
            mapping[op.result] = item
        else:
            fresh = _copied(op, mapping, item)
            b.top.add(fresh)
            mapping.update(zip(op.results, fresh.results, strict=True))


def _copied(op: Op, mapping: dict[Value, Value], item: Value) -> Op:
    regions = [_copied_region(r, mapping, item) for r in op.regions]
    operands = [mapping.get(v, v) for v in op.operands]
    hints = [r.hint for r in op.results]
    return type(op)(*operands, regions=regions, loc=op.loc, hints=hints, **op.attrs)


def _copied_region(region: Region, mapping: dict[Value, Value], item: Value) -> Region:
    inner = dict(mapping)
    params = tuple(Value(p.type, p.hint) for p in region.params)
    inner.update(zip(region.params, params, strict=True))
    b = TileBuilder()
    _clone(b, region, inner, item)
    return Region(params, tuple(b.top.ops), tuple(inner.get(v, v) for v in region.yields))
