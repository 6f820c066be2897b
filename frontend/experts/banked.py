"""Experts modules whose weights lie in expert memory: what they hold, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tilewright.frontend.experts.routing import ACTIVE, Active
from tilewright.ir.errors import ExpertError, UnsupportedError
from tilewright.runtime.expert_memory.snapshot import Layer
from tilewright.runtime.expert_memory.weight import ExpertWeight
from tilewright.runtime.experts.rerouting import Rerouting

if TYPE_CHECKING:
    from tilewright.frontend.experts.bank import ExpertBank

ATTRIBUTE = "_tilewright_bank"
INDEXING = ("eager", "grouped_mm", "batched_mm")  # of transformers: they read experts by their ids


class BankLayer:
    """One layer of a bank, as the experts' module knows it (``module._tilewright_bank``)."""

    def __init__(
        self, bank: ExpertBank, layer: Layer, module: nn.Module, weights: Mapping[str, ExpertWeight]
    ) -> None:
        self.bank = bank
        self.layer = layer
        self._parameters = {key: module.get_parameter(key) for key in weights}
        self._weights = dict(weights)
        self._tensors = {key: weight.tensor for key, weight in weights.items()}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """By parameter, [E + slots * experts_per_slot, ...]; the same tensors at every call.

        Only rows that ``ids`` gives may be read. Raises ExpertError if the model was moved or
        converted since.
        """
        self.check()
        return self._tensors

    @property
    def active(self) -> Active | None:
        """What ``with bank.adapters(…)`` says in this thread."""
        return ACTIVE.get().get(id(self.bank))

    def ids(self, top_k_index: torch.Tensor) -> torch.Tensor:
        """The router's ids [T, k] -> rows of ``weights`` [T, k]; unchanged without adapters."""
        rerouting = self.rerouting(top_k_index)
        return top_k_index if rerouting is None else rerouting.apply(top_k_index)

    def rerouting(self, top_k_index: torch.Tensor) -> Rerouting | None:
        """What the router's ids [T, k] mean, if there are adapters."""
        active = self.active
        if active is None:
            return None
        return active.rerouting(top_k_index.shape[0], self.layer, top_k_index.device)

    def check(self) -> None:
        """Raises ExpertError if a parameter is no longer the memory's."""
        for key, parameter in self._parameters.items():
            if parameter.data_ptr() != self._weights[key].base.data_ptr():
                raise ExpertError(
                    f"layer {self.layer!r}: {key} was moved or converted after the bank was made; "
                    "make the bank last"
                )


class Banked:
    """Put before an experts class: calls with adapters read the whole range.

    A copy or a pickle of such a module is an ordinary one with the base experts.
    """

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H], ids [T, k], weights [T, k] -> [T, H]. Raises ExpertError, UnsupportedError."""
        module: Any = self
        layer: BankLayer = vars(self)[ATTRIBUTE]
        ordinary = super().forward  # type: ignore[misc]
        if layer.active is None or _is_ours(module):
            result: torch.Tensor = ordinary(hidden_states, top_k_index, top_k_weights)
            return result
        name = module.config._experts_implementation
        if name not in INDEXING:
            raise UnsupportedError(
                f"experts_implementation {name!r} cannot run adapters; set it to 'tilewright' or "
                f"one of {', '.join(INDEXING)}"
            )
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        kind: Any = type(module).__mro__[2]
        eager = kind.forward.__wrapped__  # before transformers' dispatch
        function = ALL_EXPERTS_FUNCTIONS.get_interface(name, eager)
        wide = _Wide(module, layer.weights)
        found: torch.Tensor = function(wide, hidden_states, layer.ids(top_k_index), top_k_weights)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {key: value for key, value in vars(self).items() if key != ATTRIBUTE}
        return _plain, (type(self).__mro__[2],), state


class _Wide:
    """A module seen with all rows of its weights as experts."""

    def __init__(self, module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        self._module = module
        self.num_experts = len(next(iter(weights.values())))
        vars(self).update(weights)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def install(module: nn.Module, layer: BankLayer) -> None:
    """Makes a module one of a bank's: its parameters are the memory's, its calls reroute."""
    for key, parameter in layer._parameters.items():
        parameter.data = layer._weights[key].base
    vars(module)[ATTRIBUTE] = layer
    kind: Any = type(module)
    module.__class__ = _banked(kind)


def uninstall(module: nn.Module) -> None:
    """Undoes ``install``, if it was: the parameters are copies, and the memory is nobody's."""
    layer: BankLayer | None = vars(module).pop(ATTRIBUTE, None)
    if layer is None:
        return
    for parameter in layer._parameters.values():
        parameter.data = parameter.data.clone()
    kind: Any = type(module)
    module.__class__ = kind.__mro__[2]


def _plain(kind: Any) -> Any:
    """An empty module of a kind, whose state pickle or copy will set."""
    return kind.__new__(kind)


@cache
def _banked(kind: Any) -> Any:
    """The class of banked modules of a kind, under the kind's own name."""
    known = {key: getattr(kind, key) for key in ("__module__", "__qualname__", "__doc__")}
    # Which adapters are active is not for torch.compile to see: the layer is a call between graphs.
    known["forward"] = torch.compiler.disable(Banked.forward)  # type: ignore[no-untyped-call]
    return type(kind.__name__, (Banked, kind), known)


def _is_ours(module: Any) -> bool:
    """Whether the module's calls go to Tilewright's function, under whatever name."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    from tilewright.frontend.experts.huggingface import experts_layer

    found = ALL_EXPERTS_FUNCTIONS.get(module.config._experts_implementation, None)
    return found is experts_layer


def is_banked(module: nn.Module) -> bool:
    """Whether a module belongs to a bank already."""
    return ATTRIBUTE in vars(module)
