"""What tilewright itself writes: layers of a model (``weight._extra_state``), and ``form``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import torch

from tilewright.frontend.checkpoints.source import Source
from tilewright.frontend.checkpoints.weight import Weight, examined
from tilewright.frontend.quantize.form import PARTS
from tilewright.ir.errors import DataError
from tilewright.runtime.quantized.storage import FORM, from_state
from tilewright.runtime.quantized.tensor import QuantizedTensor

EXTRA = "_extra_state"
WEIGHT = ".weight."


def find(source: Source) -> Iterator[Weight]:
    """The quantised tensors of a checkpoint that tilewright wrote."""
    bases = source.bases(WEIGHT + EXTRA)
    yield from _found(source, bases, WEIGHT, EXTRA)
    bases = (b for b in source.bases(f".{FORM}") if f"{b}.words" in source)
    yield from _found(source, bases, ".", FORM)


def _found(source: Source, bases: Iterator[str], between: str, form: str) -> Iterator[Weight]:
    suffixes = tuple(between + part for part in (form, *PARTS))
    examine = partial(_examine, between=between, form=form)
    yield from examined(source, bases, suffixes, "tilewright", examine)


def _examine(source: Source, base: str, between: str, form: str) -> Weight:
    prefix = base + between
    there = [prefix + part for part in PARTS if prefix + part in source]

    def read() -> QuantizedTensor:
        state = {name: source.tensor(name) for name in there}
        return from_state({f"{prefix}{FORM}": _form(source, prefix + form), **state}, prefix)

    made = read()  # maps, but does not copy
    kind = source.entries[f"{prefix}zeros"].dtype if made.zero_blocks is not None else ""
    zeros = f"{'whole' if kind == 'U8' else 'float'}, per group" if kind else ""
    return Weight(
        name=base,
        format="tilewright",
        tensors=(prefix + form, *there),
        dtype=made.dtype.name,
        shape=made.shape,
        group=made.group,
        zeros=zeros or (str(made.zero_point) if made.zero_point else ""),
        decode=read,
    )


def _form(source: Source, name: str) -> torch.Tensor:
    """The form as ``storage`` has it: a layer's says that it has no table by an empty one."""
    source.expect(name, ("U8",), (None,), "the form of a quantised tensor, JSON as bytes")
    given = source.tensor(name)
    try:
        form = json.loads(bytes(given.tolist()))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} must be JSON as bytes; {error}") from None
    if not isinstance(form, dict) or form.get("table", [0]):
        return given
    text = json.dumps({key: value for key, value in form.items() if key != "table"})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
