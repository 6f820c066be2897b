"""Values, operations, regions, graphs and modules; the registry of operations.

All of them are immutable once made. A rewrite builds new operations from new operands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tilewright.ir.dtypes import DType
from tilewright.ir.errors import Location, VerifyError
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, Type

Attr = Any  # int, float, str, bool, Size, DType, Type or a tuple of those
NOWHERE = Location()


@dataclass(eq=False)
class Value:
    """A value in SSA form, equal only to itself. ``hint`` is the name it would like in print."""

    type: Type
    hint: str = ""

    def __repr__(self) -> str:
        return f"%{self.hint or id(self)}: {self.type}"


@dataclass(frozen=True, eq=False)
class Region:
    """A block of operations with parameters, ending in the values it yields."""

    params: tuple[Value, ...]
    ops: tuple[Op, ...]
    yields: tuple[Value, ...] = ()

    def walk(self) -> Iterator[Op]:
        """All operations, outer ones before those in their regions."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()


@dataclass(frozen=True)
class Operand:
    """A named operand of an op class; ``rest`` takes all that remain."""

    rest: bool = False


@dataclass(frozen=True)
class Attribute:
    """A named attribute of an op class with its default (``required`` if none) and its ``kind``,
    which is the annotation of its field."""

    default: Any = None
    required: bool = True
    kind: str = ""


def operand(rest: bool = False) -> Any:
    """Declares an operand field of an op class."""
    return Operand(rest)


def attribute(**default: Any) -> Any:
    """Declares an attribute field of an op class: ``attribute()`` or ``attribute(default=0)``."""
    return Attribute(default.get("default"), "default" not in default)


def _is_int(value: Attr) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(holds: Callable[[Attr], bool]) -> Callable[[Attr], bool]:
    return lambda value: isinstance(value, tuple | list) and all(map(holds, value))


def _one(kind: Any) -> Callable[[Attr], bool]:
    return lambda value: isinstance(value, kind)


def _is_bound(value: Attr) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and _is_int(value[0])
        and isinstance(value[1], str)
    )


# annotation of an attribute -> whether a value is one, and what to call it
KINDS: dict[str, tuple[Callable[[Attr], bool], str]] = {
    "int": (_is_int, "an integer"),
    "float": (_one(int | float), "a number"),
    "bool": (_one(bool), "true or false"),
    "str": (_one(str), "a string"),
    "Type": (_one(Type), "a type"),
    "DType": (_one(DType), "an element type"),
    "Layout": (_one(Layout), "a layout"),
    "Size": (_one(Size), "size(…)"),
    "Axis": (_one(Axis), "axis(name, size)"),
    "tuple[int, ...]": (_all(_is_int), "a list of integers"),
    "tuple[float, ...]": (_all(_one(int | float)), "a list of numbers"),
    "tuple[str, ...]": (_all(_one(str)), "a list of strings"),
    "tuple[Size, ...]": (_all(lambda v: _is_int(v) or isinstance(v, Size)), "a list of sizes"),
    "Dims": (_all(_all(_one(str))), "a list of lists of axes"),
    "Bounds": (_all(_is_bound), "a list of pairs [dimension, kind]"),
}
REGISTRY: dict[str, type[Op]] = {}


