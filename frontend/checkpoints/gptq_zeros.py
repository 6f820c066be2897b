"""Which zero a GPTQ file means by what it stores: the rule is found from the data.

``v1`` stores zero - 1 and ``v2`` the zero itself. The configuration names one
(``checkpoint_format``: "gptq" or "gptq_v2"), but files are known that name the wrong one
(vllm#38966), and a zero that is off by one shifts every weight by a whole step. Two facts tell
them apart:

- In a symmetric file all zeros are 2**(bits-1), if they are read by the right rule.
- Otherwise, weights have a mean near 0, so that the mean code of a group lies near its zero. Over
  many groups the right rule leaves a difference near 0, the wrong one a difference near 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.frontend.checkpoints.bits import unpack_fields

_CERTAIN = 0.999  # of the zeros, for a file to count as symmetric
_SIGMAS = 6.0  # how surely one rule's difference has to be the smaller one
_MARGIN = 0.3  # and by how much at least
_BIAS = 0.01  # of the spread of codes: how far from 0 the mean of weights may be; at 8 bits, a step
_MOST_BIAS = 0.25  # steps; beyond, means do not tell

# What GPTQModel subtracts from whole words to write v1: a zero of 0 borrows from its neighbour.
_ONES = {
    2: (0x55555555,),
    3: (0x24924924, 0x92492492, 0x49249249),  # its own pattern for 3 bits, by column modulo 3
    4: (0x11111111,),
    8: (0x01010101,),
}


@dataclass(frozen=True)
class Sample:
    """Some groups of a layer: ``words`` int32 [groups, N * bits / 32] are the stored zeros of all
    its rows, ``means`` [rows, groups] the mean codes of its first rows, ``spread`` the standard
    deviation of these codes within their groups."""

    bits: int
    words: torch.Tensor
    all_rows: int
    means: torch.Tensor
    spread: float

    def zeros(self, rule: str) -> torch.Tensor:
        """f32 [rows, groups] by that rule."""
        zeros = stored_to_zero(self.words, self.bits, self.all_rows, rule)
        return zeros[:, : len(self.means)].t().float()


@dataclass(frozen=True)
class Evidence:
    """The rule to read by ("v1", "v1 by words", "v2"), who says so, and why."""

    rule: str
    decided_by: str  # "data", "configuration", "default", "option"
    claimed: str  # what the configuration says: "v1", "v2" or ""
    why: str

    @property
    def contradicts(self) -> bool:
        """Whether the data say something else than the configuration."""
        return bool(self.claimed) and not self.rule.startswith(self.claimed)

    def __str__(self) -> str:
        text = f"{self.rule} by {self.decided_by}: {self.why}"
        wrong = f"; the configuration says {self.claimed}, which is wrong"
        return text + wrong * self.contradicts


def claimed_rule(quantization: Mapping[str, Any]) -> str:
    """What the configuration says: "v1", "v2", or "" if nothing."""
    named = quantization.get("checkpoint_format", quantization.get("format"))
    return {"gptq": "v1", "gptq_v2": "v2"}.get(str(named), "")


def weigh(samples: Iterable[Sample], quantization: Mapping[str, Any]) -> Evidence:
    """The rule of a checkpoint: by the data where they tell, else as the configuration says."""
    claimed = claimed_rule(quantization)
    v1 = "v1 by words" if _by_gptqmodel(quantization) else "v1"
    kept = list(samples)
    found, why = _constant(kept, (v1, "v2")) or _means(kept, (v1, "v2"))
    if found:
        return Evidence(found, "data", claimed, why)
    if claimed:
        return Evidence(v1 if claimed == "v1" else claimed, "configuration", claimed, why)
    return Evidence(v1, "default", claimed, why)


def _constant(samples: list[Sample], rules: tuple[str, str]) -> tuple[str, str] | None:
    """The rule by which all zeros are the middle of the codes."""
    total = sum(s.means.numel() for s in samples)
    for rule in rules:
        equal = sum(int((s.zeros(rule) == 1 << s.bits - 1).sum()) for s in samples)
        if total and equal >= _CERTAIN * total:
            middles = sorted({1 << s.bits - 1 for s in samples})
            share = "all" if equal == total else f"{equal} of"
            told = f"{share} {total} zeros sampled are {', '.join(map(str, middles))} by {rule}"
            return rule, f"{told}: a symmetric file"
    return None


def _means(samples: list[Sample], rules: tuple[str, str]) -> tuple[str, str]:
    """The rule whose zeros lie at the mean codes; "" if that does not tell."""
    count = sum(s.means.numel() for s in samples)
    if count < 2:
        return "", "there are too few groups to tell from the data"
    spread = max(s.spread for s in samples)
    if spread * _BIAS > _MOST_BIAS:
        return "", f"the data do not tell: codes spread by {spread:.0f}, and the rules differ by 1"
    differences = []
    for rule in rules:
        every = torch.cat([(s.means - s.zeros(rule)).flatten() for s in samples]).double()
        differences.append(float(every.mean()))
    error = float(every.std()) / math.sqrt(count)
    told = f"the mean code of {count} groups lies " + " and ".join(
        f"{d:+.3f} from the zero by {r}" for d, r in zip(differences, rules, strict=True)
    )
    sizes = [abs(d) for d in differences]
    if abs(sizes[0] - sizes[1]) < max(_SIGMAS * error, _MARGIN) or min(sizes) > 0.5:
        return "", f"the data do not tell: {told} (± {error:.3f})"
    return rules[sizes.index(min(sizes))], f"{told} (± {error:.3f})"


def _by_gptqmodel(quantization: Mapping[str, Any]) -> bool:
    meta = quantization.get("meta")
    written = meta.get("quantizer", "") if isinstance(meta, Mapping) else ""
    return "gptqmodel" in str(written).lower()


def stored_to_zero(words: torch.Tensor, bits: int, rows: int, rule: str) -> torch.Tensor:
    """uint8 [groups, N]: the zeros in int32 words [groups, N * bits / 32].

    v1 is read as AutoGPTQ does: a sum of 2**bits is 0. By words, the borrow is given back.
    """
    if rule == "v1 by words":
        ones = torch.tensor(_ONES[bits], dtype=torch.int64)
        sums = words.to(torch.int64) + ones[torch.arange(words.shape[1]) % len(ones)]
        sums &= 0xFFFFFFFF
        words = torch.where(sums >= 1 << 31, sums - (1 << 32), sums).to(torch.int32)
        return unpack_fields(words, bits, rows)
    zeros = unpack_fields(words, bits, rows)
    return zeros if rule == "v2" else (zeros + 1) & ((1 << bits) - 1)
