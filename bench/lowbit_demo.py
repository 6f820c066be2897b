"""The demo's model with weights of few bits: tokens a second, and how far the logits move.

All models are held at once and take their steps in turns, so that none finds its weights in the
cache and all meet the same machine. Every number is measured in the run that shows it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

import tilewright
from tilewright.bench.llama import ModelSize, build_model, new_cache, prompt
from tilewright.bench.records import Comparison, Goal, Record
from tilewright.bench.timing import summary

WIDTHS = ("u8", "u6", "u5", "u4", "u3", "u2")
GROUP = 32
ACTIVATION = "int8"
# what goes wrong in the first layers goes through all others: they get most bits, the last fewest
MIXED_BASE = "u3"
MIXED = {
    "lm_head": "u8",
    "model.layers.0.*": "u8",
    "model.layers.[12].*": "u6",
    "model.layers.[345].*": "u4",
}
FLOAT_GOAL, HALF_GOAL = Goal(2.5), Goal(1.5)
BASE, HALF = "f32", "bf16"


@dataclass
class Variant:
    """One form of the model: ``model`` takes the steps, ``weight_bytes`` are its linears'."""

    name: str
    model: Callable[..., Any]
    weight_bytes: int
    bits: float
    cache: Any = None
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    steps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What is shown of a variant. ``divergence``: KL of its next-token distributions against f32's
    in nats, the mean of all positions; ``agreement``: share of equal best tokens."""

    name: str
    bits: float
    megabytes: float
    divergence: float
    agreement: float
    tokens_per_second: float
    speedup: float


def with_lowbit(
    record: Record, size: ModelSize, length: int, steps: int, seconds: float, compiled: bool = True
) -> Record:
    """The demo's record with the low-bit comparisons and ``details["lowbit"]``."""
    variants = measure(build_model(size), length, steps, seconds, compiled)
    named = {variant.name: variant for variant in variants}
    best = named.get("u4, compiled", named["u4"])
    work = named["u4"].weight_bytes / 1e9
    comparisons = tuple(
        Comparison(
            "demo model, all linears u4, one decode step",
            f"torch eager {name}",
            summary(best.steps),
            summary(named[name].steps),
            goal,
            work,
            "GB/s",
        )
        for name, goal in ((BASE, FLOAT_GOAL), (HALF, HALF_GOAL))
    )
    details = {
        "group": GROUP,
        "activation": ACTIVATION,
        "plan": {**MIXED, "others": MIXED_BASE},
        "prompt": length,
        "steps": len(best.steps),
        "rows": [asdict(row) for row in rows_of(variants)],
    }
    return replace(
        record,
        comparisons=(*record.comparisons, *comparisons),
        details={**record.details, "lowbit": details},
    )


def measure(
    model: Any, length: int, steps: int, seconds: float, compiled: bool = True
) -> list[Variant]:
    """f32 and bf16 as torch runs them, every width, the mixed plan; u4 and mixed compiled, too."""
    ids = prompt(length + steps + 1)
    variants = [_plain(BASE, model), _plain(HALF, copy.deepcopy(model).bfloat16())]
    variants += [_quantized(width, model, width, None) for width in WIDTHS]
    variants.append(_quantized("mixed", model, MIXED_BASE, MIXED))
    if compiled:
        variants += [
            replace(
                variant,
                name=f"{variant.name}, compiled",
                model=tilewright.compile(variant.model),
                steps=[],
            )
            for variant in variants
            if variant.name in ("u4", "mixed")
        ]
    with torch.inference_mode():
        for variant in variants:
            variant.cache = new_cache(model)
            out = variant.model(ids[:, :length], past_key_values=variant.cache, use_cache=True)
            variant.logits = out.logits[0].double()
        _take_steps(variants, ids[:, length:], seconds)
    return variants


def _plain(name: str, model: Any) -> Variant:
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return Variant(name, model, sum(w.nbytes for w in weights), 8.0 * weights[0].element_size())


def _quantized(name: str, model: Any, width: str, plan: dict[str, str] | None) -> Variant:
    """A copy of the model with all its linear layers quantised."""
    mine = copy.deepcopy(model)
    report = tilewright.quantize(
        mine, width, group=GROUP, activation=ACTIVATION, plan=plan, filter=_is_linear
    )
    return Variant(name, mine, report.bytes_after, report.bits_per_weight)


def _is_linear(module: torch.nn.Module, _name: str) -> bool:
    return isinstance(module, torch.nn.Linear)


def _take_steps(variants: Sequence[Variant], ids: torch.Tensor, seconds: float) -> None:
    """One token after the other through every model in turns; the first one is not counted."""
    start = time.perf_counter()
    for at in range(ids.shape[1]):
        if at > 2 and time.perf_counter() - start > seconds:
            return
        turn = at % len(variants)
        for variant in (*variants[turn:], *variants[:turn]):
            begin = time.perf_counter()
            variant.model(ids[:, at : at + 1], past_key_values=variant.cache, use_cache=True)
            if at:
                variant.steps.append(time.perf_counter() - begin)


def rows_of(variants: Sequence[Variant]) -> list[Row]:
    """What is shown, f32 first."""
    base = variants[0]
    usual = summary(base.steps).median
    return [
        Row(
            variant.name,
            variant.bits,
            variant.weight_bytes / 1e6,
            divergence(base.logits, variant.logits),
            float((base.logits.argmax(-1) == variant.logits.argmax(-1)).double().mean()),
            1.0 / summary(variant.steps).median,
            usual / summary(variant.steps).median,
        )
        for variant in variants
    ]


def divergence(exact: torch.Tensor, given: torch.Tensor) -> float:
    """KL(softmax(exact) || softmax(given)) of logits [positions, tokens], the mean, in nats."""
    p, q = torch.log_softmax(exact, -1), torch.log_softmax(given, -1)
    return float((p.exp() * (p - q)).sum(-1).mean().clamp(min=0.0))
