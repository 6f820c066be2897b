"""Schedules of a call's kernels: their spaces, the cost model's order, each of them compiled."""

from tilewright.runtime.schedule_forms import KernelForm, kernel_forms

__all__ = ["KernelForm", "kernel_forms"]
