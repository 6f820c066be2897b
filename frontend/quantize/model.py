"""``tilewright.quantize``: puts quantised layers into a model, in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from tilewright.frontend.experts.quantised import ExpertSite, survey_experts
from tilewright.frontend.quantize.calibrate import collect_inputs
from tilewright.frontend.quantize.from_settings import quantized
from tilewright.frontend.quantize.layers import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from tilewright.frontend.quantize.plan import Plan, Row, Settings
from tilewright.frontend.quantize.report import LeftAlone, QuantizedRow, QuantizeReport
from tilewright.frontend.quantize.survey import LAYERS, Filter, Site, survey
from tilewright.ir.errors import DataError, SettingError, UnsupportedError

Layer = QuantizedLinear | QuantizedEmbedding


def quantize(
    model: torch.nn.Module,
    dtype: str | None = "u4",
    *,
    group: int | str = 64,
    activation: str = "float",
    plan: Mapping[str, Row] | None = None,
    filter: Filter | None = None,
    calibration: Iterable[Any] | None = None,
    **settings: Any,
) -> QuantizeReport:
    """Replaces a model's ``nn.Linear`` and ``nn.Embedding`` layers by quantised ones, in place, and
    the 3-D parameters of transformers' experts by packed ones.

    ``dtype`` ("u4", "i3", "f4e2m1", "nf4", …; None: only what the plan names) and the settings
    ``group`` (64; a number, "channel" or "tensor"), ``activation`` ("float" or "int8"), ``method``
    ("minmax", "mse", "hqq", "gptq"), ``symmetric``, ``zero`` ("int", "float") and ``scale_dtype``
    hold for every layer that ``plan`` says nothing about. In the plan, a layer's own name counts
    first, then the first pattern that matches (``*.down_proj``, ``re:…``); a value is a dtype, a
    dictionary of settings, or None for a layer to leave alone. ``filter(module, name)`` says which
    layers may be quantised at all. Experts' parameters have names as layers do, such as
    ``….experts.down_proj``, and each expert has its own, ``….experts.3.down_proj``; layers that
    choose experts are left alone unless a pattern names them.

    ``calibration``, which "gptq" needs, is some inputs of the model: tensors, tuples of arguments
    or dictionaries of them (embeddings get "mse" instead: they multiply nothing; experts do, too,
    and the report says so). Layers that share a weight share the quantised one.

    The report lists the bytes saved, and every layer left alone with its reason. Raises
    SettingError for settings that mean nothing or that no weight can have; then the model is as it
    was.
    """
    made = Plan.of(dtype, plan, group=group, activation=activation, **settings)
    sites = survey(model, made, filter)
    experts = survey_experts(model, made, filter)
    check_settings(sites, experts, calibration is not None)
    inputs = _inputs(model, sites, calibration)
    built = _build(sites, inputs)
    for expert in experts:
        expert.quantise()
    for site, layer in built:
        replace_layer(site, layer)
    for expert in experts:
        expert.install()
    left = [s.name for s in sites if s.reason and isinstance(s.module, LAYERS)]
    left += [e.name for e in experts if e.reason]
    left = [name for name in left if made.choose(name).settings is not None]
    _tell_transformers(model, made.leaving(left))
    return report_of(sites, built, experts, made)


def check_settings(sites: list[Site], experts: list[ExpertSite], calibrated: bool) -> None:
    """Raises a TilewrightError if some settings fit no weight at all, before anything is done."""
    known = {site.settings for site in sites if site.settings is not None}
    for settings in known.union(*(site.settings for site in experts)):
        if settings.method == "gptq" and not calibrated:
            raise SettingError(
                "method='gptq' needs inputs of the model: quantize(model, …, calibration=[ids, …])"
            )
        quantized(torch.linspace(-1.0, 1.0, 8).reshape(1, 8), settings, torch.eye(8))


def _inputs(
    model: torch.nn.Module, sites: list[Site], calibration: Iterable[Any] | None
) -> dict[str, torch.Tensor]:
    """By layer name, the inputs [R, K] of the linear layers that "gptq" quantises."""
    wanted = {
        site.name: site.module
        for site in sites
        if site.settings is not None
        and site.settings.method == "gptq"
        and isinstance(site.module, torch.nn.Linear)
    }
    return collect_inputs(model, wanted, calibration) if wanted and calibration is not None else {}


def _build(sites: list[Site], inputs: dict[str, torch.Tensor]) -> list[tuple[Site, Layer]]:
    """The new layers. Those whose weight cannot be quantised are left, with the reason."""
    weights: dict[int, QuantizedWeight | str] = {}
    built: list[tuple[Site, Layer]] = []
    for site in sites:
        if site.settings is None:
            continue
        weight = site.module.weight
        assert isinstance(weight, torch.Tensor)
        group = sharing(site, sites)
        known = [inputs[other.name] for other in group if other.name in inputs]
        if site.settings.method == "gptq" and not known:
            site.settings = replace(site.settings, method="mse")  # an embedding has no inputs
        if id(weight) not in weights:
            given = known[0] if known else None
            weights[id(weight)] = weight_or_reason(weight, site.settings, group, given)
        found = weights[id(weight)]
        if isinstance(found, str):
            site.leave(found)
            continue
        built.append((site, new_layer(site.module, found, site.settings)))
    return built


def sharing(site: Site, sites: list[Site]) -> list[Site]:
    """The layers with this one's weight, itself included."""
    first = site.tied_to or site
    return [other for other in sites if other is first or other.tied_to is first]


