"""How a model's layer stores its experts, and how an adapter's matrices become that form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tilewright.frontend.experts.find import columns_of, products_of
from tilewright.ir.errors import ExpertError, UnsupportedError
from tilewright.runtime.expert_memory.memory import Part
from tilewright.runtime.expert_memory.weight import Rows
from tilewright.runtime.experts import PAIRS

# Mixtral's names, as its checkpoints have them
_OTHER_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True)
class ExpertLayout:
    """The per-expert parameters of one experts module, each [E, ...], and what their axes mean.

    An adapter's expert is given in one of two forms: *separate*, ``gate_proj`` and ``up_proj``
    [I, H] and ``down_proj`` [H, I] as linear layers have them (with ``…_bias`` where the layer has
    biases), or *stored*: named and laid out as the module's parameters, without their first axis.
    """

    parameters: Mapping[str, nn.Parameter]
    first: str  # gate_up_proj, or up_proj without a gate
    transposed: bool  # stored [in, out]
    pairs: bool  # gate and up alternate, instead of one half after the other

    @staticmethod
    def of(name: str, module: nn.Module) -> ExpertLayout:
        """Raises UnsupportedError for experts that are quantised or on several devices."""
        products = products_of(module)
        own = dict(module.named_parameters(recurse=False))
        wanted = [*products, *(f"{p}_bias" for p in products if module.has_bias)]
        missing = [key for key in wanted if key not in own]
        if missing:
            raise UnsupportedError(
                f"{name}: its experts have no parameter {missing[0]!r} (they have "
                f"{', '.join(own) or 'none'}); quantised experts take no adapters yet"
            )
        if getattr(module, "_is_expert_parallel", False):
            raise UnsupportedError(f"{name}: experts spread over devices take no adapters yet")
        return ExpertLayout(
            {key: own[key] for key in wanted},
            products[0],
            bool(module.is_transposed),
            columns_of(module) == PAIRS,
        )

    @property
    def gated(self) -> bool:
        return self.first == "gate_up_proj"

    def stored(self, where: str, expert: int, given: Mapping[str, torch.Tensor]) -> dict[str, Part]:
        """One expert's matrices as the parameters store them; nothing is copied yet.

        A bias that is not given is the base's. ``where`` names the expert in errors. Raises
        ExpertError for names or sizes that are not the layer's.
        """
        named = {_OTHER_NAMES.get(key, key): data for key, data in given.items()}
        separate = self.gated and "gate_proj" in named
        if separate and self.first in named:
            raise ExpertError(
                f"{where}: brings both gate_proj and {self.first}; one form is enough"
            )
        found: dict[str, Part] = self._joined(where, named) if separate else dict(named)
        if separate and self.transposed:
            down = named.get("down_proj")
            if down is not None:
                found["down_proj"] = down.mT
        for key, parameter in self.parameters.items():
            if key.endswith("_bias") and key not in found:
                found[key] = parameter.detach()[expert]
        return found

    def _joined(self, where: str, named: Mapping[str, torch.Tensor]) -> dict[str, Part]:
        """Separate matrices (and biases) of gate and up as one."""
        found: dict[str, Part] = {}
        for ending in ("", "_bias"):
            gate, up = named.get(f"gate_proj{ending}"), named.get(f"up_proj{ending}")
            if gate is None and up is None:
                continue
            parameter = self.parameters.get(f"{self.first}{ending}")
            if gate is None or up is None or parameter is None:
                raise ExpertError(
                    f"{where}: gate_proj{ending} and up_proj{ending} belong together, in a layer "
                    f"that has them; it brings {', '.join(sorted(named))}"
                )
            turned = self.transposed and not ending
            shape = list(parameter.shape[1:])
            half = [shape[-1] // 2, *shape[:-1]] if turned else [shape[0] // 2, *shape[1:]]
            for key, data in (("gate_proj", gate), ("up_proj", up)):
                if list(data.shape) != half or data.dtype != parameter.dtype:
                    raise ExpertError(
                        f"{where}: {key}{ending} is {data.dtype} {list(data.shape)}, the layer's "
                        f"is {parameter.dtype} {half}"
                    )
            found[f"{self.first}{ending}"] = partial(self._join, gate, up, turned)
        rest = {
            k: v for k, v in named.items() if k.split("_bias")[0] not in ("gate_proj", "up_proj")
        }
        return found | rest

    def _join(self, gate: torch.Tensor, up: torch.Tensor, turned: bool) -> Rows:
        if not self.pairs and not turned:
            return [gate, up]  # no copy: the halves are written one after the other
        joined = torch.stack([gate, up], 1).flatten(0, 1) if self.pairs else torch.cat([gate, up])
        return [joined.mT if turned else joined]
