"""Opening a checkpoint, whatever its format: a file, or a folder as Hugging Face's hub has them.

Nothing is unpickled, and nothing outside the folder is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from tilewright.frontend.checkpoints import (
    awq,
    bitsandbytes,
    compressed_tensors,
    gguf,
    gptq,
    hqq,
    mx,
    onnx,
    saved,
)
from tilewright.frontend.checkpoints.gptq_zeros import Evidence
from tilewright.frontend.checkpoints.safetensors import SafetensorsFile
from tilewright.frontend.checkpoints.source import Entry, Source
from tilewright.frontend.checkpoints.weight import Weight
from tilewright.ir.errors import DataError, SettingError, UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

FORMATS: tuple[Callable[[Source], Iterator[Weight]], ...] = (
    gptq.find,
    awq.find,
    compressed_tensors.find,
    mx.find,
    bitsandbytes.find,
    hqq.find,
    gguf.find,
    onnx.find,
    saved.find,
)
ZERO_RULES = ("v1", "v2")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONFIGURATIONS = ("quantize_config.json", "quant_config.json")  # GPTQ's and AWQ's own
_LARGEST_JSON = 64 << 20
_CODES = ("U8", "I8", "U16", "I16", "U32", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: quantised ``weights`` by name, and the ``plain`` tensors beside them.

    A weight of ``weights`` may have a ``problem``. ``unknown`` are tensors that look like codes but
    belong to no weight that is known here, each with the reason.
    """

    source: Source
    weights: Mapping[str, Weight]
    plain: tuple[str, ...]
    unknown: Mapping[str, str]

    def read(self, name: str) -> QuantizedTensor:
        """A quantised weight [..., N, K]. Raises DataError naming the tensor that is wrong."""
        if name not in self.weights:
            known = ", ".join(list(self.weights)[:5])
            raise SettingError(
                f"{self.source.path} has no quantised weight {name!r}; it has {known}"
            )
        return self.weights[name].read()

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        return self.source.tensor(
            self.source.entry(name, f"{self.source.path} has not got it").name
        )

    @property
    def problems(self) -> dict[str, str]:
        """By name, why a weight or a tensor cannot be read."""
        wrong = {name: w.problem for name, w in self.weights.items() if w.problem}
        return {**wrong, **self.unknown}

    @cached_property
    def zero_rule(self) -> Evidence | None:
        """How the zeros of GPTQ layers are read, and why; None without such layers."""
        rules = (w.zero_rule for w in self.weights.values() if w.zero_rule is not None)
        first = next(rules, None)  # one rule for the whole checkpoint
        return None if first is None else first()


def open_checkpoint(path: str | Path, zero_rule: str | None = None) -> Checkpoint:
    """Opens a ``.safetensors``, ``.gguf`` or ``.onnx`` file, or a folder with some.

    Only headers are read; weights are when ``read`` asks for them. ``zero_rule`` ("v1", "v2") is
    how GPTQ's zeros are stored, if the data shall not decide. Raises DataError, and
    UnsupportedError for a pickle.
    """
    if zero_rule is not None and zero_rule not in ZERO_RULES:
        raise SettingError(f"zero_rule={zero_rule!r} must be one of {', '.join(ZERO_RULES)}")
    source = _open(Path(path), {} if zero_rule is None else {"zero_rule": zero_rule})
    weights: dict[str, Weight] = {}
    claimed: set[str] = set()
    for find in FORMATS:
        for weight in find(source):
            known = weights.get(weight.name)
            kept = weight if known is None else _second(weight, known)
            weights[kept.name] = kept
            claimed.update(weight.tensors)
    left = [entry for name, entry in source.entries.items() if name not in claimed]
    unknown = {e.name: _why_unknown(e) for e in left if _looks_quantised(e)}
    plain = tuple(e.name for e in left if e.name not in unknown)
    return Checkpoint(source, weights, plain, unknown)


def _second(weight: Weight, first: Weight) -> Weight:
    """A weight whose name another format has found, too: it is told, not read."""
    both = f"{weight.name} has tensors of two formats, {first.format} and {weight.format}"
    name = f"{weight.name} ({weight.format})"
    return replace(weight, name=name, problem=weight.problem or both, decode=None)


