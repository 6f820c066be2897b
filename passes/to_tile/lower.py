"""One kernel as the program of one worker: prologue, blocks of the inner axis, epilogue.

The order of work in a block follows the phases of the stream graph: a phase computes the register
tiles that need nothing of this block's running statistics beyond the last phase's, updates
these, and
leaves in scratch what later phases read again. Vector-valued sums come last, from that scratch.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Attr, Graph, Module, Region
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import StreamType, TensorType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.expand_math import expand_math_graph
from tilewright.passes.fixed_order import (
    fix_order,
    same_on_all_widths,
)
from tilewright.passes.to_tile.block import BlockLowering
from tilewright.passes.to_tile.cached.info import cached_ops, cached_schedule
from tilewright.passes.to_tile.choices import DEFAULT, Choice, with_choice
from tilewright.passes.to_tile.cost.defaults import best_blocks
from tilewright.passes.to_tile.in_parts import Partials, can_be_shared_out
from tilewright.passes.to_tile.kernel_info import (
    KernelInfo,
    analyse,
    is_routing,
    is_row_kernel,
    reads_across,
)
from tilewright.passes.to_tile.late_products import fold_late_products
from tilewright.passes.to_tile.lowbit.choose import unpack_slots
from tilewright.passes.to_tile.lowbit.info import has_packed_weights, packed_products
from tilewright.passes.to_tile.lowbit.kernel import PackedKernel
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule, packed_schedule
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.narrow import narrow_positions
from tilewright.passes.to_tile.orders import ANY, FIXED, ordered_schedule
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.routing.program import routing_program
from tilewright.passes.to_tile.row_kernel import any_length, lower_row_kernel
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.schedule import (
    ROW_CLAIMS,
    Schedule,
    columns_on_lanes,
    farther_ahead,
    fewer_rows,
    keys_on_lanes,
    one_vector,
    row_schedule,
)
from tilewright.passes.to_tile.single_row import with_a_loop
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.lowbit.program import packed_program
from tilewright.passes.to_tile.whole_blocks.lower import (
    lower_in_parts,
    lower_whole_blocks,
    lower_with_spans,
)
from tilewright.passes.to_tile.whole_blocks.routing.program import block_routing_programs
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, choose_blocks


def check_covered(info: KernelInfo, known: bool = True) -> None:
    """Raises UnsupportedError for sums of other than floats and, if lengths of elements have to be
    ``known``, for one that is not."""
    for op in info.graph.body.ops:
        if isinstance(op, s.Reduce | s.Scan | s.Fold | s.Contract):
            for value in op.operands:
                if isinstance(value.type, StreamType) and not value.type.dtype.is_float:
                    raise UnsupportedError(f"{op.name} of {value.type.dtype}", op.loc)
        for result in op.results if known else ():
            if isinstance(result.type, StreamType):
                for axis in result.type.element:
                    static(axis.size, axis.name)


def static(size: Size, axis: str) -> int:
    """The number of elements of an axis inside an element, which must be known when compiling."""
    known = size.constant
    if known is None:
        message = f"axis {axis!r} lies inside an element: its size {size} must be a number"
        raise UnsupportedError(message)
    return known


def kernel_to_tile(
    graph: Graph,
    target: Target,
    rows: int,
    units: dict[str, int],
    choice: Choice = DEFAULT,
    order: str = ANY,
) -> Graph:
    """The tile program of one kernel for up to ``rows`` rows (0: any number).

    ``units`` maps a parameter's name to the dimension known to have stride one; ``choice`` has the
    fields of the schedule that are not to be the analytic model's; ``order``: what its numbers may
    depend on (orders.py, whose ``ordered_target`` the target is then). Raises UnsupportedError for
    kernels that no schedule covers, ScheduleError for fields that the kernel's schedule has not.
    """
    if order != ANY:
        return _in_order(graph, target, rows, units, choice, order)
    if target.gpu:
        return gpu_program(graph, target, units, rows=rows, choice=choice)
    graph = prepared(graph)
    if is_routing(graph):
        return _finished(lambda: routing_program(graph, target, rows, units))
    info = analyse(graph)
    check_covered(info, known=not any_length(graph))
    schedule = default_schedule(info, target, rows)
    if isinstance(schedule, PackedSchedule):
        plain, packed = cached_schedule(info, target, rows), with_choice(schedule, choice)
        return _finished(lambda: _Program(info, plain, units).run(target, packed))
    chosen = _as_read(info, with_choice(schedule, choice), units)
    return _finished(lambda: _Program(info, chosen, units).run(target))


def kernel_to_share(graph: Graph) -> KernelInfo | None:
    """A kernel whose positions work items can take parts of on a CPU, which a second kernel then
    joins (in_parts.py); None for others."""
    graph = prepared(graph)
    if is_routing(graph) or has_packed_weights(graph) or is_row_kernel(graph):
        return None
    info = analyse(graph)
    return info if can_be_shared_out(info) else None


def first_of_parts(
    graph: Graph, target: Target, rows: int, units: dict[str, int], choice: Choice = DEFAULT
) -> Graph:
    """The first of the two: it takes memory for partial results after its inputs. Raises
    UnsupportedError for kernels without parts."""
    info = kernel_to_share(graph)
    schedule = default_schedule(info, target, rows) if info is not None else None
    if info is None or not isinstance(schedule, Schedule):
        raise UnsupportedError(f"{graph.name}: no parts of it can be joined")
    chosen = _as_read(info, with_choice(schedule, choice), units)
    return _finished(lambda: _Program(info, chosen, units, Partials.of(info)).run(target))


def _as_read(info: KernelInfo, chosen: Schedule, units: dict[str, int]) -> Schedule:
    """A schedule that suits what lies side by side in memory."""
    if chosen.rows_on_lanes or chosen.lanes == 1 or not reads_across(info, units):
        return chosen
    return columns_on_lanes(chosen) if info.splits else keys_on_lanes(chosen)


def _in_order(
    graph: Graph, target: Target, rows: int, units: dict[str, int], choice: Choice, order: str
) -> Graph:
    """The program of a kernel whose sums have a known order."""
    info = analyse(prepared(graph))
    check_covered(info, known=not any_length(info.graph))
    schedule = ordered_schedule(info, target, rows, order)
    packed = None
    if has_packed_weights(graph):  # whatever tiles its schedule has, a row's sums are the same
        found = default_schedule(info, target, rows)
        assert isinstance(found, PackedSchedule)
        packed = with_choice(found, choice)
    program = _finished(lambda: _Program(info, schedule, units).run(target, packed))
    if order == FIXED:
        return fix_order(program)
    return program if is_row_kernel(graph) else same_on_all_widths(program)


def prepared(graph: Graph) -> Graph:
    """A kernel's stream graph as lowering takes it."""
    return with_a_loop(fold_late_products(canonicalise_graph(narrow_positions(graph))))