class Op:
    """One operation. Subclasses declare ``operand()`` and ``attribute()`` fields, ``infer`` and
    ``reference``; the printer, parser, verifier and interpreter need nothing more. Only those with
    the trait ``regions`` have any."""

    name: ClassVar[str] = ""
    traits: ClassVar[frozenset[str]] = frozenset()
    operand_names: ClassVar[tuple[str, ...]] = ()
    rest_name: ClassVar[str | None] = None
    attribute_specs: ClassVar[dict[str, Attribute]] = {}

    operands: tuple[Value, ...]
    attrs: dict[str, Attr]
    regions: tuple[Region, ...]
    results: tuple[Value, ...]
    loc: Location

    def __init_subclass__(cls, name: str = "", traits: Sequence[str] = ()) -> None:
        super().__init_subclass__()
        names: list[str] = []
        specs = dict(cls.attribute_specs)
        for key, kind in inspect.get_annotations(cls).items():
            spec = cls.__dict__.get(key)
            if isinstance(spec, Operand):
                if spec.rest:
                    cls.rest_name = key
                    setattr(cls, key, property(_rest_getter(len(cls.operand_names) + len(names))))
                else:
                    at = len(cls.operand_names) + len(names)
                    setattr(cls, key, property(_operand_getter(at)))
                    names.append(key)
            elif isinstance(spec, Attribute):
                assert kind in KINDS, f"{name}.{key}: no kind of attribute is called {kind!r}"
                specs[key] = replace(spec, kind=kind)
                setattr(cls, key, property(_attr_getter(key)))
        cls.operand_names = cls.operand_names + tuple(names)
        cls.attribute_specs = specs
        cls.traits = cls.traits | frozenset(traits)
        if name:
            assert name not in REGISTRY, f"op {name} is declared twice"
            cls.name = name
            REGISTRY[name] = cls

    def __init__(
        self,
        *operands: Value,
        regions: Sequence[Region] = (),
        loc: Location = NOWHERE,
        hints: Sequence[str] = (),
        **attrs: Attr,
    ) -> None:
        self.operands = tuple(operands)
        self.regions = tuple(regions)
        self.loc = loc
        self.attrs = self._complete(attrs)
        wanted = len(self.operand_names)
        if len(operands) < wanted or (len(operands) > wanted and self.rest_name is None):
            raise self.error(f"takes {wanted} operands ({', '.join(self.operand_names)})")
        if self.regions and "regions" not in self.traits:
            raise self.error("takes no region")
        types = self.infer()
        listed = tuple(types) if isinstance(types, tuple | list) else (types,)
        self.results = tuple(
            Value(t, hints[i] if i < len(hints) else "") for i, t in enumerate(listed)
        )

    def _complete(self, attrs: Mapping[str, Attr]) -> dict[str, Attr]:
        unknown = attrs.keys() - self.attribute_specs.keys()
        if unknown:
            known = ", ".join(self.attribute_specs) or "none"
            raise self.error(f"has no attribute {sorted(unknown)[0]!r} (it has: {known})")
        full: dict[str, Attr] = {}
        for key, spec in self.attribute_specs.items():
            if key in attrs:
                fits, wanted = KINDS[spec.kind]
                if not fits(attrs[key]):
                    raise self.error(f"{key} must be {wanted}")
                full[key] = attrs[key]
            elif spec.required:
                raise self.error(f"needs the attribute {key!r}")
            else:
                full[key] = spec.default
        return full

    def infer(self) -> Type | tuple[Type, ...]:
        """Types of the results from operands and attributes; raises VerifyError on a broken
        rule."""
        raise NotImplementedError(self.name)

    def reference(self, *inputs: Any) -> Any:
        """The meaning in NumPy on whole arrays (pure ops only)."""
        raise NotImplementedError(self.name)

    def error(self, rule: str) -> VerifyError:
        """An error that names this op, its operands' types and the rule it breaks."""
        given = ", ".join(str(v.type) for v in self.operands)
        return VerifyError(f"{self.name}({given}): {rule}", self.loc)

    def require(self, condition: bool, rule: str) -> None:
        """Raises the op's error unless the rule holds."""
        if not condition:
            raise self.error(rule)

    @property
    def result(self) -> Value:
        assert len(self.results) == 1, f"{self.name} has {len(self.results)} results"
        return self.results[0]

    def explicit_attrs(self) -> dict[str, Attr]:
        """Attributes that differ from their defaults."""
        specs = self.attribute_specs
        return {k: v for k, v in self.attrs.items() if specs[k].required or v != specs[k].default}

    def rebuilt(self, operands: Sequence[Value], regions: Sequence[Region] | None = None) -> Op:
        """The same operation on other operands (and regions); itself if nothing changed."""
        if regions is None and tuple(operands) == self.operands:
            return self
        if regions is None and not self.regions and _same_types(operands, self.operands):
            return self._retaken(operands)
        return type(self)(
            *operands,
            regions=self.regions if regions is None else regions,
            loc=self.loc,
            hints=[r.hint for r in self.results],
            **self.attrs,
        )

    def _retaken(self, operands: Sequence[Value]) -> Op:
        """The operation on others of the same types: its results have theirs, and what was checked
        when it was made holds."""
        fresh = object.__new__(type(self))
        fresh.operands, fresh.regions, fresh.loc = tuple(operands), (), self.loc
        fresh.attrs = dict(self.attrs)
        fresh.results = tuple(Value(r.type, r.hint) for r in self.results)
        return fresh


