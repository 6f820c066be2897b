"""The demo's low-bit part: measured rows, divergences that mean something, and its picture."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.bench.conftest import make_record
from tilewright.bench.lowbit_demo import WIDTHS, divergence, with_lowbit
from tilewright.bench.lowbit_output import draw, plot_path, show_lowbit
from tilewright.bench.records import RESULTS

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def details() -> dict[str, Any]:
    """Of a tiny model, nothing compiled."""
    pytest.importorskip("transformers")
    from tilewright.bench.llama import TINY

    record = with_lowbit(make_record(ours=1.0), TINY, 40, 4, seconds=60.0, compiled=False)
    names = [row.name for row in record.comparisons]
    assert names[-2:] == ["demo model, all linears u4, one decode step"] * 2
    assert [row.peer for row in record.comparisons[-2:]] == ["torch eager f32", "torch eager bf16"]
    assert json.loads(record.to_json())["details"]["lowbit"]["rows"]
    found: dict[str, Any] = record.details["lowbit"]
    return found


def test_a_row_for_every_width(details: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in details["rows"]}
    assert list(rows) == ["f32", "bf16", *WIDTHS, "mixed"]
    assert details["steps"] == 4
    assert rows["f32"]["divergence"] == 0.0 and rows["f32"]["agreement"] == 1.0
    sizes = [rows[name]["megabytes"] for name in ("f32", "bf16", *WIDTHS)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(row["tokens_per_second"] > 0 for row in rows.values())
    assert 0 < rows["u8"]["divergence"] < rows["u4"]["divergence"] < rows["u2"]["divergence"]
    shown = io.StringIO()
    show_lowbit(details, Console(file=shown, width=120))
    assert "KL, nats" in shown.getvalue() and "█" in shown.getvalue()


def test_the_picture(
    details: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "picture.svg"
    assert draw(details["rows"], path)
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw(details["rows"], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_the_picture_lies_beside_a_saved_record_and_else_in_build() -> None:
    record = make_record("demo", "avx2", ours=1.0)
    assert plot_path(record, saved=True).parent == RESULTS / "avx2"
    assert plot_path(record, saved=False).parent.name == "build"


@given(st.integers(1, 5), st.integers(2, 6), st.floats(-5, 5), st.integers(0, 99))
def test_the_divergence(positions: int, tokens: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, positions, tokens, generator=generator, dtype=torch.float64)
    assert divergence(a, b) >= 0
    assert divergence(a, a + shift) == pytest.approx(0, abs=1e-12)  # softmax does not see a shift
    p, q = a.softmax(-1), b.softmax(-1)
    wanted = torch.nn.functional.kl_div(q.log(), p, reduction="sum") / positions
    assert divergence(a, b) == pytest.approx(float(wanted))