def default_schedule(info: KernelInfo, target: Target, rows: int) -> Schedule | PackedSchedule:
    """The cost model's schedule of a kernel on a CPU for up to ``rows`` rows (0: many)."""
    if has_packed_weights(info.graph):
        products = packed_products(info.graph)
        return packed_schedule(target, rows, len(products), unpack_slots(products, target))
    if is_row_kernel(info.graph):
        return row_schedule(target, info.longest_element)
    plain = cached_schedule(info, target, rows)
    made = cached_ops(info.graph) or remakes(info.graph)  # rows share what a block makes
    if made or not info.products or plain.lanes == 1:
        return plain
    if not plain.rows_on_lanes:
        return plain if info.splits else farther_ahead(plain, info.position_bytes)
    if rows:
        return plain if info.splits else one_vector(plain)
    return fewer_rows(plain) if info.splits else best_blocks(info, target, plain)


def gpu_program(
    graph: Graph,
    target: Target,
    units: dict[str, int],
    schedule: BlockSchedule | None = None,
    rows: int = 0,
    choice: Choice = DEFAULT,
) -> Graph:
    """The program of a kernel on whole blocks for up to ``rows`` rows that share what is read (0:
    any number); ``schedule`` None: the default one; ``choice``: fields of it that are others. Of a
    kernel that ranks tokens the second."""
    if is_routing(graph):
        return routing_programs(graph, target, units)[-1]
    info, chosen = _on_blocks(graph, target, schedule, rows)
    if has_packed_weights(info.graph):
        return packed_program(info, units, target, rows, choice)
    chosen = with_choice(chosen, choice)
    return _on_gpu(lambda: (lower_whole_blocks(info, chosen, units, target, rows > 0),))[0]


def routing_programs(graph: Graph, target: Target, units: dict[str, int]) -> tuple[Graph, ...]:
    """The programs of a kernel that routes tokens on a GPU: where there are two, the second takes
    what the first gives behind its inputs."""
    graph = canonicalise_graph(narrow_positions(graph))
    return _on_gpu(lambda: block_routing_programs(graph, target, units))