def _looks_quantised(entry: Entry) -> bool:
    return entry.dtype in _CODES and len(entry.shape) > 1 and entry.count > 0


def _why_unknown(entry: Entry) -> str:
    return (
        f"{entry} looks like codes, but what would belong to it in a format known here is missing"
    )


def _open(path: Path, details: Mapping[str, Any]) -> Source:
    if not path.exists():
        raise DataError(f"{path} is not there")
    if path.is_dir():
        return _open_folder(path, details)
    if path.name.endswith(".index.json"):
        return _indexed(path, details)
    if path.suffix == ".gguf":
        return gguf.open_gguf(path)
    if path.suffix == ".onnx":
        return onnx.open_onnx(path)
    if path.suffix in _PICKLES:
        raise UnsupportedError(_refusal(path))
    return _of_files(path, [path], path.parent, details)


def _refusal(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is read: it is never opened here. Save "
        "the model as safetensors (transformers: save_pretrained(…, safe_serialization=True))"
    )


def _open_folder(folder: Path, details: Mapping[str, Any]) -> Source:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise DataError(
            f"{folder} has several indices; name one: {', '.join(p.name for p in indices)}"
        )
    if indices:
        return _indexed(indices[0], details)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return _of_files(folder, files, folder, details)
    for suffix, opened in ((".gguf", gguf.open_gguf), (".onnx", onnx.open_onnx)):
        found = sorted(folder.glob(f"*{suffix}"))
        first = [p for p in found if "-of-" not in p.name or "-00001-of-" in p.name]
        if len(first) > 1:
            raise DataError(f"{folder} has several; name one: {', '.join(p.name for p in first)}")
        if first:
            return opened(first[0])
    pickles = [p for p in sorted(folder.iterdir()) if p.suffix in _PICKLES]
    if pickles:
        raise UnsupportedError(_refusal(pickles[0]))
    raise DataError(f"{folder} must hold .safetensors, .gguf or .onnx files; it does not")


def _indexed(index: Path, details: Mapping[str, Any]) -> Source:
    """The files that an index names, with the tensors that it maps to them. Raises DataError."""
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not all(isinstance(v, str) for v in mapped.values()):
        raise DataError(f"{index}: weight_map must map tensors to files; it does not")
    folder = index.parent
    names = sorted(set(mapped.values()))
    for name in names:
        _check_inside(index, name)
        if not (folder / name).is_file():
            count = sum(value == name for value in mapped.values())
            raise DataError(f"{folder / name} is missing; {index.name} has {count} tensors in it")
    source = _of_files(folder, [folder / name for name in names], folder, details)
    for tensor, name in mapped.items():
        if tensor not in source.entries or source.entries[tensor].file != Path(name).name:
            raise DataError(f"{tensor} must be in {name}, as {index} says; it is not")
    return source


def _check_inside(index: Path, name: str) -> None:
    """Raises DataError for a name that leads out of the folder, or to no safetensors file."""
    path = PurePosixPath(name)
    if not name.endswith(".safetensors"):
        raise DataError(f"{index} must name safetensors files; it names {name!r}")
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise DataError(f"{index} must name files within its folder; it names {name!r}")


def _of_files(path: Path, files: list[Path], folder: Path, details: Mapping[str, Any]) -> Source:
    entries: dict[str, Entry] = {}
    holders: dict[str, SafetensorsFile] = {}
    for file in files:
        opened = SafetensorsFile(file)
        for name, entry in opened.entries.items():
            if name in entries:
                raise DataError(
                    f"{name} must be in one file; it is in {entries[name].file} and {file}"
                )
            entries[name] = entry
            holders[name] = opened
    return Source(
        path,
        "safetensors",
        entries,
        lambda name: holders[name].tensor(name),
        _quantization(folder),
        details,
    )


def _quantization(folder: Path) -> Mapping[str, Any]:
    """What the configuration beside the files says of quantisation; {} if nothing."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        for key in ("quantization_config", "compression_config"):
            if isinstance(config.get(key), dict):
                found: dict[str, Any] = config[key]
                return found
    for name in _CONFIGURATIONS:
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError naming the file."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise DataError(f"{path} must have at most {_LARGEST_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be JSON; {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value
