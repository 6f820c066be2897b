"""Modules that hold the packed weights of all experts, in the place of a 3-D parameter.

``gate_up_proj`` [E, 2I, H] becomes ``gate_up_proj_packed``: one quantised tensor [E, 2, I, H], or
one [2, I, H] for each expert if they have different settings. The name is another one because
transformers takes what is called ``gate_up_proj`` apart when it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tilewright.frontend.quantize.form import Form, Parts, parts_of
from tilewright.frontend.quantize.layers import QuantizedWeight
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

PACKED = "_packed"


class ExpertWeight(QuantizedWeight):
    """Quantised matrices of several experts, or of one, as buffers."""

    text: str  # which tensors there are, and the form: all that a custom op has to know of it
    activation: str

    def __init__(self, form: Form, parts: Parts, activation: str = "float") -> None:
        super().__init__(form, parts)
        self.activation = activation

    @staticmethod
    def of_tensor(tensor: QuantizedTensor, activation: str = "float") -> ExpertWeight:
        """Holds ``tensor`` [..., N, K], whose memory it shares."""
        return ExpertWeight(Form.of(tensor), parts_of(tensor), activation)

    def _set_form(self, form: Form) -> None:
        super()._set_form(form)
        there = "".join("x" if part is not None else "-" for part in self.parts)
        self.text = f"{there} {form}"

    @property
    def holders(self) -> tuple[ExpertWeight, ...]:
        return (self,)


class ExpertWeights(torch.nn.ModuleList):
    """One ``ExpertWeight`` for each expert, of different dtypes or groups."""

    def __init__(self, each: Sequence[ExpertWeight]) -> None:
        super().__init__(each)
        self.activation = each[0].activation

    @property
    def holders(self) -> tuple[ExpertWeight, ...]:
        return tuple(self)  # type: ignore[arg-type]  # all are ExpertWeights


Holder = ExpertWeight | ExpertWeights


class Packed:
    """What stands in the place of a parameter that was packed: says so when it is used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UnsupportedError(
            f"{self.name} is quantised, which only tilewright's experts can read: call "
            "model.set_experts_implementation('tilewright')"
        )

    __getitem__ = transpose = _refuse
    device = dtype = shape = property(_refuse)

    def __repr__(self) -> str:
        return f"Packed({self.name!r})"


def install(module: torch.nn.Module, parameter: str, holder: Holder) -> None:
    """Puts packed weights in the place of a parameter."""
    module._parameters.pop(parameter, None)
    module.add_module(parameter + PACKED, holder)
    module.__dict__[parameter] = Packed(parameter)
    # transformers would initialise the parameters of a class that it knows
    module._is_hf_initialized = True  # type: ignore[assignment]


def holder_of(module: torch.nn.Module, parameter: str) -> Holder | None:
    """The packed weights of a parameter, if it was packed."""
    found = module._modules.get(parameter + PACKED)
    return found if isinstance(found, (ExpertWeight, ExpertWeights)) else None
