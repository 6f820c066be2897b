"""GPU kernels beyond ``tilewright.attention``: schedules that measurements try in turn."""

from __future__ import annotations

from tilewright.runtime.gpu_targets import device_target, using_schedule

__all__ = ["device_target", "using_schedule"]
