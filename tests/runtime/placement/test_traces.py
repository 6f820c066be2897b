"""Traces and placements as files, their counts, and what execution sends, counted one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.placement.evaluate import Judge, in_order, random_placement, round_robin
from tilewright.runtime.placement.file import Placement, read_placement
from tilewright.runtime.placement.generate import grouped_trace
from tilewright.runtime.placement.solve import place
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints, Trace, read_trace, write_trace
from tilewright.runtime.placement.traffic import coherent_rows, even_homes, exchange_rows


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    experts = draw(st.sampled_from([4, 8, 12]))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    ids = generator.random((*shape[:2], experts)).argsort(-1)[..., : shape[2]]
    return Trace(ids, experts)


@given(traces())
def test_affinity_counts_each_pair_of_choices(trace: Trace) -> None:
    counts = np.zeros((trace.layers - 1, trace.experts, trace.experts), dtype=np.int64)
    for token in trace.ids:
        for layer in range(trace.layers - 1):
            for here in token[layer]:
                for there in token[layer + 1]:
                    counts[layer, here, there] += 1
    assert np.array_equal(trace.affinity(), counts)


@given(traces(), st.integers(0, 100), st.sampled_from([1, 2]))
def test_figures_against_following_each_token(trace: Trace, seed: int, nodes: int) -> None:
    topology = Topology(4, nodes)
    places = random_placement(trace.layers, topology, trace.experts, seed)
    found = Judge(trace, topology)("some", places)
    node = np.arange(4) // topology.gpus_per_node
    hops = far = 0
    for token in trace.ids:
        for layer in range(trace.layers - 1):
            for here in places[layer][token[layer]]:
                for there in places[layer + 1][token[layer + 1]]:
                    hops += int(here != there)
                    far += int(node[here] != node[there])
    count = trace.tokens * trace.pairs
    assert found.hops == pytest.approx(hops / count)
    assert found.far == pytest.approx(far / count)
    assert found.cost == pytest.approx((hops + far) / count)
    assert found.exchange_rows * trace.tokens == pytest.approx(_exchanged(trace, places))
    assert found.coherent_rows * trace.tokens == pytest.approx(_moved(trace, places))


def _exchanged(trace: Trace, places: Ints) -> int:
    homes = even_homes(trace.tokens, 4)
    return sum(
        2 * len(set(places[layer][token[layer]]) - {home})
        for token, home in zip(trace.ids, homes, strict=True)
        for layer in range(trace.layers)
    )


def _moved(trace: Trace, places: Ints) -> int:
    sent = 0
    for token in trace.ids:
        home = None
        for layer in range(trace.layers):
            on = places[layer][token[layer]].tolist()
            if home is None:
                home = min(set(on), key=lambda d: (-on.count(d), d))
            sent += len(set(on) - {home})
            before = home
            home = min(set(on), key=lambda d: (-on.count(d), d != before, d))
            sent += len(set(on) - {home})
    return sent


@pytest.mark.parametrize(("choices", "nodes"), [(1, 1), (2, 1), (1, 2)])
def test_a_known_affinity_is_found(choices: int, nodes: int) -> None:
    trace, hidden = grouped_trace(4000, 6, 32, 4, choices=choices, affinity=0.8)
    topology = Topology(4, nodes)
    judge = Judge(trace, topology)
    solution = place(judge.affinity, topology, seconds=2)
    ours, known = judge("placed", solution.places), judge("hidden", hidden)
    robin, ordered, randoms = judge.references()
    assert judge.per_token(solution.cost) == pytest.approx(ours.cost)
    assert ours.cost <= known.cost <= 0.3 * robin.cost
    assert ours.cost <= 0.7 * min(ordered.cost, randoms.cost)
    assert solution.gap < 0.15
    assert ours.coherent_rows < 0.5 * robin.coherent_rows


def test_references_are_what_they_are_called() -> None:
    topology = Topology(3)
    assert round_robin(1, topology, 6).tolist() == [[0, 1, 2, 0, 1, 2]]
    assert in_order(2, topology, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    drawn = random_placement(5, topology, 6, 0)
    assert (np.sort(drawn, axis=1) == in_order(5, topology, 6)).all()
    assert len({tuple(row) for row in drawn.tolist()}) > 1


@given(traces(), st.sampled_from([".safetensors", ".npz", ".json"]))
def test_traces_survive_their_files(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("trace") / f"some{suffix}"
    write_trace(trace, path)
    again = read_trace(path)
    assert np.array_equal(again.ids, trace.ids) and again.experts == trace.experts


def _saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


IDS = np.zeros((3, 2), dtype=np.int64)
MISTAKES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "suffix": (lambda p: _text(p / "a.txt", ""), "ending in .safetensors, .npz, .json"),
    "missing": (lambda p: p / "a.json", "there is no such file"),
    "no json": (lambda p: _text(p / "a.json", "{"), "no readable JSON"),
    "no ids": (lambda p: _text(p / "a.json", "[]"), "must hold a JSON object"),
    "ragged": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[[0],[0,1]]}'), "of one length"),
    "floats": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[[0.5]]}'), "must be integers"),
    "text": (lambda p: _text(p / "a.json", '{"experts":"x","ids":[[0]]}'), "a whole number"),
    "too large": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[[0],[2]]}'), "ids[1, 0, 0]"),
    "negative": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[[-1]]}'), "is -1, but"),
    "empty": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[]}'), "a trace's ids must be"),
    "flat": (lambda p: _text(p / "a.json", '{"experts":2,"ids":[0,1]}'), "[tokens, layers, k]"),
    "no count": (lambda p: _saved(p / "a.npz", ids=IDS), "name them: --experts"),
    "no array": (lambda p: _saved(p / "a.npz", x=IDS), "it holds 'x'"),
    "no zip": (lambda p: _text(p / "a.npz", "nothing"), "no readable .npz"),
    "pickled": (
        lambda p: _saved(p / "a.npz", ids=np.array([{}], dtype=object), experts=2),
        "no readable .npz",
    ),
    "tensors": (lambda p: _text(p / "a.safetensors", "nothing"), "no readable safetensors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_malformed_traces_are_named(tmp_path: Path, name: str) -> None:
    make, message = MISTAKES[name]
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_the_number_of_experts_may_be_named_but_not_contradicted(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.npz", ids=IDS)
    assert read_trace(path, 5).experts == 5
    path = _saved(tmp_path / "b.npz", ids=IDS, experts=4)
    with pytest.raises(DataError, match="a trace of 4 experts, not of 5"):
        read_trace(path, 5)


def test_generated_traces_and_splits() -> None:
    trace, hidden = grouped_trace(50, 3, 6, 3, choices=2, affinity=1.0)
    groups = np.stack([hidden[layer][trace.ids[:, layer]] for layer in range(3)], axis=1)
    assert (groups == groups[:, :1, :1]).all()
    first, last = trace.split(0.2)
    assert (first.tokens, last.tokens) == (40, 10)
    with pytest.raises(DataError, match="cannot be split"):
        trace.split(0.001)
    with pytest.raises(SettingError, match="in 4 groups"):
        grouped_trace(5, 2, 6, 4)
    with pytest.raises(SettingError, match="probability"):
        grouped_trace(5, 2, 6, 3, affinity=2)


def test_placements_survive_their_files(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    made = Placement(random_placement(3, Topology(4, 2), 8, 0), Topology(4, 2, 3), {"note": "ü"})
    made.save(path)
    text = path.read_text(encoding="utf-8")
    assert sum(line.strip().startswith("[") for line in text.splitlines()) == 3  # a line a layer
    again = read_placement(path)
    assert np.array_equal(again.devices, made.devices)
    assert again.topology == made.topology and again.details == made.details
    assert again.local(1, 2).tolist() == np.flatnonzero(made.devices[1] == 2).tolist()
    with pytest.raises(SettingError, match=r"cannot write .*a\.json: No such file"):
        made.save(tmp_path / "nowhere" / "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no placement"),
        ({"version": 2}, "is of version 2"),
        ({"gpus": "4"}, "'gpus' must be a whole number"),
        ({"gpus": 3}, "layer 0 names device 3; there are 3"),
        ({"nodes": 3}, "evenly over 3 nodes"),
        ({"devices": [[0, 0, 1, 1]]}, r"layer 0 has \[2, 2, 0, 0\] experts"),
        ({"devices": [[0], [0, 1]]}, "lists of one length"),
        ({"devices": "x"}, "must be whole numbers"),
        (None, "no readable JSON"),
    ],
)
def test_malformed_placements_are_named(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    path = tmp_path / "placement.json"
    Placement(np.array([[0, 1, 2, 3]]), Topology(4)).save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    _text(path, "" if change is None else json.dumps(data | change))
    with pytest.raises(DataError, match=message):
        read_placement(path)


def test_rows_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, places = grouped_trace(37, 3, 8, 4, choices=2)
    whole = exchange_rows(trace, places, 4), coherent_rows(trace, places, 4)
    monkeypatch.setattr("tilewright.runtime.placement.traffic._BLOCK", 20)
    assert exchange_rows(trace, places, 4).total == whole[0].total
    assert coherent_rows(trace, places, 4).total == whole[1].total
