"""From the FX nodes of a region to a tensor-level graph.

Works on the shapes that Dynamo's fake tensors carry; it never looks at numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from tilewright.frontend.op_map.emitter import Emitter, tensor_type
from tilewright.frontend.op_map.promotion import RuntimeNumber
from tilewright.frontend.op_map.registry import Entry, Kind, lookup
from tilewright.frontend.provenance import location_of
from tilewright.frontend.symbols import SizeTable
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.types import TensorType

Translated = Value | tuple[Value, ...]
Scope = dict[Node, Translated]


def fake_of(node: Node) -> Any:
    """What Dynamo knows of a node's value: a fake tensor, a symbolic number, a tuple, None."""
    return node.meta.get("example_value")


def operand_nodes(node: Node) -> list[Node]:
    """The nodes whose tensors the operation reads (``zeros_like(x)`` reads no element of x)."""
    entry = lookup(node)
    if entry is not None and entry.kind is Kind.GENERATOR:
        return []
    return [n for n in node.all_input_nodes if isinstance(fake_of(n), torch.Tensor | tuple)]


@dataclass
class Translator:
    """Emits nodes one by one. ``floats`` collects symbolic Python floats that were taken as
    constants; whoever keeps the result has to guard their values."""

    sizes: SizeTable
    emitter: Emitter = field(default_factory=Emitter)
    scope: Scope = field(default_factory=dict)
    floats: list[torch.SymFloat] = field(default_factory=list)

    def parameter(self, node: Node) -> Value:
        """A parameter for a tensor that comes from outside the region."""
        fake = fake_of(node)
        type_ = TensorType(self.sizes.shape(fake.shape), ir_dtype(fake.dtype))
        value = Value(type_, hint=self._free_hint(_short(node.name)))
        self.scope[node] = value
        return value

    def _free_hint(self, name: str) -> str:
        """A parameter's name: without Dynamo's number, which differs from layer to layer."""
        stem = name.rstrip("0123456789").rstrip("_") or "x"
        taken = {v.hint for v in self.scope.values() if isinstance(v, Value)}
        tries = (stem, *(f"{stem}_{at}" for at in range(1, len(taken) + 1)))
        return next(t for t in tries if t not in taken)

    def node(self, node: Node) -> Translated:
        """Emits one node; UnsupportedError names its operation and the user's line."""
        entry = lookup(node)
        assert entry is not None, f"{node} is not in the op map"
        self.emitter.builder.loc = location_of(node)
        try:
            result = self._call(entry, node)
        except VerifyError as error:
            raise UnsupportedError(f"{entry.name}: {error.message}", location_of(node)) from error
        except UnsupportedError as error:
            if error.location is not None:
                raise
            raise UnsupportedError(f"{entry.name}: {error.message}", location_of(node)) from error
        self.scope[node] = result
        self._keep_letters(entry, node, result)
        return result

    def _call(self, entry: Entry, node: Node) -> Translated:
        self._describe_result(node)
        args = [self._argument(a) for a in node.args]
        if node.target is getattr:
            args = args[:1]
        kwargs = {k: self._argument(v) for k, v in node.kwargs.items()}
        try:
            inspect.signature(entry.handler).bind(self.emitter, *args, **kwargs)
        except TypeError as error:
            raise UnsupportedError(f"these arguments are not known ({error})") from error
        before = len(self.emitter.builder.ops)
        result: Translated = entry.handler(self.emitter, *args, **kwargs)
        self._check(result)
        for op in self.emitter.builder.ops[before:]:
            if op.results == (result,):
                op.result.hint = _short(node.name)
        return result

    def _describe_result(self, node: Node) -> None:
        fake = fake_of(node)
        if isinstance(fake, tuple) and fake:
            fake = fake[0]
        if not isinstance(fake, torch.Tensor):
            raise UnsupportedError("its result is not a tensor")
        for operand in operand_nodes(node):
            given = fake_of(operand)
            if isinstance(given, torch.Tensor) and given.device != fake.device:
                raise UnsupportedError(f"it moves from {given.device} to {fake.device}")
        self.emitter.shape = self.sizes.shape(fake.shape)
        self.emitter.dtype = ir_dtype(fake.dtype)

    def _check(self, result: Translated) -> None:
        """Holds the handler's result against torch's own shape and dtype."""
        first = result if isinstance(result, Value) else result[0]
        wanted = TensorType(self.emitter.shape, self.emitter.dtype)
        if tensor_type(first) != wanted:
            raise UnsupportedError(f"torch's result is {wanted}, ours {first.type}")

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self._node_argument(argument)
        if isinstance(argument, tuple | list):
            return tuple(self._argument(a) for a in argument)
        if isinstance(argument, slice):
            ends = (argument.start, argument.stop, argument.step)
            return slice(*(self._argument(a) for a in ends))
        return argument

    def _node_argument(self, node: Node) -> Any:
        if node in self.scope:
            return self.scope[node]
        value = fake_of(node)
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return self._number(value)
        return value if isinstance(value, int | float) else None  # a generator's model tensor

    def _number(self, value: torch.SymInt | torch.SymFloat) -> int | float | RuntimeNumber:
        expr = value.node.expr
        if isinstance(value, torch.SymInt):
            return int(expr) if expr.is_Integer else RuntimeNumber(str(expr))
        if not expr.is_number:
            self.floats.append(value)
        return float(value.node.hint)

    def _keep_letters(self, entry: Entry, node: Node, result: Translated) -> None:
        """Pointwise work keeps the axis letters of the operand that its result looks like."""
        letters = self.emitter.letters
        if entry.kind not in (Kind.POINTWISE, Kind.SOFTMAX) or not isinstance(result, Value):
            return
        for operand in node.all_input_nodes:
            value = self.scope.get(operand)
            if isinstance(value, Value) and value in letters and value.type == result.type:
                letters[result] = letters[value]


