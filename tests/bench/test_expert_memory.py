"""The benchmark of expert memory runs on tiny problems; its adapters are the paper's."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tilewright.bench import expert_memory
from tilewright.bench.expert_adapters import ADAPTERS, LAYERS, MOST, draw_counts
from tilewright.experts import fragmentation, sparsity

pytestmark = pytest.mark.usefixtures("two_threads")


def test_drawn_counts_are_the_papers() -> None:
    """Largest and mean number of experts as given; S_i and F_mem follow (PAPERS.md §3.1, §3.2)."""
    every = []
    for shape in ADAPTERS:
        counts = draw_counts(shape)
        every.append(counts)
        assert len(counts) == LAYERS and max(counts) == shape.most and min(counts) >= 1
        assert sum(counts) / LAYERS == pytest.approx(shape.mean, abs=0.5 / LAYERS + 1e-9)
        assert sparsity(counts) == pytest.approx(shape.sparsity, abs=0.006)
        assert draw_counts(shape) == counts
    assert max(map(max, every)) == MOST
    found = fragmentation([64] * LAYERS, len(ADAPTERS), MOST, every)
    assert found == pytest.approx(1.50, abs=0.005)


def test_mapped_bytes_of_the_issues_shape() -> None:
    row = expert_memory.counted(expert_memory.WHOLE, 4, "4 KiB", 4096, held=True)
    assert row.value == 1.0 and row.met  # 6 and 3 MiB are whole pages
    assert row.details["padded / mapped"] == pytest.approx(row.details["F_mem"])
    large = expert_memory.counted(expert_memory.WHOLE, 4, "2 MiB", 2 << 20, held=False)
    assert 1.0 < large.value < 1.02


def test_the_command_writes_its_figures() -> None:
    result = CliRunner().invoke(expert_memory.app, ["--quick", "--json", "--seconds", "0"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [row["name"] for row in found["quantities"]]
    assert any("one layer in memory" in name for name in names)
    pauses = [row for row in found["quantities"] if "while loading" in row["name"]]
    assert len(pauses) == 3 and all(row["details"]["loads"] >= 2 for row in pauses)
    assert all(row["goal"] == {"must": None, "aim": None} for row in found["quantities"])
    refused = CliRunner().invoke(expert_memory.app, ["--quick", "--save"])
    assert refused.exit_code == 2