def _same_types(some: Sequence[Value], others: Sequence[Value]) -> bool:
    return len(some) == len(others) and all(
        x.type is y.type or x.type == y.type for x, y in zip(some, others, strict=True)
    )


def _operand_getter(at: int) -> Callable[[Op], Value]:
    return lambda op: op.operands[at]


def _rest_getter(at: int) -> Callable[[Op], tuple[Value, ...]]:
    return lambda op: op.operands[at:]


def _attr_getter(key: str) -> Callable[[Op], Attr]:
    return lambda op: op.attrs[key]


LEVELS = ("graph", "stream", "tile")


@dataclass(frozen=True, eq=False)
class Graph:
    """A function at one level: ``graph`` (tensors), ``stream`` (channels) or ``tile``."""

    level: str
    name: str
    sizes: tuple[str, ...]
    body: Region
    attrs: dict[str, Attr] = field(default_factory=dict)

    @property
    def params(self) -> tuple[Value, ...]:
        return self.body.params

    @property
    def results(self) -> tuple[Value, ...]:
        return self.body.yields

    def with_body(self, body: Region) -> Graph:
        return replace(self, body=body)

    def uses(self) -> dict[Value, list[Op]]:
        """For every value the operations that take it, in order (top level only)."""
        table: dict[Value, list[Op]] = {}
        for op in self.body.ops:
            for value in op.operands:
                table.setdefault(value, []).append(op)
        return table

    def users(self) -> dict[Value, list[Op | None]]:
        """For every value the operations that take it, those in regions included; None stands for
        a region that yields it."""
        found: dict[Value, list[Op | None]] = {}
        for op in self.body.walk():
            for value in op.operands:
                found.setdefault(value, []).append(op)
            for region in op.regions:
                for value in region.yields:
                    found.setdefault(value, []).append(None)
        for value in self.results:
            found.setdefault(value, []).append(None)
        return found

    def producers(self) -> dict[Value, Op]:
        return {result: op for op in self.body.ops for result in op.results}


@dataclass(frozen=True, eq=False)
class Module:
    """Graphs in order; the first is the one that runs. Equal if they print the same."""

    graphs: tuple[Graph, ...]

    @property
    def main(self) -> Graph:
        return self.graphs[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Module) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        from tilewright.ir.printer import print_module

        return print_module(self)


class Builder:
    """Appends operations to a list and hands back their results."""

    def __init__(self, loc: Location = NOWHERE) -> None:
        self.ops: list[Op] = []
        self.loc = loc

    def __call__(
        self,
        cls: type[Op],
        *operands: Value,
        hint: str = "",
        regions: Sequence[Region] = (),
        **attrs: Attr,
    ) -> Value:
        """Append an op with one result and return that."""
        op = self.add(cls(*operands, regions=regions, loc=self.loc, hints=[hint], **attrs))
        return op.result

    def add(self, op: Op) -> Op:
        self.ops.append(op)
        return op


def size_names(sizes: Sequence[Size]) -> tuple[str, ...]:
    """Names in the order of first use."""
    seen: dict[str, None] = {}
    for size in sizes:
        for name in sorted(size.names):
            seen.setdefault(name)
    return tuple(seen)
