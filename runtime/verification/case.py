"""A case: a program, where it runs, and calls of it by description. It travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewright.ir.core import Graph
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import SettingError
from tilewright.ir.types import TensorType
from tilewright.runtime.verification.values import InputSpec, Shape, default_spec, parse_spec


@dataclass(frozen=True)
class Call:
    """One call: values of size names, the seed of its numbers, inputs that are not the default."""

    sizes: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    inputs: dict[str, InputSpec] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        inputs = {name: str(spec) for name, spec in self.inputs.items()}
        return {"sizes": self.sizes, "seed": self.seed, "inputs": inputs}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Call:
        inputs = {name: parse_spec(text) for name, text in data["inputs"].items()}
        return Call(dict(data["sizes"]), int(data["seed"]), inputs)


@dataclass(frozen=True)
class Case:
    """A tensor-level program's text, its kind in the grammar, back end and target, and calls."""

    kind: str
    text: str
    backend: str
    target: str | None
    calls: tuple[Call, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "text": self.text,
            "backend": self.backend,
            "target": self.target,
            "calls": [call.to_json() for call in self.calls],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Case:
        calls = tuple(Call.from_json(call) for call in data["calls"])
        return Case(data["kind"], data["text"], data["backend"], data["target"], calls)

    @property
    def where(self) -> str:
        """Back end and target in words."""
        return self.backend if self.target is None else f"{self.backend} for {self.target}"


def shapes_of(graph: Graph, sizes: Mapping[str, int]) -> list[tuple[Shape, DType]]:
    """Shape and dtype of every input. Raises SettingError for a negative size."""
    out = []
    for param in graph.params:
        assert isinstance(param.type, TensorType)
        shape = tuple(size.evaluate(sizes) for size in param.type.shape)
        if any(n < 0 for n in shape):
            raise SettingError(f"%{param.hint}: {param.type} has a negative size for these sizes")
        out.append((shape, param.type.dtype))
    return out


def specs_of(graph: Graph, given: Mapping[str, InputSpec]) -> list[InputSpec]:
    """A description for every input. Raises SettingError for one that the program lacks."""
    known = {p.hint: p.type.dtype for p in graph.params if isinstance(p.type, TensorType)}
    for name in given:
        if name not in known:
            raise SettingError(f"the program has no input {name!r}; its inputs: {', '.join(known)}")
    return [given.get(name) or default_spec(dtype) for name, dtype in known.items()]


def command(case: Case, call: Call, file: str) -> str:
    """The command line that runs one call of a case again."""
    words = ["tilewright run", file]
    words += [f"--size {name}={number}" for name, number in call.sizes.items()]
    words += [f"--seed {call.seed}"]
    words += [f"--input {name}={spec}" for name, spec in call.inputs.items()]
    words += [f"--backend {case.backend}"]
    words += [f"--target {case.target}"] if case.target else []
    return " ".join([*words, "--repeat 1"])
