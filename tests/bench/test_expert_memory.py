"""The benchmark of expert memory runs on tiny problems; its adapters are the paper's."""

from __future__ import annotations

import json
import threading

import pytest
from typer.testing import CliRunner

from tilewright.bench import expert_memory, expert_pauses
from tilewright.bench.expert_adapters import ADAPTERS, LAYERS, MOST, draw_counts
from tilewright.bench.expert_pauses import Window
from tilewright.experts import fragmentation, sparsity
from tilewright.ir.errors import ExpertError

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
    raw = [row for row in pauses if row["name"].endswith(": longest / median")]
    assert [row["details"]["windows"] for row in raw] == [1, 2, 1]
    assert [row["value"] for row in pauses if row not in raw] == [
        raw[1]["details"][key]
        for key in (
            "longest / median, median of windows",
            "the same without loading",
            "longest / longest without, median of windows",
        )
    ]
    assert all(row["goal"] == {"must": None, "aim": None} for row in found["quantities"])
    refused = CliRunner().invoke(expert_memory.app, ["--quick", "--save"])
    assert refused.exit_code == 2


def test_windows_take_turns_and_are_as_long() -> None:
    """Every load has a neighbour of as many steps without one; neither always comes first."""
    log: list[str] = []
    go = threading.Event()

    def step() -> None:
        log.append("step")
        if len(log) % 7 == 3:
            go.set()

    def load() -> None:
        log.append("load")
        go.clear()
        assert go.wait(60)

    found = expert_pauses.windows(step, load, 5)
    assert log.count("load") == len(found) == 5
    assert all(w.loading and w.without for w in found)
    assert all(len(w.loading) == len(w.without) for w in found[::2])
    assert [len(w.without) for w in found[1::2]] == [len(w.loading) for w in found[:-1:2]]


def test_pauses_are_told_beside_chance() -> None:
    calm, rough = Window([1.0, 1.0, 2.0], [1.0, 1.0, 1.5]), Window([3.0, 1.0, 9.0], [1.0, 3.0, 1.0])
    assert (calm.longest, calm.longest_without) == (2.0, 1.5)
    assert rough.beside == 3.0
    found = expert_pauses.details([calm, rough, calm])
    assert found["longest / median, median of windows"] == 2.0
    assert found["the same without loading"] == 1.5
    assert found["longest / longest without, median of windows"] == pytest.approx(4 / 3)
    assert found["longest of all ms"] == 9000.0 and found["median ms"] == 1000.0
    assert found["longest of all / median without loading"] == 3.0


def test_a_load_that_fails_fails_the_benchmark() -> None:
    def load() -> None:
        raise ExpertError("no room")

    with pytest.raises(ExpertError, match="no room"):
        expert_pauses.windows(lambda: None, load, 1)
