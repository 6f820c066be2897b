"""Tables of the least and greatest integers in stretches of memory that masks read.

Where a mask compares what lies in memory (the document of a key), the interval of a long stretch
would mean to read it all, for every block of rows. Tables made once for a call, in time linear in
the memory's size, answer at once; they are inputs of the kernel like others, which the runtime
makes from the inputs named in the graph's ``tables``: (input, its table of minima, of maxima).
"""

from __future__ import annotations

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse, is_row_kernel
from tilewright.passes.to_tile.mask_range import find_mask_range

STRIDE = 64  # elements of the last dimension that an entry stands for
Tables = tuple[tuple[int, int, int], ...]  # positions among the graph's parameters


def tables_of(graph: Graph) -> Tables:
    """The tables that a kernel takes."""
    found: Tables = tuple(graph.attrs.get("tables", ()))
    return found


def with_tables(graph: Graph) -> Graph:
    """The kernel with two more inputs for every input that masks read along the inner axis."""
    if is_row_kernel(graph) or tables_of(graph):
        return graph
    read = _read_by_masks(analyse(graph))
    if not read:
        return graph
    params, sizes, tables = list(graph.params), list(graph.sizes), []
    for source in read:
        assert isinstance(source.type, TensorType)
        count = _fresh(f"{source.hint or 'x'}_blocks", sizes)
        sizes.append(count)
        shape = (*source.type.shape[:-1], Size.of(count))
        tables.append((params.index(source), len(params), len(params) + 1))
        params += [Value(TensorType(shape, I64), f"{source.hint}_{end}") for end in ("low", "high")]
    body = Region(tuple(params), graph.body.ops, graph.body.yields)
    attrs = {**graph.attrs, "tables": tuple(tables)}
    return Graph(graph.level, graph.name, tuple(sizes), body, attrs)


def _fresh(name: str, taken: list[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _read_by_masks(info: KernelInfo) -> list[Value]:
    """Inputs that tests of masks read at positions of the inner axis, in their last dimension."""
    out: dict[Value, None] = {}
    seen: set[Value] = set()
    stack = list(find_mask_range(info).tests)
    while stack:
        value = stack.pop()
        op = info.made.get(value)
        if op is None or value in seen:
            continue
        seen.add(value)
        if isinstance(op, s.Source | s.Gather) and _along_last(info, op):
            out.setdefault(op.tensor)
        stack.extend(op.operands)
    return [p for p in info.graph.params if p in out]


def _along_last(info: KernelInfo, op: Op) -> bool:
    """True if only the last dimension's position changes along the inner axis."""
    if isinstance(op, s.Source):
        return bool(op.dims) and op.dims[-1] == (info.inner.name,)
    if not isinstance(op, s.Gather) or not op.indices or info.element(op.result):
        return False
    *outer, last = (info.varies(x) for x in op.indices)
    return last and not any(outer)
