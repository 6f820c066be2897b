"""Which layers of a model a plan quantises, and why others are left alone. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.utils import parametrize

from tilewright.frontend.experts.find import is_experts, routers
from tilewright.frontend.quantize.layers import QuantizedEmbedding, QuantizedLinear
from tilewright.frontend.quantize.plan import Plan, Settings
from tilewright.ir.errors import SettingError

Filter = Callable[[torch.nn.Module, str], bool]
LAYERS = (torch.nn.Linear, torch.nn.Embedding)
_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_READ_WEIGHTS = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)


@dataclass
class Site:
    """A layer with parameters of its own: settings if it is to be quantised, else the reason.

    ``places`` are the (parent, attribute) under which the model holds it. ``tied_to`` is the site
    whose weight it shares; that one is quantised for both.
    """

    name: str
    module: torch.nn.Module
    places: list[tuple[torch.nn.Module, str]] = field(default_factory=list)
    settings: Settings | None = None
    pattern: str | None = None
    reason: str = ""
    tied_to: Site | None = None

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def parameter_bytes(self) -> int:
        return sum(p.nbytes for p in self.module.parameters(recurse=False))

    def leave(self, reason: str) -> None:
        self.settings, self.reason = None, reason


def survey(
    model: torch.nn.Module, plan: Plan, keep: Filter | None = None, meta: bool = False
) -> list[Site]:
    """A site for every layer, in the model's order. ``meta``: weights may be on the meta device.
    Modules of experts have sites of their own, see frontend/experts/quantised.py.

    ``keep(module, name)`` says which layers may be quantised. Raises SettingError where tied layers
    are given different settings.
    """
    sites = list(_sites(model))
    choosing = routers(model)
    for site in sites:
        reason = _obstacle(site, meta)
        if reason is None and keep is not None and not keep(site.module, site.name):
            reason = "the filter leaves it"
        choice = plan.choose(site.name)
        site.settings, site.pattern = choice.settings, choice.pattern
        if reason is None and choice.settings is None:
            by = "the default" if choice.pattern is None else f"the plan's {choice.pattern!r}"
            reason = f"{by} leaves it"
        if reason is None and choice.pattern is None and site.module in choosing:
            reason = "it chooses experts or weighs them; a row that names it quantises it"
        if reason is not None:
            site.leave(reason)
    _tie(sites)
    return sites


def _sites(model: torch.nn.Module) -> Iterator[Site]:
    found: dict[int, Site] = {}
    parents: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parents[name] = module
        head, _, attribute = name.rpartition(".")
        own = any(True for _ in module.parameters(recurse=False))
        ours = isinstance(module, (QuantizedLinear, QuantizedEmbedding))
        if not (own or ours) or isinstance(module, parametrize.ParametrizationList):
            continue
        if is_experts(module):
            continue
        if id(module) not in found:
            found[id(module)] = Site(name, module)
        if name:
            found[id(module)].places.append((parents[head], attribute))
    yield from found.values()


def _obstacle(site: Site, meta: bool) -> str | None:
    """Why a layer cannot be quantised, whatever the plan says."""
    module = site.module
    if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
        return "already quantised"
    if parametrize.is_parametrized(module):
        return "parametrised (torch.nn.utils.parametrize.remove_parametrizations ends that)"
    if type(module) not in LAYERS:
        if isinstance(module, LAYERS):
            return "a subclass may use its weight in its own way; only nn.Linear and nn.Embedding"
        if any(p.dim() == 3 for p in module.parameters(recurse=False)):
            return (
                "neither nn.Linear nor nn.Embedding, and its 3-D parameters are not those of "
                "transformers' experts interface"
            )
        return "neither nn.Linear nor nn.Embedding"
    if not site.places:
        return "it is the model itself, which cannot be replaced in place; wrap it in a module"
    for parent, _ in site.places:
        if isinstance(parent, _READ_WEIGHTS):
            return f"{type(parent).__name__} reads its weight without calling it"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks, which would be lost; remove them first"
    if "forward" in module.__dict__:
        return "its forward was replaced, which would be lost"
    return _weight_obstacle(module, meta)


def _weight_obstacle(module: torch.nn.Module, meta: bool) -> str | None:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if type(weight) is not torch.nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if weight.is_meta and not meta:
        return "its weight is on the meta device; load it first"
    if weight.dtype not in _WEIGHTS:
        return f"its weight is {weight.dtype}, not float16, bfloat16, float32 or float64"
    if not weight.numel():
        return "its weight is empty"
    if isinstance(module, torch.nn.Embedding) and module.max_norm is not None:
        return "max_norm changes its weight in every call"
    return None


def _tie(sites: list[Site]) -> None:
    """One setting for all layers that share a weight, and the first of them to be quantised."""
    owners: dict[int, list[Site]] = {}
    for site in sites:
        for parameter in site.module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(site)
    for site in sites:
        group = owners.get(id(getattr(site.module, "weight", None)), [])
        if len(group) < 2 or site is not group[0] or all(s.settings is None for s in group):
            continue
        left = next((other for other in group if other.settings is None), None)
        if left is not None and not _default_only(left, group):
            for other in group:
                if other.settings is not None:
                    other.leave(f"it shares its weight with {left.name}: {left.reason}")
            continue
        settings = _common(group)
        for other in group:
            other.settings, other.reason = settings, ""
            other.tied_to = None if other is site else site


def _default_only(left: Site, group: list[Site]) -> bool:
    """Whether a layer is left only because no row names it, while a row names its partner."""
    return left.reason == "the default leaves it" and all(
        other.settings is not None or other.reason == left.reason for other in group
    )


def _common(group: list[Site]) -> Settings:
    """What a row says counts before the default; two rows must agree."""
    named = [site for site in group if site.pattern is not None and site.settings is not None]
    given = named or [site for site in group if site.settings is not None]
    first = given[0]
    assert first.settings is not None
    for other in given[1:]:
        if other.settings != first.settings:
            raise SettingError(
                f"{first.name} and {other.name} share one weight, but the plan gives them "
                f"{first.settings} and {other.settings}: give both the same, or untie them"
            )
    return first.settings
