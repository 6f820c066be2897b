"""Bits taken apart and bytes multiplied: views, tables in registers, 8-bit dot products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.backends.mlir.registers import Registers, held_type, physical
from tilewright.backends.mlir.text import MlirText
from tilewright.ir.core import Op
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import Lookup, LookupBytes, LookupHalves, View, bf16_bits
from tilewright.ir.ops_tile import Dot
from tilewright.ir.target import Target
from tilewright.ir.types import RegisterType

SIGN = 128  # the offset of signed bytes
MASKED_BITS = 7  # codes of so many bits: two products with an i8 still fit into i16


class BitEmitter:
    """Writes tile.view, tile.lookup, tile.lookup_bytes and tile.lookup_halves."""

    def __init__(self, text: MlirText, target: Target) -> None:
        self.text, self.target = text, target
        self.writers: dict[str, Callable[..., Registers]] = {
            View.name: self.view,
            Lookup.name: self.lookup,
            LookupBytes.name: self.lookup_bytes,
            LookupHalves.name: self.lookup_halves,
        }

    def view(self, op: View, x: Registers) -> Registers:
        """A bitcast of every register: a lane's word stays in its lane."""
        result = op.result.type
        assert isinstance(result, RegisterType)
        if physical(result) != len(x.names):
            raise UnsupportedError(f"{x.type} as {result}: other than word by word", op.loc)
        held = held_type(result)
        if held == x.held:
            return Registers(result, x.names)
        uniform = x.uniform
        name = "arith.bitcast" if uniform else "vector.bitcast"
        cast = [self.text.op(f"{name} {n} : {x.held} to {held}") for n in x.names]
        return Registers(result, cast)

    def _permutes(self, lanes: int) -> bool:
        """Whether the target has permutations of a register of so many lanes."""
        return bool(self.target.named) if lanes == 8 else self.target.named == "avx512"

    def _require(self, index: Registers, op: Op, widths: tuple[int, ...]) -> None:
        """Raises UnsupportedError unless an index lies in lanes that the target can permute."""
        if index.uniform or index.lanes not in widths or not self._permutes(index.lanes):
            known = " or ".join(map(str, widths))
            message = f"{op.name} needs vectors of {known} lanes and instructions that permute them"
            raise UnsupportedError(f"{message}; {self.target.name} has none", op.loc)

    def lookup(self, op: Lookup, index: Registers) -> Registers:
        """Permutations of a register of values, chosen between by the index's higher bits; where
        there are none, all is chosen by bits."""
        result = op.result.type
        assert isinstance(result, RegisterType)
        if index.uniform:
            raise UnsupportedError("tile.lookup of an index that all lanes share", op.loc)
        names = [self._chosen(n, op.values, index.lanes) for n in index.names]
        return Registers(result, names)

    def lookup_bytes(self, op: LookupBytes, index: Registers) -> Registers:
        """A shuffle of bytes: within 16 bytes, or with VBMI among 64."""
        self._require(index, op, (8, 16))
        count, width = len(op.values), 4 * index.lanes
        if count > 16 and index.lanes != 16:
            raise UnsupportedError("a table of more than 16 bytes", op.loc)
        size = 16 if count <= 16 else 64
        table = [*op.values, *([0] * (size - count))] * (width // size)
        listed = ", ".join(str(v - 256 if v > 127 else v) for v in table)
        held = f"vector<{width}xi8>"
        values = self.text.constant(f"dense<[{listed}]>", held)
        name = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b"}[index.lanes]
        name = name if size == 16 else "llvm.x86.avx512.permvar.qi.512"
        found = []
        for word in index.names:
            at = self.text.op(f"vector.bitcast {word} : {index.held} to {held}")
            types = f"({held}, {held}) -> {held}"
            out = self.text.op(f'llvm.call_intrinsic "{name}"({values}, {at}) : {types}')
            found.append(self.text.op(f"vector.bitcast {out} : {held} to {index.held}"))
        return Registers(index.type, found)

    def lookup_halves(self, op: LookupHalves, index: Registers) -> Registers:
        """A permutation of 32 halves, or of those of two registers."""
        self._require(index, op, (16,))
        size = 32 if len(op.values) <= 32 else 64
        table = np.resize(bf16_bits(op.values), size).view(np.int16).tolist()
        held = "vector<32xi16>"
        tables = [
            self.text.constant(f"dense<{table[first : first + 32]}>", held)
            for first in range(0, size, 32)
        ]
        name = "permvar.hi.512" if size == 32 else "vpermi2var.hi.512"
        types = f"({', '.join([held] * (1 + len(tables)))}) -> {held}"
        found = []
        for word in index.names:
            at = self.text.op(f"vector.bitcast {word} : {index.held} to {held}")
            given = ", ".join([tables[0], at, *tables[1:]])
            out = self.text.op(f'llvm.call_intrinsic "llvm.x86.avx512.{name}"({given}) : {types}')
            found.append(self.text.op(f"vector.bitcast {out} : {held} to {index.held}"))
        return Registers(index.type, found)

    def _chosen(self, index: str, values: Sequence[float], lanes: int) -> str:
        count = len(values)
        if not self._permutes(lanes):
            if count == 1:
                return self._table(list(values) * lanes, lanes)
        elif count <= lanes:
            return self._permute(index, list(values) * (lanes // count), lanes)
        elif count == 2 * lanes == 32:
            return self._permute_two(index, values)
        half = count // 2
        low = self._chosen(index, values[:half], lanes)
        high = self._chosen(index, values[half:], lanes)
        return self._select(index, half, low, high, lanes)

    def _table(self, values: Sequence[float], lanes: int) -> str:
        listed = ", ".join(f"{float(v):.9e}" for v in values)
        return self.text.constant(f"dense<[{listed}]>", f"vector<{lanes}xf32>")

    def _permute(self, index: str, values: Sequence[float], lanes: int) -> str:
        table = self._table(values, lanes)
        name = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}[lanes]
        types = f"(vector<{lanes}xf32>, vector<{lanes}xi32>) -> vector<{lanes}xf32>"
        return self.text.op(f'llvm.call_intrinsic "{name}"({table}, {index}) : {types}')

    def _permute_two(self, index: str, values: Sequence[float]) -> str:
        low, high = self._table(values[:16], 16), self._table(values[16:], 16)
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        types = "(vector<16xf32>, vector<16xi32>, vector<16xf32>) -> vector<16xf32>"
        return self.text.op(f'llvm.call_intrinsic "{name}"({low}, {index}, {high}) : {types}')

    def _select(self, index: str, bit: int, low: str, high: str, lanes: int) -> str:
        """``high`` where the bit of the index is set: its sign after a shift, which blends test."""
        text, held = self.text, f"vector<{lanes}xi32>"
        up = text.constant(f"dense<{31 - (bit.bit_length() - 1)}>", held)
        zero = text.constant("dense<0>", held)
        moved = text.op(f"arith.shli {index}, {up} : {held}")
        chosen = text.op(f"arith.cmpi slt, {moved}, {zero} : {held}")
        types = f"vector<{lanes}xi1>, vector<{lanes}xf32>"
        return text.op(f"arith.select {chosen}, {high}, {low} : {types}")


class ByteDot:
    """acc[lane] + sum of four products u8 * i8, on words of ``lanes`` lanes."""

    def __init__(self, text: MlirText, target: Target) -> None:
        self.text, self.target = text, target

    def add_products(self, acc: str, x: str, codes: str, lanes: int, op: Dot) -> str:
        """``x``: words of signed bytes; ``codes``: vector of unsigned bytes below 2**b_bits."""
        words = f"vector<{lanes}xi32>"
        bytes_ = f"vector<{4 * lanes}xi8>"
        x = self.text.op(f"vector.bitcast {x} : {words} to {bytes_}")
        whole = 32 * lanes in (256, 512)
        if self.target.int8_dot == "vnni" and whole and not op.b_offset:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            types = f"({words}, {bytes_}, {bytes_}) -> {words}"
            return self.text.op(f'llvm.call_intrinsic "{name}"({acc}, {codes}, {x}) : {types}')
        if self.target.int8_dot and whole and op.b_bits <= MASKED_BITS and not op.b_offset:
            return self._pairs(acc, x, codes, lanes)
        if self.target.int8_dot and whole and op.b_offset == SIGN:
            return self._signed(acc, x, codes, lanes)
        return self._plain(acc, x, codes, lanes, op.b_offset)

    def _signed(self, acc: str, x: str, codes: str, lanes: int) -> str:
        """Codes counted from 128 are signed: |code| times x with the code's sign fits into the
        sums of pairs, as 2 * 128 * 127 < 2**15."""
        text, bytes_ = self.text, f"vector<{4 * lanes}xi8>"
        top = text.constant("dense<-128>", bytes_)
        code = text.op(f"arith.xori {codes}, {top} : {bytes_}")
        size = text.op(f"math.absi {code} : {bytes_}")
        if lanes == 8:
            types = f"({bytes_}, {bytes_}) -> {bytes_}"
            name = '"llvm.x86.avx2.psign.b"'
            x = text.op(f"llvm.call_intrinsic {name}({x}, {code}) : {types}")
        else:
            zero = text.constant("dense<0>", bytes_)
            minus = text.op(f"arith.subi {zero}, {x} : {bytes_}")
            below = text.op(f"arith.cmpi slt, {code}, {zero} : {bytes_}")
            x = text.op(f"arith.select {below}, {minus}, {x} : vector<{4 * lanes}xi1>, {bytes_}")
        return self._pairs(acc, x, size, lanes)

    def _pairs(self, acc: str, x: str, codes: str, lanes: int) -> str:
        text, words = self.text, f"vector<{lanes}xi32>"
        bytes_, pairs = f"vector<{4 * lanes}xi8>", f"vector<{2 * lanes}xi16>"
        add = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[lanes]
        types = f"({bytes_}, {bytes_}) -> {pairs}"
        two = text.op(f'llvm.call_intrinsic "{add}"({codes}, {x}) : {types}')
        ones = text.constant("dense<1>", pairs)
        join = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
        types = f"({pairs}, {pairs}) -> {words}"
        four = text.op(f'llvm.call_intrinsic "{join}"({two}, {ones}) : {types}')
        return text.op(f"arith.addi {acc}, {four} : {words}")

    def _plain(self, acc: str, x: str, codes: str, lanes: int, offset: int) -> str:
        """Without such instructions: bytes widened and multiplied one plane after the other."""
        text, words = self.text, f"vector<{lanes}xi32>"
        held = f"vector<{4 * lanes}xi8>"
        for at in range(4):
            mask = [4 * lane + at for lane in range(lanes)]
            a = text.shuffle(x, x, mask, held)
            b = text.shuffle(codes, codes, mask, held)
            wide = text.op(f"arith.extsi {a} : vector<{lanes}xi8> to {words}")
            code = text.op(f"arith.extui {b} : vector<{lanes}xi8> to {words}")
            if offset:
                code = text.op(
                    f"arith.subi {code}, {text.constant(f'dense<{offset}>', words)} : {words}"
                )
            term = text.op(f"arith.muli {wide}, {code} : {words}")
            acc = text.op(f"arith.addi {acc}, {term} : {words}")
        return acc
