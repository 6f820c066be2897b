"""What ``quantize`` does with the 3-D parameters of experts: finds, packs, installs, reports."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils import parametrize

from tilewright.frontend.experts.find import columns_of, experts_of, products_of
from tilewright.frontend.experts.weights import (
    ExpertWeight,
    ExpertWeights,
    Holder,
    holder_of,
    install,
)
from tilewright.frontend.quantize.from_settings import quantized
from tilewright.frontend.quantize.plan import Plan, Settings
from tilewright.frontend.quantize.report import LeftAlone, QuantizedRow, QuantizeReport
from tilewright.ir.errors import DataError, SettingError, UnsupportedError
from tilewright.runtime.experts import HALVES

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAME = "tilewright"  # of the implementation that reads packed experts


@dataclass
class ExpertSite:
    """A parameter of experts: settings for each expert if it is to be packed, else the reason."""

    name: str
    module: torch.nn.Module
    parameter: str
    settings: tuple[Settings, ...] = ()
    reason: str = ""
    note: str = ""
    bytes_before: int = 0
    shape: tuple[int, ...] = ()  # [E, N, K], also of a transposed parameter
    holder: Holder | None = None
    beside: list[str] = field(default_factory=list)  # the module's other parameters

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def names(self) -> list[str]:
        """What patterns may match: the parameter, and each expert's part of it."""
        experts = self.shape[0] if self.shape else 0
        return [self.name, *(self.expert_name(e) for e in range(experts))]

    def expert_name(self, e: int) -> str:
        head, _, last = self.name.rpartition(".")
        return f"{head}.{e}.{last}" if head else f"{e}.{last}"

    def leave(self, reason: str) -> None:
        self.settings, self.reason = (), reason

    def quantise(self, value: torch.Tensor | None = None) -> None:
        """Packs the parameter, or ``value`` in its place, if there are settings; or says why it
        cannot be packed."""
        if not self.settings:
            return
        if any(each.method == "gptq" for each in self.settings):
            self.settings = tuple(
                replace(each, method="mse") if each.method == "gptq" else each
                for each in self.settings
            )
            self.note = (
                "experts are quantised by 'mse' where 'gptq' is asked for: the inputs that an "
                "expert sees are not collected"
            )
        weight = getattr(self.module, self.parameter) if value is None else value
        try:
            self.holder = pack(self.module, self.parameter, weight.detach(), self.settings)
        except (DataError, UnsupportedError) as error:
            self.leave(error.message)

    def install(self) -> None:
        """Puts the packed weights in the parameter's place."""
        if self.holder is not None:
            install(self.module, self.parameter, self.holder)
            read_packed(self.module)

    def tell(self, report: QuantizeReport) -> None:
        """Adds rows for the parameter and those that stay beside it."""
        if self.holder is None:
            left = LeftAlone(self.name, self.kind, self.bytes_before, self.reason)
            report.left_alone.append(left)
        else:
            tensors = [holder.tensor for holder in self.holder.holders]
            report.quantized.append(
                QuantizedRow(
                    name=self.name,
                    kind=self.kind,
                    settings=_shown(self.settings),
                    shape=self.shape,
                    bytes_before=self.bytes_before,
                    bytes_after=sum(tensor.nbytes for tensor in tensors),
                    padding_bytes=sum(tensor.padding_bytes for tensor in tensors),
                )
            )
        if self.note:
            report.notes.append(self.note)
        head = self.name.rpartition(".")[0]
        for name in self.beside:
            full = f"{head}.{name}" if head else name
            size = self.module.get_parameter(name).nbytes
            report.left_alone.append(LeftAlone(full, self.kind, size, "no weight of a product"))


def _shown(settings: Sequence[Settings]) -> str:
    """``u4 group 64``; of different dtypes ``7 x u4, 1 x u8, group 64``."""
    rest = {str(each).removeprefix(each.dtype) for each in settings}
    if len(rest) > 1:
        return ", ".join(f"{number} x {each}" for each, number in Counter(settings).items())
    counted = Counter(each.dtype for each in settings)
    if len(counted) == 1:
        return str(settings[0])
    dtypes = ", ".join(f"{number} x {dtype}" for dtype, number in counted.items())
    return f"{dtypes},{rest.pop()}"


