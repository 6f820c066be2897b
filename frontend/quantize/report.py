"""The report of ``quantize``: bytes before and after, and every layer left alone, with reasons."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_WIDTH = 140  # columns of str(report), which knows no terminal


@dataclass(frozen=True)
class QuantizedRow:
    """A layer that was quantised. ``tied_to``: the layer whose weight it shares, bytes included."""

    name: str
    kind: str
    settings: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    padding_bytes: int
    tied_to: str | None = None


@dataclass(frozen=True)
class LeftAlone:
    """A layer with parameters of its own that was not quantised, and why."""

    name: str
    kind: str
    bytes: int
    reason: str


@dataclass
class QuantizeReport:
    """What became of every layer. Printed as a table; ``to_dict()`` is for programs."""

    quantized: list[QuantizedRow] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    unused_patterns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was done in another way than asked for

    @property
    def bytes_before(self) -> int:
        """Bytes of the quantised layers' weights before, tied ones once."""
        return sum(row.bytes_before for row in self.quantized)

    @property
    def bytes_after(self) -> int:
        """Bytes of the same weights now: codes, scales, zeros, padding."""
        return sum(row.bytes_after for row in self.quantized)

    @property
    def bytes_saved(self) -> int:
        return self.bytes_before - self.bytes_after

    @property
    def bits_per_weight(self) -> float:
        """Of the quantised layers, scales, zeros and padding included; 0 if there are none."""
        weights = sum(_size(row.shape) for row in self.quantized if row.tied_to is None)
        return 8 * self.bytes_after / weights if weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Lists, dictionaries, strings and numbers only."""
        totals = {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bytes_saved": self.bytes_saved,
            "bits_per_weight": self.bits_per_weight,
        }
        rows = asdict(self)
        for row in rows["quantized"]:
            row["shape"] = list(row["shape"])
        return {**totals, **rows}

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=_WIDTH, highlight=False).print(self)
        return text.getvalue().rstrip("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._summary()
        if self.quantized:
            yield _table(
                ("layers", "number", "kind", "settings", "shape", "before", "after", "bits"),
                (_quantized_cells(name, rows) for name, rows in _grouped(self.quantized)),
            )
        if self.left_alone:
            yield "left alone:"
            yield _table(
                ("layers", "number", "kind", "bytes", "why"),
                (_left_cells(name, rows) for name, rows in _grouped(self.left_alone)),
            )
        yield from dict.fromkeys(self.notes)
        for pattern in self.unused_patterns:
            yield f"the plan's {pattern!r} matches no layer"

    def _summary(self) -> str:
        if not self.quantized:
            return "nothing was quantised"
        padding = sum(row.padding_bytes for row in self.quantized)
        share = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        return (
            f"{_bytes(self.bytes_before)} are now {_bytes(self.bytes_after)} ({share:.1%}): "
            f"{_bytes(self.bytes_saved)} saved, {self.bits_per_weight:.2f} bits per weight, "
            f"{_bytes(padding)} of them padding"
        )


def _grouped(rows: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    """Rows that differ in nothing but numbers within their names: the layers of a model."""
    groups: dict[tuple[object, ...], list[Any]] = {}
    for row in rows:
        values = asdict(row)
        name = re.sub(r"(?<![^.])\d+(?![^.])", "*", values.pop("name"))
        groups.setdefault((name, *values.values()), []).append(row)
    return [(str(key[0]) if len(g) > 1 else g[0].name, g) for key, g in groups.items()]


def _quantized_cells(name: str, rows: list[QuantizedRow]) -> tuple[str, ...]:
    first, number = rows[0], len(rows)
    shape = " x ".join(map(str, first.shape))
    if first.tied_to is not None:
        return name, str(number), first.kind, f"tied to {first.tied_to}", shape, "", "", ""
    size = _size(first.shape)
    bits = f"{8 * first.bytes_after / size:.2f}" if size else ""
    before, after = number * first.bytes_before, number * first.bytes_after
    return (
        *(name, str(number), first.kind, first.settings, shape),
        *(_bytes(before), _bytes(after), bits),
    )


def _left_cells(name: str, rows: list[LeftAlone]) -> tuple[str, ...]:
    first = rows[0]
    return name, str(len(rows)), first.kind, _bytes(len(rows) * first.bytes), first.reason


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        numeric = column in ("number", "before", "after", "bytes", "bits")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "why")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _bytes(number: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number} B"
