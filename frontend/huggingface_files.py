"""The quantised weights that a saved model's files hold, and what the model calls them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tilewright.frontend.experts.weights import PACKED, ExpertWeight, ExpertWeights, Holder
from tilewright.frontend.quantize.form import PARTS, Form
from tilewright.frontend.quantize.layers import QuantizedWeight, form_of_bytes
from tilewright.ir.errors import UnsupportedError

FORM = "_extra_state"
_WEIGHT = ".weight"
_DTYPES = {
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


def stored_weights(files: list[str] | None) -> dict[str, QuantizedWeight]:
    """By layer name, the quantised weights of a checkpoint, on the meta device; those of experts by
    the name of what holds them, such as ``….experts.down_proj_packed``."""
    from safetensors import safe_open

    if not files or not all(str(path).endswith(".safetensors") for path in files):
        raise UnsupportedError("a model quantised by tilewright is loaded from safetensors files")
    forms: dict[str, Form] = {}
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # safe_open is no mapping
                holder, _, part = key.rpartition(".")
                if not holder.endswith(_WEIGHT) and _packed(holder) is None:
                    continue
                if part == FORM:
                    forms[holder] = form_of_bytes(file.get_tensor(key))
                elif part in PARTS:
                    piece = file.get_slice(key)
                    tensors.setdefault(holder, {})[part] = _meta(piece)
    weights = {}
    for name, form in forms.items():
        parts = tensors.get(name, {})
        if "words" not in parts or "scales" not in parts:
            raise UnsupportedError(f"the checkpoint has no {name}.words or .scales")
        empty = (parts["words"], parts["scales"], parts.get("zeros"), parts.get("order"))
        weights[name.removesuffix(_WEIGHT)] = QuantizedWeight(form, empty)
    return weights


def _meta(piece: Any) -> torch.Tensor:
    return torch.empty(piece.get_shape(), dtype=_DTYPES[piece.get_dtype()], device="meta")


def _packed(holder: str) -> str | None:
    """The name of a parameter's packed weights, of a holder of all experts or of a single one."""
    head, _, last = holder.rpartition(".")
    name = head if last.isdecimal() else holder
    return name if name.endswith(PACKED) else None


def packed_names(stored: Iterable[str]) -> list[str]:
    """The names of packed experts, ``….experts.down_proj_packed``, each once."""
    return list(dict.fromkeys(name for each in stored if (name := _packed(each)) is not None))


def expert_holder(stored: Mapping[str, QuantizedWeight], name: str, activation: str) -> Holder:
    """An empty holder for the file's packed weights ``name``."""
    if name in stored:
        return ExpertWeight(stored[name].form, stored[name].parts, activation)
    each: list[ExpertWeight] = []
    while f"{name}.{len(each)}" in stored:
        weight = stored[f"{name}.{len(each)}"]
        each.append(ExpertWeight(weight.form, weight.parts, activation))
    return ExpertWeights(each)


def file_names(model: Any, stored: Iterable[str], packed: Iterable[str] = ()) -> dict[str, str]:
    """The file's names of layers by the model's: base models lack a prefix, or have it too much,
    and some models' files have other names. ``packed``: names that the model will have."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)} | set(packed)
    prefix = f"{model.base_model_prefix}."
    names = {}
    for name in stored:
        renamed = _renamed(model, name)
        tried = (name, renamed)
        longer = (prefix + each for each in tried)
        shorter = (each.removeprefix(prefix) for each in tried)
        found = next((new for new in (*tried, *longer, *shorter) if new in known), None)
        if found is not None:
            names[found] = name
    return names


def _renamed(model: Any, name: str) -> str:
    """What transformers calls a tensor of the file when it loads it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for each in get_model_conversion_mapping(model):
        if isinstance(each, WeightRenaming):
            name, _ = each.rename_source_key(name)
    return name
