"""``QuantizedLinear`` and ``QuantizedEmbedding``: what ``quantize`` puts in place of torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch.utils._pytree import tree_map_only

from tilewright.frontend.quantize.form import PARTS, Facts, Form, Parts, parts_of
from tilewright.frontend.quantize.linear import call_op, check, through_op, transformed
from tilewright.frontend.quantize.product import embedding_op, look_up, product
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

_FORM = "_extra_state"  # torch's name for it in a state_dict


def _writes(name: str) -> bool:
    """Whether torch's operation of that name writes to its first tensor."""
    return name.endswith("_") and not name.endswith("__")


def _cannot_write(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"torch's {name} writes to the weight of a quantised layer, whose floats are not kept: "
        "give quantize a plan that leaves the layer (its name: None)"
    )


class QuantizedWeight(torch.nn.Module):
    """A quantised matrix [N, K] as buffers. Tied layers share one of these.

    Codes and scales keep their dtypes in ``.to(dtype)``, ``.half()`` and so on. A ``state_dict``
    holds the form, too; loading one of other settings fails, one of another layout is repacked.
    """

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None
    facts: Facts
    # of the floats in whose place it is, for models that ask a layer's weight what to convert to
    dtype: torch.dtype = torch.float32

    def __init__(self, form: Form, parts: Parts) -> None:
        super().__init__()
        for name, part in zip(PARTS, parts, strict=True):
            self.register_buffer(name, part)
        self._tensor: QuantizedTensor | None = None
        self._set_form(form)

    @staticmethod
    def of(tensor: QuantizedTensor) -> QuantizedWeight:
        """Holds ``tensor``, whose memory it shares. Raises UnsupportedError unless it is [N, K]."""
        if len(tensor.shape) != 2:
            raise UnsupportedError(
                f"a layer's weight is a quantised matrix [N, K]; this one is {list(tensor.shape)}"
            )
        return QuantizedWeight(Form.of(tensor), parts_of(tensor))

    @property
    def parts(self) -> Parts:
        return self.words, self.scales, self.zeros, self.order

    @property
    def tensor(self) -> QuantizedTensor:
        """The quantised tensor of the buffers as they are now, whose memory it shares."""
        made, parts = self._tensor, self._buffers
        if (
            made is None  # spelled out, since every call of a layer asks
            or made.words is not parts["words"]
            or made.scale_blocks is not parts["scales"]
            or made.zero_blocks is not parts["zeros"]
            or made.order is not parts["order"]
        ):
            made = self._tensor = self.form.tensor(self.parts)
        return made

    @property
    def shape(self) -> torch.Size:
        """[N, K]"""
        return torch.Size(self.form.shape)

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def values(self) -> torch.Tensor:
        """The floats that it stands for, [N, K], made anew by every call."""
        return self.tensor.dequantize().to(self.dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Models that read a layer's weight instead of calling the layer (Mamba multiplies by one)
        read the floats. Raises UnsupportedError if they write to them: that would be lost."""
        name = getattr(func, "__name__", "")
        written = _writes(name) and isinstance(args[0], cls)
        if (kwargs or {}).get("out") is not None or written:
            raise _cannot_write(name)
        plain = tree_map_only(cls, lambda weight: weight.values, (args, dict(kwargs or {})))
        return func(*plain[0], **plain[1])

    def __getattr__(self, name: str) -> Any:
        """Methods of tensors that write (RWKV divides a layer's weight) say what the functions do,
        when they are called."""
        if not _writes(name) or not hasattr(torch.Tensor, name):
            return super().__getattr__(name)

        def refused(*_: object, **__: object) -> NoReturn:
            raise _cannot_write(name)

        return refused

    def _set_form(self, form: Form) -> None:
        self.form = form
        self.facts = form.facts()
        self._tensor = None

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> QuantizedWeight:
        """Moves the buffers, but leaves their dtypes; ``dtype`` becomes what floats would have.
        Between a CPU and a GPU codes are repacked."""
        before = self.device.type
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        for name, part in self._buffers.items():
            if part is not None:
                moved = fn(part)
                same = moved.dtype == part.dtype
                self._buffers[name] = moved if same else part.to(moved.device)
        if {before, self.device.type} == {"cpu", "cuda"}:  # kernels read another packing there
            fresh = self.form.tensor(self.parts).to(self.device)
            self._buffers.update(zip(PARTS, parts_of(fresh), strict=True))
            self._set_form(Form.of(fresh))
        return self

    def get_extra_state(self) -> torch.Tensor:
        """The form's text as bytes: files of tensors can hold it."""
        return torch.tensor(list(str(self.form).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Takes over what may differ between weights of the same settings.

        Raises UnsupportedError if it is the form of a weight quantised in another way.
        """
        form = form_of_bytes(state)
        found = list(form.differences(self.form))
        if found:
            raise UnsupportedError(_other_settings(found))
        self._set_form(form)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        errors: list[str] = others[-1]
        if prefix + _FORM in state_dict:
            form = form_of_bytes(state_dict[prefix + _FORM])
            found = list(replace(form, layout=self.form.layout).differences(self.form))
            if found:
                errors.append(f"{prefix.rstrip('.')}: {_other_settings(found)}")
                return
            if form.layout != self.form.layout:
                self._repack(state_dict, prefix, form)
        super()._load_from_state_dict(state_dict, prefix, *others, **more)
        self._tensor = None

    def _repack(self, state_dict: dict[str, Any], prefix: str, form: Form) -> None:
        """Brings the tensors of another layout into this one's, exactly."""
        words, scales, zeros, order = (state_dict.get(prefix + name) for name in PARTS)
        if words is None or scales is None:
            return  # torch reports what is missing
        theirs = form.tensor((words, scales, zeros, order))
        tensor = theirs.with_layout(self.form.packing)
        for name, part in zip(PARTS, parts_of(tensor), strict=True):
            if part is not None:
                state_dict[prefix + name] = part
        form = replace(form, layout=self.form.layout)
        state_dict[prefix + _FORM] = torch.tensor(list(str(form).encode()), dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tensor made of the buffers: a copy makes its own."""
        return {**self.__dict__, "_tensor": None}

    def extra_repr(self) -> str:
        form = self.form
        return f"{form.dtype} {list(form.shape)} group {form.group}, {form.layout}"


class QuantizedLinear(torch.nn.Module):
    """``nn.Linear`` with a quantised weight: [..., in_features] -> [..., out_features].

    ``activation`` is "float" or "int8", see ``tilewright.linear``. ``weight`` may be shared with
    another layer.
    """

    weight: QuantizedWeight
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        weight: QuantizedTensor | QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        activation: str = "float",
    ) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, QuantizedWeight) else QuantizedWeight.of(weight)
        self.out_features, self.in_features = self.weight.form.shape
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)
        self.activation = activation

    @property
    def qweight(self) -> QuantizedTensor:
        return self.weight.tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias
        check(x, bias, self.out_features, self.in_features, self.activation)
        if through_op(x, bias):
            weight = self.weight
            return call_op(x, weight.parts, weight.facts, bias, None, self.activation, "")
        return product(x, self.weight.tensor, bias, None, self.activation, "")

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )


class QuantizedEmbedding(torch.nn.Module):
    """``nn.Embedding`` with a quantised weight: indices [...] -> [..., embedding_dim].

    The result has the dtype that the layer was made with, or that ``.to(dtype)`` gave it.
    """

    weight: QuantizedWeight
    example: torch.Tensor

    def __init__(
        self,
        weight: QuantizedTensor | QuantizedWeight,
        *,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, QuantizedWeight) else QuantizedWeight.of(weight)
        self.num_embeddings, self.embedding_dim = self.weight.form.shape
        self.padding_idx = padding_idx
        # empty; there because its dtype follows the module's
        example = torch.empty(0, dtype=dtype, device=self.weight.device)
        self.register_buffer("example", example, persistent=False)

    @property
    def qweight(self) -> QuantizedTensor:
        return self.weight.tensor

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if torch.compiler.is_compiling() or transformed(indices):
            result: torch.Tensor = embedding_op(
                indices, *weight.parts, *weight.facts, self.example.dtype
            )
            return result
        return look_up(indices, weight.tensor, self.example.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, dtype={self.example.dtype}"


def form_of_bytes(state: torch.Tensor) -> Form:
    """What ``QuantizedWeight.get_extra_state`` wrote. Raises UnsupportedError."""
    try:
        text = bytes(state.to(torch.uint8).tolist()).decode()
    except UnicodeDecodeError as error:
        raise UnsupportedError("the form of a quantised weight is not text") from error
    return Form.parse(text)


def _other_settings(found: list[str]) -> str:
    return (
        f"the state holds a weight of {', '.join(found)}; quantise the model with the same "
        "settings before loading"
    )


__all__ = ["QuantizedEmbedding", "QuantizedLinear", "QuantizedWeight"]
