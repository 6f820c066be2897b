"""Adapters as files or state dicts in ESFT's layout, read into layers and experts.

Keys are ``model.layers.{l}.mlp.experts.{e}.{gate,up,down}_proj.weight``, one matrix [out, in] each
(github.com/deepseek-ai/ESFT). Mixtral's ``w1``, ``w2``, ``w3`` and any prefix will do, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from tilewright.frontend.checkpoints.safetensors import SafetensorsFile
from tilewright.ir.errors import DataError, ExpertError
from tilewright.runtime.expert_memory.snapshot import Layer

Matrices = Mapping[str, torch.Tensor]
AdapterWeights = Mapping[Layer, Mapping[int, Matrices]]
AdapterSource = AdapterWeights | Mapping[str, torch.Tensor] | str | Path

_KEY = re.compile(
    r"(?P<module>.*\bexperts)\.(?P<expert>\d+)\.(?P<name>\w+?)(?:\.weight|[._](?P<bias>bias))?"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?:\.|$)")


def layer_number(module: str) -> int | None:
    """The decoder layer in a module's name: 3 for ``model.layers.3.mlp.experts``."""
    found = _LAYER.search(module)
    return int(found[1]) if found else None


def read_adapter(name: str, source: AdapterSource, modules: Mapping[str, Layer]) -> AdapterWeights:
    """An adapter's weights by layer and expert. Files are mapped, not copied.

    ``source``: such a mapping already, a state dict, or a safetensors file or a folder of them.
    ``modules``: the names of the model's expert modules, for keys without a layer's number. Raises
    ExpertError for keys that are no expert's, DataError for files that are none.
    """
    if isinstance(source, (str, Path)):
        return from_state_dict(name, _tensors(Path(source)), modules)
    if _is_state_dict(source):
        return from_state_dict(name, source, modules)
    return _nested(name, source)


def _nested(name: str, source: Any) -> AdapterWeights:
    """``{layer: {expert: {matrix: tensor}}}`` as it is. Raises ExpertError if it is none."""
    wanted = "{layer: {expert: {matrix: tensor}}}"
    if not isinstance(source, Mapping):
        raise ExpertError(f"adapter {name!r} must be {wanted}; it is a {type(source).__name__}")
    for layer, experts in source.items():
        if not isinstance(experts, Mapping) or not all(
            isinstance(matrices, Mapping) for matrices in experts.values()
        ):
            raise ExpertError(
                f"adapter {name!r} must be {wanted}; layer {layer!r} is something else"
            )
        for expert, matrices in experts.items():
            for key, data in matrices.items():
                if not isinstance(data, torch.Tensor):
                    raise ExpertError(
                        f"adapter {name!r}, layer {layer!r}, expert {expert!r}: {key} is no tensor "
                        f"but a {type(data).__name__}"
                    )
    return source


def from_state_dict(
    name: str, tensors: Mapping[str, torch.Tensor], modules: Mapping[str, Layer]
) -> AdapterWeights:
    """A flat mapping of keys to matrices, by layer and expert."""
    found: dict[Layer, dict[int, dict[str, torch.Tensor]]] = {}
    for key, data in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            raise ExpertError(
                f"adapter {name!r}: {key!r} is no expert's weight; keys are like "
                "'model.layers.3.mlp.experts.17.gate_proj.weight', and nothing but experts may "
                "differ from the base"
            )
        layer = _layer_of(name, match["module"], modules)
        matrix = match["name"] + ("_bias" if match["bias"] else "")
        expert = found.setdefault(layer, {}).setdefault(int(match["expert"]), {})
        if matrix in expert:
            raise ExpertError(f"adapter {name!r}: {key!r} is given twice, in two spellings")
        expert[matrix] = data
    return found


def _layer_of(name: str, module: str, modules: Mapping[str, Layer]) -> Layer:
    """The model's layer that a key means: by the module's name, else by its number."""
    if module in modules:
        return modules[module]
    number = layer_number(module)
    matching = [layer for layer in modules.values() if layer == number]
    if number is None or not matching:
        known = ", ".join(repr(layer) for layer in modules.values())
        raise ExpertError(
            f"adapter {name!r}: {module!r} is no layer with experts; they are {known}"
        )
    return matching[0]


def _is_state_dict(source: Mapping[Any, Any]) -> TypeGuard[Mapping[str, torch.Tensor]]:
    return bool(source) and all(isinstance(data, torch.Tensor) for data in source.values())


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, or of all safetensors files of a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no safetensors files")
    return dict(_unique(_entries(files)))


def _entries(files: Iterable[Path]) -> Iterable[tuple[str, torch.Tensor]]:
    for file in files:
        opened = SafetensorsFile(file)
        yield from ((key, opened.tensor(key)) for key in opened.entries)


def _unique(items: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    seen: set[str] = set()
    for key, data in items:
        if key in seen:
            raise DataError(f"{key} is in two files")
        seen.add(key)
        yield key, data