def gpu_programs_in_parts(
    graph: Graph,
    target: Target,
    units: dict[str, int],
    schedule: BlockSchedule | None = None,
    rows: int = 0,
    choice: Choice = DEFAULT,
) -> tuple[Graph, ...]:
    """The same as two programs between which work items share out the inner axis; none where that
    cannot be."""
    info, chosen = _on_blocks(graph, target, schedule, rows)
    chosen = with_choice(chosen, {} if has_packed_weights(info.graph) else choice)
    return _on_gpu(lambda: lower_in_parts(info, chosen, units, target, rows > 0) or ())


def gpu_programs_with_spans(
    graph: Graph,
    target: Target,
    units: dict[str, int],
    schedule: BlockSchedule | None = None,
    rows: int = 0,
    choice: Choice = DEFAULT,
) -> tuple[Graph, ...]:
    """The same as two programs, the first of which finds the blocks that work items of the second
    walk; none where each finds its own. For any number of rows."""
    if rows or has_packed_weights(graph):
        return ()
    info, chosen = _on_blocks(graph, target, schedule, rows)
    chosen = with_choice(chosen, choice)
    return _on_gpu(lambda: lower_with_spans(info, chosen, units, target) or ())


def _on_blocks(
    graph: Graph, target: Target, schedule: BlockSchedule | None, rows: int
) -> tuple[KernelInfo, BlockSchedule]:
    graph = prepared(graph)
    if is_routing(graph):
        raise UnsupportedError(f"{graph.name}: routing on a GPU")
    info = analyse(graph)
    check_covered(info)
    return info, schedule or choose_blocks(info, target, rows)


def _on_gpu(write: Callable[[], tuple[Graph, ...]]) -> tuple[Graph, ...]:
    try:
        programs = write()
    except VerifyError as error:
        raise UnsupportedError(f"no tile form: {error.message}", error.location) from error
    return tuple(canonicalise_graph(canonicalise_graph(x)) for x in programs)


def _finished(write: Callable[[], Graph]) -> Graph:
    """What a program's writer wrote, with functions written out."""
    try:
        program = write()
    except VerifyError as error:
        raise UnsupportedError(f"no tile form: {error.message}", error.location) from error
    return canonicalise_graph(expand_math_graph(canonicalise_graph(program)))


class _Program:
    """Assembles the three parts."""

    def __init__(
        self,
        info: KernelInfo,
        schedule: Schedule,
        units: dict[str, int],
        partials: Partials | None = None,
    ) -> None:
        self.info, self.schedule, self.partials = info, schedule, partials
        given = kernel_parameters(info.graph, units)
        self.params, self.sinks = given.values, given.sinks
        if partials is not None:
            inputs = given.values[: len(given.values) - len(given.sinks)]
            self.params, self.sinks = (*inputs, *partials.buffers), ()
        self.state = LoweringState(info, schedule, given.buffers, shares=partials is not None)

    def run(self, target: Target, packed_weights: PackedSchedule | None = None) -> Graph:
        rows = RowLowering(self.state)
        grid = [(axis.size, 1) for axis in self.info.grid]
        if self.info.splits:
            grid.append((self.info.inner.size, self.schedule.inner_part))
        sizes, partials = self.info.graph.sizes, self.partials
        if partials is not None:
            grid.append((partials.count, 1))
            sizes = (*sizes, *partials.count.names)
        grid.append((self.info.row_count, self.schedule.rows))
        if packed_weights is not None:
            packed = PackedKernel(self.state, target, packed_weights)
            packed.lower(self.sinks)
            grid = packed.grid
        elif is_row_kernel(self.info.graph):
            lower_row_kernel(self.state, rows, self.sinks)
        else:
            block = BlockLowering(self.state, rows)
            rows.begin()
            block.run()
            if partials is not None:
                rows.leave(lambda row, at: partials.store(self.state, row, at))
            rows.finish([sink for sink in self.sinks if not self.info.per_position(sink)])
        body = Region(self.params, tuple(self.state.build.top.ops))
        attrs: dict[str, Attr] = {
            "grid": tuple((size, tile) for size, tile in grid),
            "outputs": len(self.sinks),
            "target": target.name,
        }
        if is_row_kernel(self.info.graph):
            attrs["claims"] = ROW_CLAIMS
        return Graph("tile", self.info.graph.name, sizes, body, attrs)


def to_tile(module: Module, target: Target, rows: int = 0) -> Module:
    """Every stream graph as a tile program for many rows, unit strides in the last dimension."""
    return Module(tuple(_one(g, target, rows) if g.level == "stream" else g for g in module.graphs))


def _one(graph: Graph, target: Target, rows: int) -> Graph:
    units = {}
    for param in graph.params:
        assert isinstance(param.type, TensorType)
        units[param.hint] = len(param.type.shape) - 1
    return kernel_to_tile(graph, target, rows, units)