def survey_experts(
    model: torch.nn.Module,
    plan: Plan,
    keep: Callable[[torch.nn.Module, str], bool] | None = None,
    meta: bool = False,
) -> list[ExpertSite]:
    """A site for both products of all experts. ``meta``: weights may be on the meta device.

    Raises SettingError where a plan names some experts of a product only.
    """
    sites = []
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, module in experts_of(model):
        products = products_of(module)
        others = [n for n, _ in module.named_parameters(recurse=False) if n not in products]
        for parameter in products:
            full = f"{name}.{parameter}" if name else parameter
            site = ExpertSite(full, module, parameter)
            site.beside = others if parameter == "down_proj" else []
            sites.append(site)
            reason = _obstacle(site, owners, meta)
            if reason is None and keep is not None and not keep(module, full):
                reason = "the filter leaves it"
            if reason is not None:
                site.leave(reason)
            else:
                _choose(site, plan)
    return sites


def _obstacle(site: ExpertSite, owners: Counter[int], meta: bool) -> str | None:
    """Why a parameter cannot be packed, whatever the plan says."""
    module = site.module
    packed = holder_of(module, site.parameter)
    if packed is not None:
        site.bytes_before = sum(holder.tensor.nbytes for holder in packed.holders)
        return "already quantised"
    if parametrize.is_parametrized(module):
        return "parametrised (torch.nn.utils.parametrize.remove_parametrizations ends that)"
    weight = module._parameters.get(site.parameter)
    if weight is None or type(weight) is not torch.nn.Parameter or weight.dim() != 3:
        return "there is no 3-D parameter of this name"
    site.bytes_before = weight.nbytes
    experts, rows, columns = weight.shape
    site.shape = (experts, columns, rows) if module.is_transposed else (experts, rows, columns)
    if "_tilewright_bank" in module.__dict__:
        return "its weights lie in the memory of an ExpertBank"
    if "forward" in module.__dict__:
        return "the module's forward was replaced, and may read it in its own way"
    if owners[id(weight)] > 1:
        return "another module has the same parameter"
    if weight.is_meta and not meta:
        return "it is on the meta device; load it first"
    if weight.dtype not in _FLOATS:
        return f"it is {weight.dtype}, not float16, bfloat16, float32 or float64"
    return None if weight.numel() else "it is empty"


def _choose(site: ExpertSite, plan: Plan) -> None:
    """What the plan says of each expert."""
    choices = [plan.choose(site.expert_name(e), site.name) for e in range(site.shape[0])]
    found = [choice.settings for choice in choices if choice.settings is not None]
    if not found:
        pattern = choices[0].pattern
        by = "the default" if pattern is None else f"the plan's {pattern!r}"
        site.leave(f"{by} leaves it")
        return
    if len(found) < len(choices):
        e = next(e for e, choice in enumerate(choices) if choice.settings is None)
        raise SettingError(
            f"the plan quantises some experts of {site.name}, but not expert {e}: name all of them"
            f", such as '*.{site.parameter}': 'u8' as the last row"
        )
    if len({settings.activation for settings in found}) > 1:
        raise SettingError(
            f"the experts of {site.name} need one activation, 'float' or 'int8', for all"
        )
    site.settings = tuple(found)


def pack(
    module: torch.nn.Module, parameter: str, weight: torch.Tensor, settings: Sequence[Settings]
) -> Holder:
    """A parameter packed, with settings for each expert: gate and up as [E, 2, I, H], others as
    [E, N, K], whatever the module's own layout. Raises DataError and UnsupportedError."""
    logical = weight.mT if module.is_transposed else weight
    if parameter == "gate_up_proj":
        experts, rows, hidden = logical.shape
        if columns_of(module) == HALVES:
            logical = logical.view(experts, 2, rows // 2, hidden)
        else:
            logical = logical.view(experts, rows // 2, 2, hidden).transpose(1, 2)
    activation = settings[0].activation
    if len(set(settings)) == 1:
        return ExpertWeight.of_tensor(quantized(logical, settings[0]), activation)
    each = (quantized(w, own) for w, own in zip(logical, settings, strict=True))
    return ExpertWeights([ExpertWeight.of_tensor(tensor, activation) for tensor in each])


def read_packed(module: torch.nn.Module) -> None:
    """Chooses the implementation that can read a module's packed weights."""
    if "transformers" in sys.modules:
        from tilewright.frontend.experts.huggingface import register_experts

        register_experts(_NAME)
    module.config._experts_implementation = _NAME  # type: ignore[union-attr]
