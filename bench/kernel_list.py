"""The distinct kernels of a report of ``tilewright.compile``, however many layers share each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_DEEP = "  deep:"  # what a channel's text ends in when its depth grows with the data


@dataclass
class KernelFacts:
    """One kernel: how many regions use it, its channels by depth, and its compiled forms."""

    name: str
    place: str  # the source line of its result in the first region
    runs_on: str
    regions: int = 0
    depths: dict[str, int] = field(default_factory=dict)
    made_shallow: list[str] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return sum(self.depths.values())

    @property
    def cache_hits(self) -> int:
        return sum(bool(form["from_cache"]) for form in self.forms)

    @property
    def seconds(self) -> float:
        """What making or loading its forms took."""
        return sum(float(form["seconds"]) for form in self.forms)


def kernels_of(report: dict[str, Any]) -> list[KernelFacts]:
    """From ``explain().to_dict()``: a kernel with the same stream program is the same kernel."""
    found: dict[str, KernelFacts] = {}
    for graph in report["graphs"]:
        for region in graph["regions"]:
            for kernel in (region["kernels"] or {"kernels": []})["kernels"]:
                facts = found.setdefault(kernel["stream"], _facts(kernel, region))
                facts.regions += 1
    return list(found.values())


def torch_regions(report: dict[str, Any]) -> list[str]:
    """Regions that ran with torch after all, with the reason."""
    regions = [region for graph in report["graphs"] for region in graph["regions"]]
    reasons = Counter(
        reason
        for region in regions
        for reason in ([region["reason"]] if region["reason"] else region["fallbacks"])
    )
    return [f"{count} x {reason}" for reason, count in reasons.items()]


def operations_left(report: dict[str, Any]) -> Counter[str]:
    """Operations that stayed with torch, by name."""
    left: Counter[str] = Counter()
    for graph in report["graphs"]:
        for row in graph["left"]:
            left[row["op"]] += row["count"]
    return left


def _facts(kernel: dict[str, Any], region: dict[str, Any]) -> KernelFacts:
    depths = Counter(channel.rsplit("depth ", 1)[-1] for channel in kernel["channels"])
    return KernelFacts(
        kernel["name"],
        region["lines"][-1].rpartition("site-packages/")[2],
        kernel["runs_on"],
        depths=dict(sorted(depths.items())),
        made_shallow=[c.partition(_DEEP)[0] for c in region["kernels"]["made_shallow"]],
        forms=kernel["variants"],
    )
