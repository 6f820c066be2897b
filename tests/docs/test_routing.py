"""docs/routing.md: the ties are those of this torch, the table has every operation."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tilewright.ir.core import REGISTRY
from tilewright.ir.ops_routing import TopK

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")


def test_ties_of_ones_are_those_on_the_page() -> None:
    found = [torch.ones(n).topk(k).indices.tolist() for n, k in ((8, 3), (64, 1), (64, 2))]
    assert found == [[6, 5, 4], [0], [42, 43]]
    assert "gives 6, 5, 4 for k = 3, of 64 it gives 0" in PAGE and "42, 43 for k = 2" in PAGE


def test_every_operation_is_in_the_table() -> None:
    names = re.findall(r"^\| `(tensor\.\w+)", PAGE, re.MULTILINE)
    own = {name for name, op in REGISTRY.items() if op.__module__ == TopK.__module__}
    assert own and own <= set(names)
