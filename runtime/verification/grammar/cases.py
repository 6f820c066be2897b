"""Cases: a program of some kind, where it runs, and calls with drawn sizes, strides and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import BindError
from tilewright.ir.ops_lowbit import Dequantize
from tilewright.ir.sizes import product
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES as BLOCK_LANES
from tilewright.runtime.targets import program_target
from tilewright.runtime.verification.case import Call, Case, shapes_of
from tilewright.runtime.verification.grammar.attention import attention
from tilewright.runtime.verification.grammar.graphs import graphs
from tilewright.runtime.verification.grammar.lowbit import lowbit
from tilewright.runtime.verification.grammar.products import products
from tilewright.runtime.verification.grammar.routing import routing
from tilewright.runtime.verification.grammar.rows import rows
from tilewright.runtime.verification.grammar.sketch import FLOAT_VALUES, Draw, Drawn
from tilewright.runtime.verification.values import InputSpec, Shape, default_spec

KINDS: dict[str, Callable[[Draw, int], Drawn]] = {
    "graphs": graphs,
    "rows": rows,
    "attention": attention,
    "products": products,
    "lowbit": lowbit,
    "routing": routing,
}
# small ones, tails of 4, 8 and 16 lanes and of blocks, none, and what takes several blocks
SIZES = (2, 1, 3, 4, 5, 0, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 130, 257, 500)
MOST_ELEMENTS = 1 << 19  # of one value of the program: the oracle holds all in float64
MOST_INTERPRETED = 1 << 12
MOST_CALLS = 3


@dataclass(frozen=True)
class Place:
    """A back end and a target's name (None: this machine)."""

    backend: str
    target: str | None

    @property
    def lanes(self) -> int:
        """Lanes of a vector register, or of a block on a GPU, that packed weights are laid out
        for."""
        if self.backend == "numba":
            return 1
        target = program_target(self.target, self.backend)
        return BLOCK_LANES if target.gpu else target.lanes


def cases(places: Sequence[Place], kinds: Sequence[str]) -> st.SearchStrategy[Case]:
    """Cases of these kinds on these back ends."""

    @st.composite
    def draw_case(draw: Draw) -> Case:
        kind, place = draw(st.sampled_from(list(kinds))), draw(st.sampled_from(list(places)))
        drawn = KINDS[kind](draw, place.lanes)
        return _with_calls(draw, kind, drawn, place)

    return draw_case()


def cases_of(module: Module, places: Sequence[Place]) -> st.SearchStrategy[Case]:
    """Cases of one given program."""
    values = {}
    for param in module.main.params:
        assert isinstance(param.type, TensorType)
        dtype = param.type.dtype
        default = default_spec(dtype).values
        more = {"float": FLOAT_VALUES, "bool": ("true", "true:0", "true:1")}
        # bytes of 128 and more are no numbers with a sign
        more |= {"uint": (default, f"below:{1 << dtype.bits}", "between:120:140")}
        values[param.hint] = more.get(dtype.kind, (default, "below:2", "below:100"))
    drawn = Drawn(module, values, dict.fromkeys(sizes_of(module.main), 600))

    @st.composite
    def draw_case(draw: Draw) -> Case:
        return _with_calls(draw, "given", drawn, draw(st.sampled_from(list(places))))

    return draw_case()


def sizes_of(graph: Graph) -> tuple[str, ...]:
    """Size names that inputs have."""
    types = [p.type for p in graph.params if isinstance(p.type, TensorType)]
    names = [name for type_ in types for size in type_.shape for name in size.names]
    return tuple(dict.fromkeys([*graph.sizes, *names]))


def _with_calls(draw: Draw, kind: str, drawn: Drawn, place: Place) -> Case:
    most = MOST_INTERPRETED if place.backend == "interpreter" else MOST_ELEMENTS
    count = draw(st.integers(1, MOST_CALLS))
    whole = place.lanes == BLOCK_LANES
    calls = tuple(_draw_call(draw, drawn, most, whole) for _ in range(count))
    return Case(kind, str(drawn.module), place.backend, place.target, calls)


def _draw_call(draw: Draw, drawn: Drawn, most: int, whole: bool) -> Call:
    """Sizes, numbers and strides; ``whole``: packed weights are contiguous, as GPUs take them."""
    graph = drawn.module.main
    sizes = {
        n: draw(st.sampled_from([s for s in SIZES if s <= top])) for n, top in drawn.most.items()
    }
    sizes = _known(graph, _fitting(graph, sizes, most))
    inputs = {}
    shapes = shapes_of(graph, sizes)
    packed = {x for op in graph.body.ops if isinstance(op, Dequantize) for x in op.operands}
    for param, (shape, dtype) in zip(graph.params, shapes, strict=True):
        kinds = drawn.values[param.hint]
        # mostly the plain one: odd numbers everywhere leave nothing to compare
        plain = draw(st.integers(0, 2)) < 2
        values = kinds[0] if plain else draw(st.sampled_from(kinds))
        strides, offset = _draw_strides(draw, shape)
        if whole and param in packed:
            strides, offset = None, 0
        spec = InputSpec(values, strides, offset)
        if spec.values.startswith("bytesums"):
            spec = InputSpec(values)
        if spec != default_spec(dtype):
            inputs[param.hint] = spec
    return Call(sizes, draw(st.integers(0, 2**16)), inputs)


def _known(graph: Graph, sizes: dict[str, int]) -> dict[str, int]:
    """The sizes as they follow from the inputs: K * G = 0 says nothing of G, which is none then."""
    try:
        return bind_sizes(graph, [shape for shape, _ in shapes_of(graph, sizes)])
    except BindError:
        return {name: max(1, size) for name, size in sizes.items()}


def _fitting(graph: Graph, sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """Sizes of which the largest are halved until every value has at most ``most`` elements."""
    sizes = dict(sizes)
    values = [p for p in graph.params] + [r for op in graph.body.ops for r in op.results]
    shapes = [v.type.shape for v in values if isinstance(v.type, TensorType)]
    while sizes and max(product(s).evaluate(sizes) for s in shapes) > most:
        name = max(sizes, key=lambda n: sizes[n])
        if sizes[name] <= 1:
            break
        sizes[name] //= 2
    return sizes


LAYOUTS = ("contiguous", "contiguous", "permuted", "padded", "stepped", "expanded", "offset")


def _draw_strides(draw: Draw, shape: Shape) -> tuple[Shape | None, int]:
    """Strides and the first element's place: as made, transposed, slices of something larger, or
    one element for a whole dimension."""
    how = draw(st.sampled_from(LAYOUTS))
    if how == "contiguous" or not shape:
        return None, 0
    if how == "offset":
        return None, draw(st.integers(1, 5))
    order = list(range(len(shape)))
    if how == "permuted":
        order = draw(st.permutations(order))
    pads = [1] * len(shape)
    if how in ("padded", "stepped"):
        at = draw(st.integers(0, len(shape) - 1)) if how == "padded" else len(shape) - 1
        pads[at] = draw(st.sampled_from([2, 3]))
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        step *= pads[dim]
        strides[dim] = step
        step *= max(1, shape[dim])
    if how == "expanded":
        strides[draw(st.integers(0, len(shape) - 1))] = 0
    return tuple(strides), draw(st.sampled_from([0, 0, 1, 3]))
