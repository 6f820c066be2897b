"""The form of a quantised weight: everything about it but its tensors, as plain data.

A custom op takes tensors, numbers and text only, and a checkpoint only tensors; both carry the form
beside the tensors of a ``QuantizedTensor``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from tilewright.ir.dtypes import TABLE, DType, table_dtype
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import Packing
from tilewright.runtime.quantized.tensor import QuantizedTensor

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
PARTS = ("words", "scales", "zeros", "order")  # of a QuantizedTensor, in the order of ``Parts``
Facts = tuple[str, list[int], float]  # a form as a custom op takes it


@dataclass(frozen=True)
class Form:
    """The fields of a ``QuantizedTensor`` that are no tensors, as plain data."""

    dtype: str
    shape: tuple[int, ...]  # [N, K], or [E, N, K] and so on for several matrices in one
    group: int
    layout: str
    zero_point: int
    tensor_scale: float
    scale_dtype: str
    axis: int = -1
    table: tuple[float, ...] = ()  # the values of a dtype of the user's own

    @staticmethod
    def of(tensor: QuantizedTensor) -> Form:
        """The form of a quantised tensor."""
        names, sizes, scale = facts_of(tensor)
        return replace(Form.from_facts(names, tuple(sizes), scale), shape=tensor.shape)

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_facts(names: str, sizes: Sequence[int], tensor_scale: float) -> Form:
        """What ``facts_of`` took apart."""
        dtype, scale_dtype, order = names.split()
        rows, columns, group, zero_point, axis, lanes, layout_group, *planes = sizes
        layout = Packing(order, tuple(planes), lanes, layout_group)
        return Form(
            dtype=dtype,
            shape=(rows, columns),
            group=group,
            layout=str(layout),
            zero_point=zero_point,
            tensor_scale=tensor_scale,
            scale_dtype=scale_dtype,
            axis=axis,
            table=dtype_named(dtype).table,
        )

    @staticmethod
    def parse(text: str) -> Form:
        """The form that prints as ``text``. Raises UnsupportedError."""
        try:
            values: dict[str, Any] = json.loads(text)
            values["table"] = tuple(map(float, values.get("table", ())))
            values["shape"] = tuple(map(int, values["shape"]))
            form = Form(**values)
            whole = (form.group, form.zero_point, form.axis)
            numbers = all(isinstance(n, int) for n in whole)
            if not numbers or form.axis not in (-1, -2) or len(form.shape) < 2:
                raise ValueError(whole, form.shape)
            if form.table:
                table_dtype(form.dtype, form.table)
            dtype_named(form.dtype), dtype_named(form.scale_dtype), Packing.parse(form.layout)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UnsupportedError(f"not the form of a quantised matrix: {text!r}") from error
        return form

    def __str__(self) -> str:
        """JSON, as under ``form`` in ``QuantizedTensor.state_dict()``."""
        values = {k: v for k, v in asdict(self).items() if k != "table" or v}
        return json.dumps(values, separators=(",", ":"))

    def differences(self, other: Form) -> Iterator[str]:
        """``group 64, not 32`` (32 is the other's) for each field that has to agree."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name not in ("zero_point", "tensor_scale", "table") and mine != theirs:
                yield f"{item.name} {mine}, not {theirs}"

    @property
    def packing(self) -> Packing:
        """The layout as such."""
        return _layout(self.layout)

    def facts(self) -> Facts:
        """The same as ``facts_of`` a tensor of this form."""
        layout = self.packing
        names = " ".join((self.dtype, self.scale_dtype, layout.order))
        own = [*self.shape[-2:], self.group, self.zero_point, self.axis]
        return names, [*own, layout.lanes, layout.group, *layout.planes], self.tensor_scale

    def tensor(self, parts: Parts) -> QuantizedTensor:
        """The quantised tensor of this form with these tensors."""
        words, scales, zeros, order = parts
        return QuantizedTensor(
            dtype=dtype_named(self.dtype),
            shape=self.shape,
            group=self.group,
            layout=self.packing,
            words=words,
            scale_blocks=scales,
            zero_blocks=zeros,
            zero_point=self.zero_point,
            tensor_scale=self.tensor_scale,
            scale_dtype=dtype_named(self.scale_dtype),
            order=order,
            axis=self.axis,
        )


@lru_cache(maxsize=256)
def _layout(text: str) -> Packing:
    return Packing.parse(text)


def facts_of(tensor: QuantizedTensor) -> Facts:
    """Names, sizes and the scale of the whole tensor: what ``Form.from_facts`` puts together again,
    for a matrix [N, K] (of several matrices in one: the last two axes).

    Dynamo traces this, and every attribute that it reads becomes a guard: no text may be made of
    numbers here, since those may be symbols.
    """
    layout = tensor.layout
    names = " ".join((tensor.dtype.name, tensor.scale_dtype.name, layout.order))
    own = [*tensor.shape[-2:], tensor.group, tensor.zero_point, tensor.axis]
    return names, [*own, layout.lanes, layout.group, *layout.planes], tensor.tensor_scale


def parts_of(tensor: QuantizedTensor) -> Parts:
    """The tensors of a quantised tensor, in the order of ``PARTS``."""
    return tensor.words, tensor.scale_blocks, tensor.zero_blocks, tensor.order


def dtype_named(name: str) -> DType:
    """Our element type of that name. Raises UnsupportedError."""
    if name not in TABLE:
        raise UnsupportedError(
            f"no element type {name!r} here; one of your own comes from tilewright.table_dtype"
        )
    return TABLE[name]


def select_rows(tensor: QuantizedTensor, indices: torch.Tensor) -> QuantizedTensor:
    """Some rows [R] of a matrix [N, K] quantised along K, as such a matrix [R, K] of one lane."""
    lanes = tensor.layout.lanes
    block, lane = indices // lanes, indices % lanes
    zeros = tensor.zero_blocks
    return replace(
        tensor,
        shape=(len(indices), tensor.shape[1]),
        layout=replace(tensor.layout, lanes=1),
        words=tensor.words[block, :, :, lane].unsqueeze(-1),
        scale_blocks=tensor.scale_blocks[block, :, lane].unsqueeze(-1),
        zero_blocks=None if zeros is None else zeros[block, :, lane].unsqueeze(-1),
    )