def weight_or_reason(
    weight: torch.Tensor, settings: Settings, group: list[Site], inputs: torch.Tensor | None = None
) -> QuantizedWeight | str:
    """The quantised weight of the layers in ``group``, or why there can be none."""
    multiplied = any(isinstance(site.module, torch.nn.Linear) for site in group)
    try:
        return QuantizedWeight.of(quantized(weight, settings, inputs, multiplied))
    except (DataError, UnsupportedError) as error:
        return error.message


def new_layer(module: torch.nn.Module, weight: QuantizedWeight, settings: Settings) -> Layer:
    """The quantised form of a linear layer or an embedding with that weight."""
    old = module.weight
    assert isinstance(old, torch.Tensor)
    weight.dtype = old.dtype
    if isinstance(module, torch.nn.Embedding):
        layer: Layer = QuantizedEmbedding(weight, dtype=old.dtype, padding_idx=module.padding_idx)
    elif isinstance(module, torch.nn.Linear):
        layer = QuantizedLinear(weight, module.bias, activation=settings.activation)
    else:
        raise UnsupportedError(f"no quantised form of a {type(module).__name__}")
    return layer.train(module.training)


def replace_layer(site: Site, layer: torch.nn.Module) -> None:
    """Puts a layer wherever the model holds the old one."""
    for parent, attribute in site.places:
        parent._modules[attribute] = layer


def report_of(
    sites: list[Site], built: list[tuple[Site, Layer]], experts: list[ExpertSite], plan: Plan
) -> QuantizeReport:
    """What became of every site."""
    layers = {id(site): layer for site, layer in built}
    names = [site.name for site in sites] + [name for e in experts for name in e.names]
    report = QuantizeReport(unused_patterns=plan.unused(names))
    for site in sites:
        if id(site) in layers:
            report.quantized.append(_row(site, layers[id(site)]))
        else:
            left = LeftAlone(site.name, site.kind, site.parameter_bytes, site.reason)
            report.left_alone.append(left)
    for expert in experts:
        expert.tell(report)
    return report


def _row(site: Site, layer: Layer) -> QuantizedRow:
    tensor, old = layer.qweight, site.module.weight
    assert isinstance(old, torch.Tensor)
    rows, columns = layer.weight.shape
    tied = site.tied_to
    return QuantizedRow(
        name=site.name,
        kind=site.kind,
        settings=str(site.settings),
        shape=(rows, columns),
        bytes_before=0 if tied else rows * columns * old.element_size(),
        bytes_after=0 if tied else tensor.nbytes,
        padding_bytes=0 if tied else tensor.padding_bytes,
        tied_to=tied.name if tied else None,
    )


def _tell_transformers(model: torch.nn.Module, plan: Plan) -> None:
    """A model of transformers is to be saved with its settings."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return
    from tilewright.frontend.huggingface_quantizer import adopt

    adopt(model, plan)
