"""Loops and branches, and the names that stand for what they carry."""

from __future__ import annotations

from typing import Any

from tilewright.backends.mlir.registers import Registers, held_type, physical
from tilewright.backends.mlir.text import MlirText
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Region, Value
from tilewright.ir.types import IndexType, RegisterType


class ControlFlow:
    """The part of a program's writer that writes loops. ``values`` says what stands for a value."""

    text: MlirText
    values: dict[Value, Any]

    def _region(self, region: Region) -> list[str]:
        """Writes a region; the names of what it yields."""
        raise NotImplementedError

    def _flat(self, value: Value) -> list[str]:
        held = self.values[value]
        return held.names if isinstance(held, Registers) else [held]

    def _types(self, value: Value) -> list[str]:
        if isinstance(value.type, IndexType):
            return ["i64"]
        assert isinstance(value.type, RegisterType)
        return [held_type(value.type)] * physical(value.type)

    def _bind(self, value: Value, names: list[str]) -> None:
        if isinstance(value.type, IndexType):
            self.values[value] = names[0]
        else:
            assert isinstance(value.type, RegisterType)
            self.values[value] = Registers(value.type, names)

    def _tile_for(self, op: t.For) -> None:
        text, region = self.text, op.regions[0]
        lo, hi = self.values[op.lo], self.values[op.hi]
        step = text.i64(op.step)
        counter = text.name()
        inits = [n for v in op.inits for n in self._flat(v)]
        types = [x for v in op.inits for x in self._types(v)]
        inner = [text.name() for _ in inits]
        head = f"scf.for {counter} = {lo} to {hi} step {step}"
        results = text.name() if inits else ""
        if inits:
            pairs = ", ".join(f"{a} = {b}" for a, b in zip(inner, inits, strict=True))
            head = f"{results}:{len(inits)} = {head} iter_args({pairs}) -> ({', '.join(types)})"
        text.line(f"{head} : i64 {{")
        self.values[region.params[0]] = counter
        self._bind_all(region.params[1:], inner)
        with text.region():
            yields = self._region(region)
            if inits:
                text.line(f"scf.yield {', '.join(yields)} : {', '.join(types)}")
        text.line("}")
        names = [f"{results}#{i}" for i in range(len(inits))]
        self._bind_all(op.results, names)

    def _tile_while(self, op: t.While) -> None:
        """The condition is carried as the first value: what is before the body only tests it."""
        text, region = self.text, op.regions[0]
        inits = [n for v in op.operands for n in self._flat(v)]
        types = [x for v in op.operands for x in self._types(v)]
        before, inner = [text.name() for _ in inits], [text.name() for _ in inits]
        results, listed = text.name(), ", ".join(types)
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(before, inits, strict=True))
        text.line(f"{results}:{len(inits)} = scf.while ({pairs}) : ({listed}) -> ({listed}) {{")
        with text.region():
            again = text.op(f"arith.cmpi sgt, {before[0]}, {text.i64(0)} : i64")
            text.line(f"scf.condition({again}) {', '.join(before)} : {listed}")
        text.line("} do {")
        with text.region():
            text.line(f"^bb0({', '.join(f'{n}: {x}' for n, x in zip(inner, types, strict=True))}):")
            self._bind_all(region.params, inner[1:])
            text.line(f"scf.yield {', '.join(self._region(region))} : {listed}")
        text.line("}")
        self._bind_all(op.results, [f"{results}#{i}" for i in range(1, len(inits))])

    def _bind_all(self, values: tuple[Value, ...], names: list[str]) -> None:
        at = 0
        for value in values:
            count = len(self._types(value))
            self._bind(value, names[at : at + count])
            at += count

    def _tile_if(self, op: t.If) -> None:
        lo, hi = self.values[op.lo], self.values[op.hi]
        inside = self.text.op(f"arith.cmpi slt, {lo}, {hi} : i64")
        self.text.line(f"scf.if {inside} {{")
        with self.text.region():
            self._region(op.regions[0])
        self.text.line("}")
