"""Writes the Python function that calls one kernel: checks, sizes, outputs, argument block.

It is written once per kernel, as straight-line code for its very ranks and sizes, so that a call
costs a few microseconds. It decides only whether a call is right; what is wrong with a call that is
not is found again, slowly and in words, by ``complain``. Running and memory are not its business.

The native ABI: ``void kernel(int64_t *args)`` runs once on every worker, and ``args`` are
    0  address of the work counter: a worker adds 1 to claim the item that it held (0 at first)
    1  address of the slot counter: a worker adds 1 to get the number of its part of the scratch
    2  address of the scratch memory (64-byte aligned), 3  bytes of it for each worker
    4  number of work items, then the extents of the grid, the last one running fastest
    then the values of the size names; then for every buffer, inputs first, its address and its
    strides in elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region, Value, size_names
from tilewright.ir.errors import BindError
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, TensorType

COUNTER_BYTES = 64  # a counter has its cache line to itself: all workers write to it
ARGUMENTS_AT = 2 * COUNTER_BYTES
FIXED_ARGUMENTS = 5


@dataclass(frozen=True)
class Signature:
    """A kernel from outside: buffers (inputs, then outputs), sizes, grid, scratch of a worker."""

    name: str
    params: tuple[BufferType, ...]
    hints: tuple[str, ...]
    outputs: int
    sizes: tuple[str, ...]
    grid: tuple[tuple[Size, int], ...]
    scratch_bytes: int

    @property
    def inputs(self) -> tuple[BufferType, ...]:
        """The buffers that the caller gives."""
        return self.params[: len(self.params) - self.outputs]

    @property
    def arguments(self) -> int:
        """Number of 64-bit words that the native code gets."""
        buffers = sum(1 + len(p.shape) for p in self.params)
        return FIXED_ARGUMENTS + len(self.grid) + len(self.sizes) + buffers

    def needed_names(self) -> tuple[str, ...]:
        """Size names that a call has to know: those of the code, of the outputs and of the grid."""
        outputs = [size for p in self.params[len(self.inputs) :] for size in p.shape]
        return self.sizes + size_names(outputs + [size for size, _ in self.grid])

    def graph(self) -> Graph:
        """Inputs and sizes as a graph, which is what ``bind_sizes`` explains its errors with."""
        named = zip(self.inputs, self.hints, strict=False)
        return Graph(
            "tile", self.name, self.sizes, Region(tuple(Value(t, h) for t, h in named), ())
        )

    def solve(self, tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
        """The values of the names in the inputs' shapes, in their alphabetical order, found one
        equation after the other, each when it can be: BindError if none fit. For calls in which a
        name has the factor 0, so that the order decides."""
        values = bind_sizes(self.graph(), [tuple(x.shape) for x in tensors])
        names = {name for p in self.inputs for size in p.shape for name in size.names}
        return tuple(values[name] for name in sorted(names))


@dataclass
class _Binding:
    """Statements that give the size names their values, and conditions that must then hold.
    ``natural``: names that must not come out negative; ``divides``: some statements divide by other
    sizes, which may be 0."""

    known: set[str] = field(default_factory=set)
    assignments: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    natural: list[str] = field(default_factory=list)
    divides: bool = False

    def statements(self) -> list[str]:
        """The assignments. An equation 0 * N = 0 says nothing about N: another one may, and which
        is for ``Signature.solve`` to find, since there is no order that is right for all calls."""
        if not self.divides:
            return self.assignments
        names = tuple_text([name_text(n) for n in sorted(self.known)])
        return [
            "try:",
            *indented(self.assignments, 4),
            "except ZeroDivisionError:",
            f"    {names} = solve(tensors)",
        ]


def frame_format(signature: Signature) -> str:
    """The argument block as ``struct`` writes it: two counters, each in its line, and the words."""
    pad = COUNTER_BYTES - 8
    return f"=q{pad}xq{pad}x{signature.arguments}q"


def call_source(signature: Signature, otherwise: Sequence[str] = ()) -> str:
    """The text of ``def call(*tensors)``; ``kernel.py`` names what it refers to. ``otherwise``:
    statements that may return what is computed in another way, with ``items`` and ``workers``."""
    begin = [*grid_text(signature), "workers = num_threads()", *otherwise]
    begin += [*_with_room(signature), "if items:", *indented(_launch(signature), 4)]
    return call_text(signature, "is_cpu", begin)


def call_text(
    signature: Signature, place: str, begin: list[str], more: tuple[str, ...] = ()
) -> str:
    """A function that checks its tensors, then does ``begin``. ``more``: further statements that
    look at the tensors and may change ``fits``."""
    binding = _bind(signature)
    lines = [
        "def call(*tensors):",
        "    try:",
        *indented([*_unpack(signature, place), *more], 8),
        "    except (AttributeError, TypeError, ValueError):",
        "        fits = False",
        "    if not fits:",
        "        complain(tensors)",
        *indented(binding.statements(), 4),
    ]
    if conditions := binding.natural + binding.conditions:
        lines += [
            f"    if not ({' and '.join(conditions)}):",
            "        complain(tensors)",
        ]
    lines += indented(begin, 4)
    outputs = "".join(f"t{i}, " for i in range(len(signature.inputs), len(signature.params)))
    return "\n".join([*lines, f"    return ({outputs})", ""])


def indented(lines: Iterable[str], columns: int) -> list[str]:
    return [" " * columns + line for line in lines]


def tuple_text(names: list[str]) -> str:
    """``(a, b, )``: right for no name and for one name too."""
    return f"({''.join(f'{n}, ' for n in names)})"


def launched_call_source(
    signature: Signature, strides: Sequence[tuple[int, int]], place: str
) -> str:
    """``call_source`` for a kernel that ``launch`` starts on a device: with the number of work
    items, the tensors, their ``strides`` (buffer, dimension) and the sizes. ``place`` is what all
    inputs must be (``is_cuda``)."""
    buffers = tuple_text([f"t{i}" for i in range(len(signature.params))])
    steps = tuple_text([f"t{i}.stride({d})" for i, d in strides])
    sizes = tuple_text([name_text(n) for n in signature.sizes])
    begin = ["device = t0.device", *_outputs(signature, "device"), *grid_text(signature)]
    begin += ["if items:", f"    launch(device, items, {buffers}, {steps}, {sizes})"]
    return call_text(signature, place, begin)


def dimensions_text(letter: str, number: int, type_: BufferType) -> str:
    """``(n0_0, n0_1, )``: one name for every dimension of a buffer."""
    return tuple_text([f"{letter}{number}_{d}" for d in range(len(type_.shape))])


def _unpack(signature: Signature, place: str = "is_cpu") -> Iterator[str]:
    """Right number of tensors, each of the right dtype, place and rank; ``n0_1`` is a dimension."""
    inputs = signature.inputs
    yield f"{tuple_text([f't{i}' for i in range(len(inputs))])} = tensors"
    checks = [
        f"t{i}.dtype is dtype{i} and t{i}.{place} and t{i}.layout is strided and not t{i}.is_neg()"
        for i in range(len(inputs))
    ]
    yield f"fits = {' and '.join(checks) or 'True'}"
    for i, type_ in enumerate(inputs):
        yield f"{dimensions_text('n', i, type_)} = t{i}.shape"


def _bind(signature: Signature) -> _Binding:
    """Sizes from shapes: first from the dimensions without products of names, whose names have a
    factor that is never 0."""
    binding = _Binding()
    pending = [
        (size, f"n{i}_{d}")
        for i, type_ in enumerate(signature.inputs)
        for d, size in enumerate(type_.shape)
    ]
    pending.sort(key=lambda item: (_degree(item[0]), len(item[0].terms)))
    while pending:
        rest = [(size, name) for size, name in pending if not _solve(binding, size, name)]
        if len(rest) == len(pending):
            break
        pending = rest
    missing = [n for n in signature.needed_names() if n not in binding.known]
    if missing or pending:
        what = missing[0] if missing else str(pending[0][0])
        raise BindError(f"{signature.name}: size {what} follows from no input")
    return binding


def _solve(binding: _Binding, size: Size, dimension: str) -> bool:
    """Use ``dimension == size``: a check if it is known, else the value of its one unknown."""
    unknown = size.names - binding.known
    if unknown:
        name = min(unknown)
        factor, rest = size.split(name)
        if len(unknown) > 1 or name in factor.names:
            return False
        binding.known.add(name)
        binding.divides |= factor.constant is None
        binding.assignments.append(f"{name_text(name)} = {_solution(dimension, factor, rest)}")
        if rest.terms or not factor.at_least(0):
            binding.natural.append(f"{name_text(name)} >= 0")
        if factor == Size.of(1):
            return True
    binding.conditions.append(f"{dimension} == {size_text(size)}")
    return True


def _degree(size: Size) -> int:
    return max((len(monomial) for monomial, _ in size.terms), default=0)


def _solution(dimension: str, factor: Size, rest: Size) -> str:
    """The number x with dimension == factor * x + rest, if there is one."""
    over = f"({dimension} - ({size_text(rest)}))" if rest.terms else dimension
    return over if factor == Size.of(1) else f"{over} // ({size_text(factor)})"


def name_text(size_name: str) -> str:
    assert size_name.isidentifier(), f"a size is named {size_name!r}"
    return f"size_{size_name}"


def size_text(size: Size) -> str:
    terms = ["*".join([str(c), *map(name_text, monomial)]) for monomial, c in size.terms]
    return " + ".join(t.removeprefix("1*") for t in terms) or "0"


def _outputs(signature: Signature, device: str = "cpu") -> Iterator[str]:
    for i in range(len(signature.inputs), len(signature.params)):
        shape = ", ".join(map(size_text, signature.params[i].shape))
        # sizes one by one: torch parses a tuple of them much more slowly
        yield f"t{i} = empty({shape or '()'}, dtype=dtype{i}, device={device})"


def _with_room(signature: Signature) -> Iterator[str]:
    """Outputs, or in words what there is no memory for. It costs nothing unless that is so."""
    if not signature.outputs:
        return
    shapes = [
        tuple_text(list(map(size_text, p.shape))) for p in signature.params[len(signature.inputs) :]
    ]
    yield "try:"
    yield from indented(_outputs(signature), 4)
    yield "except (RuntimeError, MemoryError) as error:"
    yield f"    no_room(error, {tuple_text(shapes)})"


def grid_text(signature: Signature) -> Iterator[str]:
    """Extents of the grid, ``grid0`` …, and the number of work items."""
    for i, (size, tile) in enumerate(signature.grid):
        text = size_text(size)
        extent = text if tile == 1 else f"-(-({text}) // {tile})"
        yield f"grid{i} = {extent if size.at_least(0) else f'max(0, {extent})'}"
    yield f"items = {' * '.join(f'grid{i}' for i in range(len(signature.grid))) or '1'}"


def _launch(signature: Signature) -> Iterator[str]:
    """Fill the argument block and run. Block and scratch go back to their pools afterwards."""
    words = ["address", f"address + {COUNTER_BYTES}", "scratch[0]"]
    words += [str(signature.scratch_bytes), "items"]
    words += [f"grid{i}" for i in range(len(signature.grid))]
    words += list(map(name_text, signature.sizes))
    for i, type_ in enumerate(signature.params):
        words += [f"p{i}"] + ([f"*t{i}.stride()"] if type_.shape else [])
        yield f"p{i} = t{i}.data_ptr()"
    pointers = [f"p{i}" for i in range(len(signature.params))]
    yield f"if not ({' and '.join(pointers) or 'True'}):"
    yield f"    check_memory({tuple_text([f't{i}' for i in range(len(pointers))])})"
    yield "if workers > items:"
    yield "    workers = items"
    if signature.scratch_bytes:
        yield f"scratch = take_scratch(workers * {signature.scratch_bytes})"
    yield "frame = take_frame()"
    yield "block, address = frame"
    yield f"write(block, 0, 0, 0, {', '.join(words)})"
    yield f"run(function, address + {ARGUMENTS_AT}, workers)"
    yield "give_frame(frame)"
    if signature.scratch_bytes:
        yield "give_scratch(scratch)"


def key_source(
    signature: Signature,
    static: tuple[str, ...],
    rows: Size,
    inner: Size,
    classes: tuple[int, ...],
    empty: int | None,
) -> str:
    """The text of ``def key(*tensors)``: (units, values of ``static``, class of rows) of a call.

    ``classes`` are upper bounds of rows, 0 for any number; ``empty`` the class of calls whose inner
    axis has no elements, if those have one. ``unit``, ``solve``, ``longest`` and ``too_long`` are
    taken from the surroundings; shapes that do not fit raise ValueError or BindError, or give a key
    whose kernel then complains.
    """
    binding = _bind(signature)
    inputs = signature.inputs
    given = tuple_text([f"t{i}" for i in range(len(inputs))])
    lines = ["def key(*tensors):", f"    {given} = tensors"]
    for i, type_ in enumerate(inputs):
        lines.append(f"    {dimensions_text('n', i, type_)} = t{i}.shape")
    lines += indented(binding.statements(), 4)
    if binding.natural:
        lines += [f"    if not ({' and '.join(binding.natural)}):", "        raise ValueError"]
    lines += [f"    units = {tuple_text([_unit_text(i, x) for i, x in enumerate(inputs)])}"]
    lines += [f"    static = {tuple_text([name_text(n) for n in static])}"]
    lines += [f"    rows, inner = {size_text(rows)}, {size_text(inner)}"]
    if empty is not None:
        lines += ["    if inner == 0:", f"        return units, static, {empty}"]
    lines += ["    if rows >= longest or inner >= longest:", "        too_long(rows, inner)"]
    chosen = "".join(f"{c} if rows <= {c} else " for c in classes if c)
    return "\n".join([*lines, f"    return units, static, {chosen}0", ""])


def sizes_function(graph: Graph) -> Callable[..., dict[str, int]]:
    """A function of tensors that gives the values of a graph's size names, as ``bind_sizes`` does,
    for tensors of which it is known that they fit."""
    values = [f"{name!r}: {name_text(name)}" for name in graph.sizes]
    text, names = sizes_text(graph)
    lines = ["def sizes(*tensors):", *indented(text, 4), f"    return {{{', '.join(values)}}}"]
    return defined("\n".join(lines), f"sizes of kernel {graph.name}", "sizes", names)


def sizes_text(graph: Graph) -> tuple[list[str], dict[str, Any]]:
    """Statements that give a graph's size names their values from ``tensors`` of which it is known
    that they fit, and what they refer to."""
    signature = tensor_signature(graph)
    inputs, binding = signature.inputs, _bind(signature)
    lines = [f"{tuple_text([f't{i}' for i in range(len(inputs))])} = tensors"]
    for i, type_ in enumerate(inputs):
        lines.append(f"{dimensions_text('n', i, type_)} = t{i}.shape")
    return [*lines, *binding.statements()], {"solve": signature.solve}


def defined(text: str, what: str, wanted: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The function ``wanted`` that a text of this module defines, with ``names`` around it.
    ``what`` it is stands in tracebacks."""
    exec(_code(text, what), names)
    function: Callable[..., Any] = names[wanted]
    return function


@lru_cache(maxsize=1024)
def _code(text: str, what: str) -> CodeType:
    """Texts of calls that are bound are the same again and again (cuda/repeat.py)."""
    return compile(text, f"<{what}>", "exec")


def tensor_signature(graph: Graph) -> Signature:
    """What a stream graph takes, without outputs and grid."""
    inputs = tuple(
        BufferType(p.type.shape, p.type.dtype)
        for p in graph.params
        if isinstance(p.type, TensorType)
    )
    hints = tuple(p.hint for p in graph.params)
    return Signature(graph.name, inputs, hints, 0, graph.sizes, (), 0)


def _unit_text(number: int, type_: BufferType) -> str:
    """The last dimension of an input if its stride is one, as it mostly is; else ``unit`` looks."""
    rank = len(type_.shape)
    unit = f"unit(t{number})"
    return f"{rank - 1} if t{number}.stride()[-1] == 1 else {unit}" if rank else unit
