"""Checkpoints of every format, damaged: opened and read whole, within the memory of a few files."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.fuzz.campaign import Target
from tests.fuzz.damage import damaged_bytes, damaged_json, few, json_bytes
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import TilewrightError
from tilewright.runtime.quantized import storage

CORPUS = Path(__file__).parent / "corpus" / "checkpoints"
CONFIG = {
    "model_type": "llama",
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq_v2",
        "config_groups": {"group_0": {"weights": {"num_bits": 5, "type": "int"}}},
    },
}
Given = tuple[str, dict[str, bytes]]  # the path to open in the folder, and the folder's files


@cache
def samples() -> dict[str, bytes]:
    """The files of the corpus by name."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}


def _inputs(source: random.Random) -> Callable[[], Given]:
    found = samples()
    names = [name for name in found if not name.endswith(".data")]

    def make() -> Given:
        name = source.choice(names)
        files = {name: _damaged(source, name, found[name])}
        if name == "external.onnx":
            files["external.data"] = found["external.data"]
            if source.random() < 0.3:
                files["external.data"] = damaged_bytes(source, found["external.data"])
        if name.endswith(".safetensors") and source.random() < 0.5:
            files["config.json"] = json_bytes(source, damaged_json(source, CONFIG))
        if name.endswith(".safetensors") and source.random() < 0.1:
            index = {"metadata": {}, "weight_map": {"a": name, "b.weight": name}}
            files["model.safetensors.index.json"] = json_bytes(source, damaged_json(source, index))
        return ("" if "config.json" in files or source.random() < 0.1 else name), files

    return make


def _damaged(source: random.Random, name: str, data: bytes) -> bytes:
    """Half of the safetensors files have a header that is right as JSON, with what follows it."""
    if not name.endswith(".safetensors") or source.random() < 0.4:
        return damaged_bytes(source, data)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    change = _exchanged if source.random() < 0.5 else damaged_json
    header = change(source, header)
    text = json_bytes(source, header)
    if source.random() < 0.3:
        rest = damaged_bytes(source, rest)
    return len(text).to_bytes(8, "little") + text + rest


def _exchanged(source: random.Random, header: dict[str, object]) -> dict[str, object]:
    """The same tensors under each other's names, or with other shapes of as many elements."""
    for _ in range(few(source)):
        first, second = (source.choice(list(header)) for _ in range(2))
        header[first], header[second] = header[second], header[first]
        entry = header[first]
        if isinstance(entry, dict) and isinstance(shape := entry.get("shape"), list):
            source.shuffle(shape)
    return header


def take_checkpoint(given: Given) -> str:
    """Opens it, and reads all that can be read; tells how much that is."""
    name, files = given
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        for file, data in files.items():
            (Path(place) / file).write_bytes(data)
        opened = open_checkpoint(Path(place) / name)
        str(opened.problems), str(opened.zero_rule)
        read = 0
        for weight in opened.weights:
            read += _read(lambda weight=weight: opened.read(weight).dequantize())
        for tensor in opened.plain:
            _read(lambda tensor=tensor: opened.tensor(tensor))
        if name.endswith("ours.safetensors"):
            storage.load(Path(place) / name)
    return f"opened, {read} read"


def _read(do: Callable[[], object]) -> bool:
    try:
        do()
    except TilewrightError:
        return False
    return True


CHECKPOINTS = Target("checkpoints", _inputs, take_checkpoint)
