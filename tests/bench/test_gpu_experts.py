"""The script for a device, on a CPU: all of it but the device's own calls."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tilewright.bench import gpu_experts

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(sys.platform != "linux", reason="maps pages"),
]
ONLY_ON_A_DEVICE = {
    "mapped pages are the device's (2 MiB or more)",
    "torch.bfloat16: the device agrees with mapped bytes (1 %)",
    "torch.float32: the device agrees with mapped bytes (1 %)",
}


class NoStream:
    def __init__(self, *_: object) -> None:
        """Everything is done when its call returns."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def test_all_checks_but_the_devices_own_hold_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "none")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    monkeypatch.setattr(gpu_experts, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_experts, "EXPERTS", 16)
    shapes = {"gate_up_proj": (96, 64), "down_proj": (64, 48)}
    monkeypatch.setattr(gpu_experts, "SHAPES", shapes)
    path = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu_experts", str(path), "--operations", "40", "--layers", "4"]
    )
    status = gpu_experts.main()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert "error" not in found, found["error"]
    wrong = {name for name, holds in found["checks"].items() if not holds}
    assert wrong == ONLY_ON_A_DEVICE and status == 1
    assert len(found["checks"]) > 20
    assert json.loads(capsys.readouterr().out) == found
