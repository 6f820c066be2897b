"""docs/checkpoints.md: its Python runs, and its table has every block type that is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.frontend.checkpoints.writers import folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.frontend.checkpoints.gguf_blocks import BLOCKS

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = torch.randint(16, (32, 64), generator=torch.Generator().manual_seed(0))
    layer = gptq_layer(codes, torch.full((32, 2), 8), torch.ones(32, 2).half(), 4)
    name = "model.layers.0.mlp.down_proj"
    folder(tmp_path / "model-gptq", {**under(name, layer), "model.norm.weight": torch.ones(4)})
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), {})
    assert f"{name} gptq u4 (32, 64) 32" in capsys.readouterr().out
    assert set(open_checkpoint("model-tw").weights) == {name}


def test_every_block_type_is_in_the_table() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for kind, block in BLOCKS.items():
        row = next(row for row in rows if re.search(rf"\b{kind}\b", row))
        assert ("2⁻²²" in row) == block.affine, row
