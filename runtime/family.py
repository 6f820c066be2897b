"""One kernel in all its compiled forms: chosen by what the inputs are, made when first needed.

A form depends on which dimension of each input has stride one, on the sizes that lie inside an
element
(a head's), and on how many rows share a read; never on a batch or a length.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import BindError, ScheduleError, UnsupportedError
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.ops_stream import Gather
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import StreamType, TensorType
from tilewright.passes.canonicalise import drop_dead
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.cost.defaults import few_row_classes
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse, is_routing, is_row_kernel
from tilewright.passes.to_tile.lowbit.info import has_packed_weights
from tilewright.passes.to_tile.narrow import LONGEST
from tilewright.passes.to_tile.orders import ANY, ordered_classes, ordered_target
from tilewright.passes.to_tile.routing.info import token_classes
from tilewright.passes.to_tile.row_kernel import any_length
from tilewright.passes.to_tile.schedule import row_classes
from tilewright.passes.to_tile.spaces import kernel_space
from tilewright.passes.to_tile.tables import tables_of, with_tables
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    ROW_CLASSES as PRODUCT_ROW_CLASSES,
)
from tilewright.passes.to_tile.whole_blocks.schedule import row_classes as block_row_classes
from tilewright.runtime.calls import defined, key_source, tensor_signature
from tilewright.runtime.cuda.repeat import bound
from tilewright.runtime.determinism import NONE, Level
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.locks import GENERATORS, Guard
from tilewright.runtime.logs import KERNELS
from tilewright.runtime.report import VariantReport
from tilewright.runtime.tables import block_extremes
from tilewright.runtime.tracing.recorder import now
from tilewright.runtime.tuned import TUNED, BySize, TuningWarning

Call = Callable[..., tuple[torch.Tensor, ...]]
Key = tuple[tuple[int, ...], tuple[int, ...], int]  # units, static sizes, row class


@dataclass(frozen=True)
class Variant:
    """What to compile: a specialised stream graph, its row class and unit strides; ``choice``:
    fields of its schedule that are not to be the default's; ``order``: what its numbers may depend
    on; ``shared``: whether threads may take parts of sums, as many as there are threads."""

    graph: Graph
    rows: int
    units: tuple[int, ...]
    static_sizes: dict[str, int]
    choice: Choice = field(default_factory=dict)
    order: str = ANY  # of its sums (passes/to_tile/orders.py)
    shared: bool = False

    @property
    def unit_dims(self) -> dict[str, int]:
        """The dimension with stride one of each input by its name, as lowering wants them."""
        return dict(zip((p.hint for p in self.graph.params), self.units, strict=True))


EMPTY = -1  # row class of calls with nothing to sum
Maker = Callable[[Variant, Target], tuple[Call, VariantReport]]


class KernelFamily:
    """Dispatches calls of one kernel to its compiled forms. Safe to call from several threads."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        make: Maker,
        empty: Call | None = None,
        backend: str = "mlir",
        level: Level = NONE,
    ) -> None:
        """``backend``: its name, under which tuning knows the kernel. ``level``: what bits may not
        depend on. ``empty`` is called instead
        of a kernel when the axis that is summed along has no elements: quotients of sums moved past
        each other are 0 / 0 then."""
        self.given = len(graph.params)
        self.source, self.backend, self.level = graph, backend, level
        graph = with_tables(graph)
        self.graph, self.target, self.make, self.empty = graph, target, make, empty
        self.tables = [source for source, _, _ in tables_of(graph)]
        self.gathered = _gathered(graph)
        info = analyse(graph)
        self.inner: Size = info.inner.size if not info.splits else Size.of(1)
        names = set() if any_length(graph) and not target.gpu else _static_names(graph)
        self.static_names = tuple(sorted(names))
        self.row_count: Size = info.row_count
        self.classes = _classes(graph, target, info, level)
        self.forms: dict[Key, Call] = {}
        self.refused: dict[Key, UnsupportedError] = {}  # that no form can be made for, and why
        self.reports: list[VariantReport] = []
        self.guard = Guard()
        self.known = 0  # the state of tuned schedules that the forms were made by
        self._facts = self._key_function()

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if now.recorder is not None and now.recorder.wants_kernel(self):
            return now.recorder.kernel(self, tensors)
        if time.monotonic() >= TUNED.look_at or self.known != TUNED.number:
            self._look_again()
        if self.gathered and not self._have_entries(tensors):
            return self._without_entries(tensors)
        if self.tables:
            tensors = self._with_tables(tensors)
        key = self.key(tensors)
        form = self.forms.get(key)
        if form is None:
            form = self._make(key)
        return form(*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their dtypes, shapes and strides,
        without looking at them again; None where there is nothing quicker."""
        self._look_again()
        if self.gathered and not self._have_entries(tensors):
            return None
        whole = self._with_tables(tensors) if self.tables else tensors
        form = self.forms.get(self.key(whole))
        again = None if form is None else bound(form, whole)
        if again is None or not self.tables:
            return again
        return lambda *tensors: again(*self._with_tables(tensors))

    def _look_again(self) -> None:
        """Forgets the forms if there are schedules that they were not made by."""
        TUNED.look()
        if self.known != TUNED.number:
            with self.guard.lock:
                self.forms, self.reports, self.known = {}, [], TUNED.number
                self.refused = {}

    def _have_entries(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """True if everything that is read at computed positions has elements."""
        try:
            return all(tensors[i].numel() for i in self.gathered)
        except (AttributeError, IndexError):
            return True  # the key complains

    def completed(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What a form is called with: the inputs, and the tables made from them if it takes any."""
        return self._with_tables(tensors) if self.tables else tensors

    def _with_tables(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The inputs and the tables made from them."""
        if len(tensors) != self.given or not all(isinstance(x, torch.Tensor) for x in tensors):
            return tensors  # the key complains
        for source in self.tables:
            tensors = (*tensors, *block_extremes(tensors[source]))
        return tensors

    def _without_entries(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """A call in which something that is read at computed positions has no elements."""
        if self.empty is None:
            named = [self.graph.params[i].hint for i in self.gathered if not tensors[i].numel()]
            raise BindError(f"{self.graph.name}: %{named[0]} has no elements to read")
        return self.empty(*tensors)

    def key(self, tensors: tuple[torch.Tensor, ...]) -> Key:
        """What decides the form for these inputs. Raises BindError if they do not fit."""
        try:
            return self._facts(*tensors)
        except (AttributeError, TypeError, ValueError):
            self._complain(tensors)
            raise

    def _too_long(self, rows: int, inner: int) -> NoReturn:
        size = max(rows, inner)
        raise BindError(f"{self.graph.name}: {size} positions; a kernel takes fewer than 2^30")

    def _complain(self, tensors: tuple[object, ...]) -> None:
        """BindError that says which input does not fit."""
        for param, tensor in zip(self.graph.params, tensors, strict=False):
            if not isinstance(tensor, torch.Tensor):
                kind = type(tensor).__name__
                raise BindError(f"%{param.hint} must be a torch tensor, the input is a {kind}")
        shapes = [tuple(x.shape) for x in tensors if isinstance(x, torch.Tensor)]
        bind_sizes(self.graph, shapes)

    def _key_function(self) -> Callable[..., Key]:
        """Reads the key off the inputs, written as Python for this kernel's shapes."""
        signature = tensor_signature(self.graph)
        names: dict[str, object] = {
            "unit": _unit,
            "solve": signature.solve,
            "longest": LONGEST,
            "too_long": self._too_long,
        }
        empty = None if self.empty is None else EMPTY
        facts = self.static_names, self.row_count, self.inner, self.classes, empty
        source = key_source(signature, *facts)
        return defined(source, f"key of kernel {self.graph.name}", "key", names)

    def _make(self, key: Key) -> Call:
        with self.guard.lock:
            if key in self.forms:
                return self.forms[key]
            if key in self.refused:
                raise self.refused[key].with_traceback(None)
            if key[2] == EMPTY and self.empty is not None:
                empty, given = self.empty, self.given
                self.forms[key] = lambda *tensors: empty(*tensors[:given])
                return self.forms[key]
            variant = self.variant(key)
            # no method of this family: what repeats a call (cuda/repeat.py) asks a method's owner
            try:
                nothing = gives_nothing(variant.graph)
                call = partial(self._nothing) if nothing else self._with_elements(variant)
            except UnsupportedError as error:  # lowering it again takes as long at every call
                self.refused[key] = error
                raise
            self.forms[key] = call
            return call

    def _with_elements(self, variant: Variant) -> Call:
        """The kernel of the results that have elements; the others need none, and it could not
        tell where memory of no size ends."""
        graph = variant.graph
        kept = [v for v in graph.results if not is_empty(v)]
        if len(kept) == len(graph.results):
            return self._chosen(variant)
        others = drop_dead(graph.with_body(replace(graph.body, yields=tuple(kept))))
        call = self._chosen(replace(variant, graph=others))
        places = [None if is_empty(v) else kept.index(v) for v in graph.results]

        def beside(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made, empty = call(*tensors), self._nothing(*tensors)
            return tuple(
                none if at is None else made[at] for none, at in zip(empty, places, strict=True)
            )

        return beside

    def _nothing(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results of a call that have no element: no kernel has rows of none. Those that have
        some are left empty, too."""
        sizes = bind_sizes(self.graph, [tuple(x.shape) for x in tensors])
        types = [v.type for v in self.graph.results if isinstance(v.type, TensorType)]
        shapes = [[size.evaluate(sizes) for size in type_.shape] for type_ in types]
        return tuple(
            tensors[0].new_empty(shape if 0 in shape else [0], dtype=TORCH_DTYPES[type_.dtype.name])
            for shape, type_ in zip(shapes, types, strict=True)
        )

    def variant(self, key: Key) -> Variant:
        """What to compile for calls with a key."""
        units, static, rows = key
        values = dict(zip(self.static_names, static, strict=True))
        shared = not self.level.promises("threads")
        graph = specialise(self.graph, values)
        return Variant(graph, rows, units, values, order=self.level.order, shared=shared)

    def _chosen(self, variant: Variant) -> Call:
        """The form of a variant; where tuning has found schedules for some sizes, forms by size."""
        if not TUNED.any or self.level.promises("run"):  # the database changes while programs run
            return self._compiled(variant)
        with GENERATORS.lock:
            from tilewright.runtime.tuning.task import changing, kernel_key

        key = kernel_key(variant, self.target, self.backend)
        known = TUNED.of(key, bool(self.target.gpu))
        if not known:
            return self._compiled(variant)
        return BySize(known, changing(self.source), partial(self._tuned, variant))

    def _tuned(self, variant: Variant, choice: Choice) -> Call:
        """The form with a choice from the database, which may hold anything: checked first."""
        try:
            if choice:
                kernel_space(variant.graph, self.target, variant.rows).check(choice)
            return self._compiled(replace(variant, choice=choice))
        except (ScheduleError, UnsupportedError) as error:
            text = f"tuned schedule of {self.graph.name}: {error.message}; its default is used"
            warnings.warn(text, TuningWarning, stacklevel=5)
            return self._compiled(variant)

    def _compiled(self, variant: Variant) -> Call:
        start = time.perf_counter()
        target = ordered_target(variant.graph, self.target, variant.rows, variant.order)
        call, report = self.make(variant, target)
        report.seconds = time.perf_counter() - start
        self.reports.append(report)
        KERNELS.info("%s, %s", self.graph.name, report)
        return call


def _classes(graph: Graph, target: Target, info: KernelInfo, level: Level) -> tuple[int, ...]:
    """Numbers of rows that have layouts of their own."""
    if level.order != ANY:
        return ordered_classes(graph, target)
    if is_routing(graph):
        return token_classes(graph, target)
    if target.gpu:
        packed = has_packed_weights(graph)
        return PRODUCT_ROW_CLASSES if packed else block_row_classes(info)
    if is_row_kernel(graph):
        return ()
    return row_classes(target) if has_packed_weights(graph) else few_row_classes(info, target)


def _gathered(graph: Graph) -> tuple[int, ...]:
    """Which inputs are read at computed positions."""
    read = {op.tensor for op in graph.body.ops if isinstance(op, Gather)}
    return tuple(i for i, param in enumerate(graph.params) if param in read)


def _unit(tensor: torch.Tensor) -> int:
    """The last dimension with stride one (or of at most one element), -1 if none; of a tensor
    without elements the last one."""
    strides = tensor.stride()
    if strides and (strides[-1] == 1 or not tensor.numel()):
        return len(strides) - 1
    shape = tensor.shape
    for dim in range(len(shape) - 1, -1, -1):
        if strides[dim] == 1 or (shape[dim] <= 1 and dim == len(shape) - 1):
            return dim
    return -1


def gives_nothing(graph: Graph) -> bool:
    """Whether the sizes that a form is made for leave no result an element."""
    return all(is_empty(v) for v in graph.results)


def is_empty(value: Value) -> bool:
    """Whether a tensor is known to have no element."""
    return isinstance(value.type, TensorType) and any(s.constant == 0 for s in value.type.shape)


def _static_names(graph: Graph) -> set[str]:
    """Sizes of axes that lie inside an element, and of what packed codes take in memory: known
    when compiling, so that the operation's rule holds the one to the other."""
    types = [v.type for op in graph.body.ops for v in op.results]
    sizes = [a.size for x in types if isinstance(x, StreamType) for a in x.element]
    packed = [v.type for op in graph.body.ops for v in op.operands if _is_packed(op)]
    sizes += [s for x in packed if isinstance(x, TensorType) for s in x.shape[1:]]
    return {name for size in sizes for name in size.names}


def _is_packed(op: Op) -> bool:
    return isinstance(op, StreamDequantize)
