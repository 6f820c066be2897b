"""A placement as a file: JSON that ``tilewright place`` writes and parallel execution reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints
from tilewright.runtime.whole_file import write_whole

FORMAT = "tilewright placement"
VERSION = 1
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Placement:
    """``devices`` int64 [layers, experts]: the device of each expert; as many on each, per layer.

    ``details`` says how it was found and how good it is. Raises DataError.
    """

    devices: Ints
    topology: Topology
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        devices = np.asarray(self.devices)
        if devices.ndim != 2 or devices.size == 0 or not np.issubdtype(devices.dtype, np.integer):
            raise DataError(
                "a placement's devices must be whole numbers [layers, experts], "
                f"not {devices.dtype} {list(devices.shape)}"
            )
        gpus, experts = self.topology.gpus, devices.shape[1]
        for layer, row in enumerate(devices):
            outside = row[(row < 0) | (row >= gpus)]
            if len(outside):
                raise DataError(f"layer {layer} names device {outside[0]}; there are {gpus}")
            held = np.bincount(row, minlength=gpus)
            if experts % gpus or (held != experts // gpus).any():
                raise DataError(
                    f"layer {layer} has {held.tolist()} experts on its {gpus} devices; "
                    f"each has to have equally many of the {experts}"
                )
        object.__setattr__(self, "devices", devices.astype(np.int64))

    @property
    def layers(self) -> int:
        return int(self.devices.shape[0])

    @property
    def experts(self) -> int:
        return int(self.devices.shape[1])

    def local(self, layer: int, device: int) -> Ints:
        """The experts of a layer that a device holds, in rising order; int64 [experts / gpus]."""
        return np.flatnonzero(self.devices[layer] == device)

    def save(self, path: Path, force: bool = True) -> None:
        """Writes the file, whole or not at all. Raises SettingError if it cannot be written, or
        exists and ``force`` does not replace it."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "gpus": self.topology.gpus,
            "nodes": self.topology.nodes,
            "inter_cost": self.topology.inter_cost,
            "experts": self.experts,
            **self.details,
            "devices": self.devices.tolist(),
        }
        rows = json.dumps(data, indent=1, ensure_ascii=False)
        write_whole(path, (_one_line_per_layer(rows) + "\n").encode(), SettingError, force)


def read_placement(path: Path) -> Placement:
    """What ``Placement.save`` wrote. Raises DataError that names the file and what is wrong."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: more than {MOST_BYTES >> 20} MiB, too large for a placement")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no readable JSON: {error}") from None
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise DataError(f"{path}: is no placement; `tilewright place TRACE --out FILE` writes one")
    if data.get("version") != VERSION:
        raise DataError(f"{path}: is of version {data.get('version')}; this reads {VERSION}")
    numbers = {key: data.get(key) for key in ("gpus", "nodes", "inter_cost")}
    wrong = [key for key, value in numbers.items() if type(value) is not int]
    if wrong:
        raise DataError(f"{path}: {wrong[0]!r} must be a whole number, not {numbers[wrong[0]]!r}")
    try:
        devices = np.asarray(data.get("devices"))
    except ValueError:
        raise DataError(f"{path}: 'devices' must be lists of one length, one a layer") from None
    known = ("format", "version", "gpus", "nodes", "inter_cost", "experts", "devices")
    details = {key: value for key, value in data.items() if key not in known}
    try:
        topology = Topology(data["gpus"], data["nodes"], data["inter_cost"])
        return Placement(devices, topology, details)
    except (DataError, SettingError) as error:
        raise DataError(f"{path}: {error.message}") from None


def _one_line_per_layer(text: str) -> str:
    """JSON of indent 1 with the innermost lists on one line each, so that a layer is a line."""
    lines: list[str] = []
    inner = False
    for line in text.splitlines():
        if inner:
            lines[-1] += line.strip() + (" " if line.endswith(",") else "")
            inner = not line.startswith("  ]")
        else:
            lines.append(line)
            inner = line == "  ["
    return "\n".join(lines)
