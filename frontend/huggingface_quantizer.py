"""transformers' ``quantization_config=TilewrightConfig("u4", …)``, with saving and loading.

Importing this module makes the method "tilewright" known to transformers. A saved model holds the
quantised tensors and, beside each, its form; loading makes layers of those forms on the meta device
and fills them, so that the unquantised weights are never made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tilewright.frontend.experts.huggingface import register_experts
from tilewright.frontend.experts.quantised import ExpertSite, survey_experts
from tilewright.frontend.experts.weights import PACKED
from tilewright.frontend.huggingface_files import (
    FORM,
    expert_holder,
    file_names,
    packed_names,
    stored_weights,
)
from tilewright.frontend.quantize.form import PARTS
from tilewright.frontend.quantize.layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
)
from tilewright.frontend.quantize.model import (
    Layer,
    check_settings,
    new_layer,
    replace_layer,
    report_of,
    sharing,
    weight_or_reason,
)
from tilewright.frontend.quantize.plan import Plan, Row, Settings
from tilewright.frontend.quantize.report import QuantizeReport
from tilewright.frontend.quantize.survey import Site, survey
from tilewright.ir.errors import SettingError, UnsupportedError

METHOD = "tilewright"
VERSION = 1  # of what is saved


@register_quantization_config(METHOD)
class TilewrightConfig(QuantizationConfigMixin):
    """What ``from_pretrained(…, quantization_config=…)`` takes: the arguments of ``quantize``.

    ``plan`` may also be a list of pairs, which is how it is saved: its order matters, and the keys
    of a saved dictionary are sorted.
    """

    def __init__(
        self,
        dtype: str | None = "u4",
        *,
        plan: Mapping[str, Row] | Iterable[tuple[str, Row]] | None = None,
        quant_method: str = METHOD,
        version: int = VERSION,
        **settings: Any,
    ) -> None:
        if quant_method != METHOD:
            raise SettingError(f"quant_method={quant_method!r} is not {METHOD!r}")
        if version > VERSION:
            raise UnsupportedError(
                f"the model was saved with format {version} of a newer tilewright; this one reads "
                f"up to {VERSION}"
            )
        self.quant_method = METHOD  # type: ignore[assignment]  # registered methods are texts
        self.version = version
        self._plan = Plan.of(dtype, plan, **settings)

    @staticmethod
    def of_plan(plan: Plan) -> TilewrightConfig:
        config = TilewrightConfig()
        config._plan = plan
        return config

    def to_plan(self) -> Plan:
        return self._plan

    def to_dict(self) -> dict[str, Any]:
        """Plain data for config.json."""
        plan = self._plan
        base: dict[str, Any] = {"dtype": None} if plan.default is None else plan.default.to_dict()
        rows = [[pattern, None if row is None else asdict(row)] for pattern, row in plan.rows]
        return {"quant_method": METHOD, "version": self.version, **base, "plan": rows}

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


@register_quantizer(METHOD)
class TilewrightQuantizer(HfQuantizer):
    """Quantises weights while they are loaded, or fills the layers of a quantised checkpoint."""

    quantization_config: TilewrightConfig

    def __init__(self, quantization_config: TilewrightConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.sites: list[Site] = []  # of the model, while it is loaded
        self.experts: list[ExpertSite] = []
        self.built: list[tuple[Site, Layer]] = []
        self.ties: list[tuple[Site, Site]] = []  # a layer without tensors in the file, its owner
        self.report: QuantizeReport | None = None

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    def param_needs_quantization(self, model: Any, param_name: str, **_others: Any) -> bool:
        """Whether a loaded parameter is a weight that the plan quantises."""
        if any(site.name == param_name and site.settings for site in self.experts):
            return True
        name, _, part = param_name.rpartition(".")
        return part == "weight" and any(
            site.name == name and site.settings is not None for site in self.sites
        )

    def get_quantize_ops(self) -> Quantize:
        return Quantize(self)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        """Finds the layers; those of a quantised checkpoint are replaced by empty ones."""
        tie(model, checkpoint_files or [])
        if not self.pre_quantized:
            plan = self.quantization_config.to_plan()
            self.sites = survey(model, plan, meta=True)
            self.experts = survey_experts(model, plan, meta=True)
            check_settings(self.sites, self.experts, calibrated=False)
        else:
            stored = stored_weights(checkpoint_files)
            self.sites = survey(model, Plan(_ANY), meta=True)
            self._replace_stored(model, stored)
            self._replace_experts(model, stored)
        forget_ties(model, [site.name for site in self.sites if site.settings is not None])
        return model

    def _replace_stored(self, model: Any, stored: dict[str, QuantizedWeight]) -> None:
        """Empty layers for the file's weights; what shares one of them is tied when it is loaded.

        What the model has not becomes transformers' unexpected keys (a base model has no head).
        """
        plan = self.quantization_config.to_plan()
        names = file_names(model, stored)
        for site in self.sites:
            if site.name in names:
                self._fill(site, stored[names[site.name]], plan, names[site.name])
        for site in self.sites:
            group = [other for other in sharing(site, self.sites) if other.name in names]
            if site.name in names or not group:
                continue
            self.ties.append((site, group[0]))
            layer = self._fill(site, stored[names[group[0].name]], plan, site.name)
            layer._modules["weight"] = None  # no keys: the file has none for it

    def _replace_experts(self, model: Any, stored: dict[str, QuantizedWeight]) -> None:
        """Empty packed weights for the file's; the plan says only how inputs are taken."""
        self.experts = survey_experts(model, Plan(_ANY), meta=True)
        plan = self.quantization_config.to_plan()
        packed = {site.name + PACKED: site for site in self.experts}
        for name, stored_name in file_names(model, packed_names(stored), packed).items():
            site = packed[name]
            settings = plan.choose(site.expert_name(0), site.name).settings or _ANY
            site.holder = expert_holder(stored, stored_name, settings.activation)
            site.install()

    def _fill(self, site: Site, weight: QuantizedWeight, plan: Plan, name: str) -> Layer:
        layer = new_layer(site.module, weight, plan.choose(name).settings or _ANY)
        replace_layer(site, layer)
        self.built.append((site, layer))
        return layer

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Ties what shares a weight; writes the report of weights quantised while loading."""
        layers = {id(site): layer for site, layer in self.built}
        for site, owner in self.ties:
            layers[id(site)].weight = layers[id(owner)].weight
        if not self.pre_quantized:
            plan = self.quantization_config.to_plan()
            self.report = report_of(self.sites, self.built, self.experts, plan)
        self.sites, self.experts, self.built, self.ties = [], [], [], []
        return model

    def quantize_site(self, site: Site, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """Replaces a layer, and those tied to it, when its weight arrives.

        If it cannot be quantised, the parameters to set instead.
        """
        assert site.settings is not None
        group = sharing(site, self.sites)
        weight = weight_or_reason(value, site.settings, group)
        if isinstance(weight, str):
            for other in group:
                other.leave(weight)
            return {f"{other.name}.weight": value for other in group}
        for other in group:
            layer = new_layer(other.module, weight, site.settings)
            replace_layer(other, layer)
            self.built.append((other, layer))
        return {}

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """The state with the tensors of every weight once: files of tensors hold no shared ones."""
        state = dict(model.state_dict())
        seen: set[int] = set()
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, QuantizedWeight):
                if id(module) in seen:
                    for part in (*PARTS, FORM):
                        state.pop(f"{name}.{part}", None)
                seen.add(id(module))
        return state, {}


LAYERS = (QuantizedLinear, QuantizedEmbedding)
_ANY = Settings("u4")  # which layers could be quantised; their forms are those of the file


class Quantize(ConversionOps):
    """What transformers calls with each weight that ``param_needs_quantization`` named."""

    def __init__(self, quantizer: TilewrightQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **options: Any,
    ) -> dict[str, Any]:
        """The parameters that are left to be set: none if the layer was replaced."""
        missing: set[str] = options.get("missing_keys") or set()
        (value,) = input_dict.values()
        value = value[0] if isinstance(value, list) else value
        name = str(options["full_layer_name"])
        for expert in self.quantizer.experts:
            if expert.name == name:
                missing.discard(name)
                expert.quantise(value)
                expert.install()
                return {} if expert.holder is not None else {name: value}
        name = name.removesuffix(".weight")
        site = next(site for site in self.quantizer.sites if site.name == name)
        left = self.quantizer.quantize_site(site, value)
        for other in sharing(site, self.quantizer.sites):
            missing.discard(f"{other.name}.weight")
        return left


def tie(model: Any, files: list[str]) -> None:
    """Ties the empty parameters that the model's class ties: while loading, transformers waits.

    Not where the files hold both, which transformers takes for two weights.
    """
    from safetensors import safe_open

    there: set[str] = set()
    for path in files:
        if str(path).endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                there.update(file.keys())
    for target, source in model.all_tied_weights_keys.items():
        if all(there & {name, f"{name}.words"} for name in (target, source)):
            continue
        parent, _, name = target.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_parameter(source))


def forget_ties(model: Any, layers: Iterable[str]) -> None:
    """Ends transformers' own tying of these layers' weights: quantised, they share a module."""
    weights = {f"{name}.weight" for name in layers}
    for name, part in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            ties = getattr(part, attribute, None)
            if ties and isinstance(ties, Mapping):
                kept = {t: s for t, s in ties.items() if not {prefix + t, prefix + s} & weights}
                setattr(part, attribute, kept)


def adopt(model: Any, plan: Plan) -> None:
    """Makes ``save_pretrained`` of a model quantised in place save what loads again."""
    config = TilewrightConfig.of_plan(plan)
    quantizer = TilewrightQuantizer(config, pre_quantized=True)
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.is_quantized = True
    model.quantization_method = METHOD
    forget_ties(model, [name for name, part in model.named_modules() if isinstance(part, LAYERS)])


register_experts()  # before a saved model is loaded, whose experts only this one reads

__all__ = ["TilewrightConfig", "TilewrightQuantizer", "adopt"]
