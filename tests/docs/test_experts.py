"""docs/experts.md: its Python runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent.parent / "docs" / "experts.md"


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small only wait for more
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    finally:
        torch.set_num_threads(before)
    assert "math: slot 1, 3 experts in 1 layers (at most 3 of 4)" in capsys.readouterr().out
