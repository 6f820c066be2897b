"""Which zero a GPTQ file means: the data decide, whatever the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frontend.checkpoints.writers import folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.frontend.checkpoints.gptq_zeros import stored_to_zero

WORDS = {  # what GPTQModel subtracts from the words of a v2 file to write v1
    2: [0x55555555],
    3: [0x24924924, 0x92492492, 0x49249249],
    4: [0x11111111],
    8: [0x01010101],
}


def minmax(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool
) -> tuple[torch.Tensor, ...]:
    """GPTQ's own choice of scale and zero, and rounded codes."""
    grouped = weight.view(weight.shape[0], -1, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    top = (1 << bits) - 1
    if symmetric:
        high = torch.maximum(low.abs(), high)
        low = -high
    scales = ((high - low) / top).half()
    zeros = torch.round(-low / scales.float())
    if symmetric:
        zeros = torch.full_like(zeros, (top + 1) // 2)
    codes = torch.round(grouped / scales.float()[..., None] + zeros[..., None]).clamp(0, top)
    return codes.view_as(weight).long(), zeros.long(), scales


def model(
    tmp_path: Path, bits: int, rule: str, symmetric: bool, config: dict[str, Any] | None
) -> Path:
    tensors = {}
    for i in range(3):
        weight = 0.02 * torch.randn(64, 256, generator=torch.Generator().manual_seed(i))
        codes, zeros, scales = minmax(weight, bits, 64, symmetric)
        layer = gptq_layer(codes, zeros, scales, bits, rule)
        tensors |= under(f"model.layers.{i}.self_attn.q_proj", layer)
    return folder(tmp_path / "m", tensors, config)


@pytest.mark.parametrize("rule", ["v1", "v2"])
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(b, s) for b in (2, 3, 4, 8) for s in (True, False) if b < 8 or s]
)
def test_files_that_lie_are_found_out(
    tmp_path: Path, bits: int, rule: str, symmetric: bool
) -> None:
    lie = "gptq" if rule == "v2" else "gptq_v2"
    config = {"quant_method": "gptq", "bits": bits, "checkpoint_format": lie}
    opened = open_checkpoint(model(tmp_path, bits, rule, symmetric, config))
    evidence = opened.zero_rule
    assert evidence is not None
    assert (evidence.rule, evidence.decided_by) == (rule, "data"), str(evidence)
    assert evidence.contradicts and "which is wrong" in str(evidence)
    if symmetric:
        assert "a symmetric file" in evidence.why
        assert set(opened.read("model.layers.0.self_attn.q_proj").zeros.unique().tolist()) == {
            2.0 ** (bits - 1)
        }


def test_eight_bits_without_symmetry_are_left_to_the_configuration(tmp_path: Path) -> None:
    """A step is so small there that the mean of the weights counts for more than the rule."""
    config = {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}
    evidence = open_checkpoint(model(tmp_path, 8, "v2", False, config)).zero_rule
    assert evidence is not None
    assert (evidence.rule, evidence.decided_by) == ("v2", "configuration")


def test_an_honest_file_is_not_accused(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}
    evidence = open_checkpoint(model(tmp_path, 4, "v2", False, config)).zero_rule
    assert evidence is not None and not evidence.contradicts
    assert "wrong" not in str(evidence)


@pytest.mark.parametrize(
    ("config", "rule", "by"),
    [
        ({"checkpoint_format": "gptq"}, "v1", "configuration"),
        ({"checkpoint_format": "gptq_v2"}, "v2", "configuration"),
        ({}, "v1", "default"),
    ],
)
def test_data_that_do_not_tell_leave_it_to_the_configuration(
    tmp_path: Path, config: dict[str, Any], rule: str, by: str
) -> None:
    """Codes whose mean lies halfway between what both rules would have."""
    generator = torch.Generator().manual_seed(0)
    zeros = torch.randint(5, 11, (32, 4), generator=generator)
    codes = zeros.repeat_interleave(32, 1)
    codes[:, ::2] -= 1  # mean zero - 0.5, and v1 stores zero - 1
    layer = gptq_layer(codes, zeros, torch.ones(32, 4).half(), 4)
    path = folder(tmp_path / "m", under("l", layer), {"bits": 4, **config})
    evidence = open_checkpoint(path).zero_rule
    assert evidence is not None
    assert (evidence.rule, evidence.decided_by) == (rule, by), str(evidence)
    assert "do not tell" in evidence.why


def test_the_option_overrules_the_data(tmp_path: Path) -> None:
    path = model(tmp_path, 4, "v2", True, None)
    name = "model.layers.0.self_attn.q_proj"
    asked = open_checkpoint(path, zero_rule="v1")
    assert asked.zero_rule is not None and asked.zero_rule.decided_by == "option"
    assert set(asked.read(name).zeros.unique().tolist()) == {9.0}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqmodel_borrows_across_a_word(tmp_path: Path, bits: int) -> None:
    """It subtracts ones from whole words, so that a zero of 0 borrows from its neighbour."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(1 << bits, (32, 64), generator=generator)
    zeros = torch.randint(1 << bits, (32, 2), generator=generator)
    zeros[::3] = 0
    layer = gptq_layer(codes, zeros, torch.ones(32, 2).half(), bits, "v2")
    ones = torch.tensor(WORDS[bits], dtype=torch.int64)
    words = layer["qzeros"].long()
    less = (words - ones[torch.arange(words.shape[1]) % len(ones)]) & 0xFFFFFFFF
    layer["qzeros"] = torch.where(less >= 1 << 31, less - (1 << 32), less).to(torch.int32)
    assert torch.equal(stored_to_zero(layer["qzeros"], bits, 32, "v1 by words").t(), zeros)
    config = {
        "bits": bits,
        "checkpoint_format": "gptq",
        "meta": {"quantizer": ["gptqmodel:4.2.5"]},
    }
    opened = open_checkpoint(folder(tmp_path / "m", under("l", layer), config))
    assert opened.zero_rule is not None and opened.zero_rule.rule == "v1 by words"
    assert torch.equal(opened.read("l").zeros.long(), zeros)
