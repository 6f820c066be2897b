"""``tilewright checkpoint``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Command
from tests.frontend.checkpoints.writers import folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A symmetric GPTQ file that stores zeros as v2 and says that it is v1, and a plain weight."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (32, 64), generator=generator)
    layer = gptq_layer(codes, torch.full((32, 2), 8), torch.ones(32, 2).half(), 4, "v2")
    tensors = {**under("a.q_proj", layer), "a.head.weight": torch.randn(8, 64)}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
    return folder(tmp_path / "m", tensors, config)


def test_inspect(tilewright: Command, model: Path) -> None:
    shown = tilewright("checkpoint", "inspect", str(model), "--layers")
    assert shown.code == 0, shown
    row = next(line for line in shown.out.splitlines() if line.strip().startswith("gptq"))
    row_end = ["whole,", "per", "group", "1", "1.2", "KiB", "4.62"]
    assert row.split() == ["gptq", "u4", "4", "32", *row_end]
    assert "v2 by data: all 64 zeros sampled are 8 by v2: a symmetric file" in shown.out
    assert "the configuration says v1, which is wrong" in shown.out
    assert "a.q_proj" in shown.out and "not quantised: 1 tensor, 2.0 KiB" in shown.out


def test_inspect_as_json(tilewright: Command, model: Path) -> None:
    shown = tilewright("checkpoint", "inspect", str(model), "--json")
    facts = json.loads(shown.out)
    assert facts["container"] == "safetensors" and facts["method"] == "gptq"
    (weight,) = facts["weights"]
    assert (weight["name"], weight["bits"], weight["shape"]) == ("a.q_proj", 4, [32, 64])
    rule = facts["zero_rule"]
    assert (rule["rule"], rule["decided_by"], rule["claimed"]) == ("v2", "data", "v1")
    assert rule["contradicts"] and facts["unreadable"] == {}
    asked = tilewright("checkpoint", "inspect", str(model), "--json", "--zero-point", "v1")
    assert json.loads(asked.out)["zero_rule"]["decided_by"] == "option"


def test_inspect_tells_what_it_cannot_read(tilewright: Command, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"x.qweight": torch.zeros(8, 8, dtype=torch.int32)})
    shown = tilewright("checkpoint", "inspect", str(path))
    assert shown.code == 1 and "x: x.scales is missing" in shown.out
    assert "cannot be read: 1" in shown.out
    assert tilewright("checkpoint", "inspect", str(path), "--json").code == 1


def test_convert(tilewright: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tilewright("checkpoint", "convert", str(model), str(out))
    assert done.code == 0, done
    assert f"written: {out}" in done.out and "which is wrong" in done.err
    expected = open_checkpoint(model).read("a.q_proj").dequantize()
    assert torch.equal(open_checkpoint(out).read("a.q_proj").dequantize(), expected)


def test_convert_with_a_plan(tilewright: Command, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"*.q_proj": {"dtype": "u6", "group": 16}, "*.other": "u2"}))
    arguments = ("checkpoint", "convert", str(model), str(tmp_path / "out"), "--plan", str(plan))
    done = tilewright(*arguments, "--dtype", "u8", "--group", "32")
    assert done.code == 0 and "no weight is named like '*.other'" in done.err, done
    opened = open_checkpoint(tmp_path / "out")
    kinds = {name: (w.dtype, w.group) for name, w in opened.weights.items()}
    assert kinds == {"a.q_proj": ("u6", 16), "a.head": ("u8", 32)}


@pytest.mark.parametrize("tensors", [{}, {"a.norm.weight": torch.ones(8)}])
def test_a_dtype_is_looked_at_where_no_weight_would_have_it(
    refused: Callable[..., str], tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    folder(tmp_path / "m", tensors, {})
    out = tmp_path / "out"
    told = refused("checkpoint", "convert", str(tmp_path / "m"), str(out), "--dtype", "zz")
    assert "dtype='zz' is no element type" in told and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{tmp}/nothing"), "is not there"),
        (("inspect", "{tmp}/m", "--zero-point", "v3"), "must be one of v1, v2"),
        (("convert", "{tmp}/m", "{tmp}/m"), "is there already"),
        (
            ("convert", "{tmp}/m", "{tmp}/out", "--plan", "{tmp}/nothing"),
            "nothing': No such file or directory; name a JSON file such as",
        ),
        (
            ("convert", "{tmp}/m", "{tmp}/out", "--plan", "{tmp}/m/config.json"),
            "plan['model_type']: dtype='llama' is no element type",
        ),
        (("convert", "{tmp}/m", "{tmp}/out", "--dtype", "u99"), "u99"),
    ],
)
def test_mistakes(
    refused: Callable[..., str],
    model: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    told = refused("checkpoint", *(a.format(tmp=tmp_path) for a in arguments))
    assert message in told
    assert not (tmp_path / "out").exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
