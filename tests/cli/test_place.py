"""``tilewright place``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Command
from tilewright.placement import Topology, grouped_trace, read_placement, write_trace

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """8 experts in 4 hidden pairs, from layer to layer."""
    path = tmp_path / "routing.npz"
    write_trace(grouped_trace(600, 5, 8, 4, affinity=0.9)[0], path)
    return str(path)


def test_a_placement_is_shown_and_written(tilewright: Command, trace: str, tmp_path: Path) -> None:
    out = tmp_path / "placement.json"
    shown = tilewright("place", trace, "--gpus", "4", "--time-limit", "30s", "--out", str(out))
    assert shown.code == 0, shown
    assert "600 tokens, 5 layers of 8 experts, top-1; 4 GPUs, 2 experts on each" in shown.out
    rows = {line.split("  ")[1].strip(): line for line in shown.out.splitlines() if TIMES in line}
    assert list(rows) == ["placed", "round robin", "in order", "random, mean of 10"]
    assert f"1.00{TIMES}" in rows["round robin"] and "the optimum, proven" in shown.out
    assert f"written: {out}" in shown.err
    placement = read_placement(out)
    assert placement.topology == Topology(4)
    assert (np.sort(placement.devices, axis=1) == np.repeat(np.arange(4), 2)).all()
    ours, robin, *_ = placement.details["per_token"]
    assert ours["hops"] == pytest.approx(placement.details["bound_per_token"])
    assert ours["hops"] < 0.3 * robin["hops"]


def test_a_file_that_exists_is_replaced_with_force_only(
    tilewright: Command, refused: Callable[..., str], trace: str, tmp_path: Path
) -> None:
    out = tmp_path / "placement.json"
    out.write_text("something else")
    arguments = ("place", trace, "--gpus", "4", "--method", "chain", "--out", str(out))
    assert f"--out {out} exists: name another file, or --force" in refused(*arguments)
    assert out.read_text() == "something else"
    assert tilewright(*arguments, "--force").code == 0 and read_placement(out).experts == 8
    assert "it is a folder" in refused(*arguments[:-1], str(tmp_path))


def test_nodes_held_out_tokens_and_json(tilewright: Command, trace: str) -> None:
    options = ("--gpus", "4", "--nodes", "2", "--inter-cost", "3", "--hold-out", "0.5")
    shown = tilewright("place", trace, *options)
    assert "4 GPUs on 2 nodes" in shown.out and "between nodes" in shown.out
    assert "on the last 50% of the tokens" in shown.out
    facts = json.loads(tilewright("place", trace, *options, "--json").out)
    assert facts["proven"] and facts["trace"]["tokens"] == 300
    ours = facts["per_token"][0]
    assert ours["cost"] == pytest.approx(ours["hops"] + 2 * ours["far"])


@pytest.mark.parametrize("method", ["chain", "exact", "recursive", "search"])
def test_methods(tilewright: Command, trace: str, method: str) -> None:
    arguments = ("place", trace, "--gpus", "2", "--method", method, "--time-limit", "0.5m")
    shown = tilewright(*arguments)
    assert shown.code == 0 and "method: " in shown.out, shown
    assert ("proven" in shown.out) or method in ("recursive", "search")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "3"), "8 experts cannot be spread evenly over 3 GPUs"),
        (("--gpus", "0"), "there may be 1 to"),
        (("--gpus", "4", "--nodes", "3"), "evenly over 3 nodes"),
        (("--gpus", "4", "--method", "best"), "no method 'best'"),
        (("--gpus", "4", "--time-limit", "soon"), "--time-limit 'soon': a time such as 60s"),
        (("--gpus", "4", "--time-limit", "0s"), "--time-limit '0s': a time such as"),
        (("--gpus", "4", "--hold-out", "1"), "--hold-out"),
        (("--gpus", "4", "--experts", "9"), "a trace of 8 experts, not of 9"),
        (("--gpus", "4", "--out", "/nowhere/at/all.json"), "--out /nowhere"),
    ],
)
def test_mistakes(
    tilewright: Command, trace: str, arguments: tuple[str, ...], message: str
) -> None:
    done = tilewright("place", trace, *arguments)
    assert done.code == 2 and message in done.err, done


def test_malformed_traces(refused: Callable[..., str], write: Callable[[str, str], str]) -> None:
    wrong = write("wrong.json", '{"experts": 4, "ids": [[0, 1], [2, 4]]}')
    assert "ids[1, 1, 0] is 4" in refused("place", wrong, "--gpus", "2")
    assert "no such file" in refused("place", "nowhere.npz", "--gpus", "2")
    assert "is a file ending in" in refused("place", write("a.txt", ""), "--gpus", "2")


def test_without_scipy_the_extra_is_named(
    refused: Callable[..., str], trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    message = refused("place", trace, "--gpus", "4", "--method", "search")
    assert "tilewright[placement]" in message