def _short(name: str) -> str:
    """Dynamo's name without its prefix for inputs: ``l_kwargs_q_`` -> ``q``, and of a module's
    parameter only the last module: equal layers then have equal text."""
    name = name.rpartition("_modules_")[2].replace("_parameters_", "_")
    parts = name.strip("_").split("_")
    while len(parts) > 1 and parts[0] in ("l", "args", "kwargs", "self", "stack0", "modules"):
        parts = parts[1:]
    name = "_".join(parts) or "x"
    return "".join(c if c.isalnum() else "_" for c in name)


def probe(node: Node) -> str | None:
    """Why one node, taken alone, cannot be translated; None if it can."""
    entry = lookup(node)
    if entry is None:
        return "not in the op map"
    try:
        if entry.settle is not None:
            entry.settle(node)
        operands = operand_nodes(node)
        translator = Translator(SizeTable(_shapes([*operands, node])))
        for operand in operands:
            _probe_operand(translator, operand)
        translator.node(node)
    except UnsupportedError as error:
        return error.message
    return None


def _probe_operand(translator: Translator, node: Node) -> None:
    fake = fake_of(node)
    if not isinstance(fake, tuple):
        translator.parameter(node)
        return
    known = lookup(node)
    if known is None or known.kind not in (Kind.REDUCTION, Kind.ROUTING):
        raise UnsupportedError("it takes one of several tensors that torch made")
    fakes = fake[:1] if known.kind is Kind.REDUCTION else fake
    sizes = translator.sizes
    types = (TensorType(sizes.shape(f.shape), ir_dtype(f.dtype)) for f in fakes)
    translator.scope[node] = tuple(Value(type_) for type_ in types)


def _shapes(nodes: Sequence[Node]) -> list[Sequence[Any]]:
    fakes = [fake_of(n) for n in nodes]
    tensors = [f[0] if isinstance(f, tuple) and f else f for f in fakes]
    return [t.shape for t in tensors if isinstance(t, torch.Tensor)]
