"""GPU kernels beyond ``tilewright.attention``: back ends, and schedules that measurements try."""

from __future__ import annotations

from tilewright.runtime.gpu_targets import device_target, using_backend, using_schedule

__all__ = ["device_target", "using_backend", "using_schedule"]
