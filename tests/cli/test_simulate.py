"""``tilewright simulate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command

Example = Callable[[str], str]
Refused = Callable[..., str]
N64 = ("--size", "N=64")


def line(out: str, word: str) -> list[str]:
    return next(x for x in out.splitlines() if x.split()[:1] == [word]).split()


def test_cycles_nodes_channels_results(tilewright: Command, example: Example) -> None:
    done = tilewright(
        "simulate",
        example("streams/naive"),
        *N64,
        "--depth",
        "short=2,long=N+2",
        "--repeat",
        "wire",
    )
    assert done.code == 0, done
    assert line(done.out, "cycles")[1] == "4164" and "full throughput" in done.out
    assert line(done.out, "e->p")[1:3] == ["66", "66"]
    assert "N + 2 = 66" in done.out and "results as the reference" in done.out
    assert line(done.out, "result")[1:4] == ["multiply-accumulate", "4096", "1.000"]


def test_a_missing_place_costs_a_cycle_a_row(tilewright: Command, example: Example) -> None:
    done = tilewright(
        "simulate", example("streams/naive"), *N64, "--depth", "short=2,long=N+1",
        "--repeat", "wire",
    )  # fmt: skip
    assert line(done.out, "cycles")[1] == "4227" and "(63 more than without)" in done.out


def test_without_depths_all_are_as_deep_as_needed(tilewright: Command, example: Example) -> None:
    done = tilewright("simulate", example("streams/safe_softmax"), *N64, "--json")
    data = json.loads(done.out)
    assert data["cycles"] == data["cycles_without_limits"] == 4231
    assert data["largest_error"] < 1e-12
    (deep, other) = [c for c in data["channels"] if c["deep"]]
    assert deep["full_throughput"] == other["full_throughput"] == "N + 3"
    assert deep["capacity"] == deep["full_throughput_here"] == 67
    assert deep["no_deadlock"] == "N - 1" and deep["no_deadlock_here"] == 63
    assert {n["kind"] for n in data["nodes"]} >= {"matmul", "reduce", "repeat", "map", "sink"}


def test_one_node_for_each_operation(tilewright: Command, example: Example) -> None:
    """As ``explain`` sees a program: the two see the same depths."""
    file = example("streams/memory_free")
    done = tilewright("simulate", file, *N64, "--nodes", "operations", "--json")
    data = json.loads(done.out)
    assert data["cycles"] == 4104 and len(data["nodes"]) == 14


def test_latencies(tilewright: Command, example: Example) -> None:
    file = example("streams/memory_free")
    done = tilewright(
        "simulate", file, *N64, "--latency", "2,running=11", "--depth", "inf", "--json"
    )
    base = json.loads(tilewright("simulate", file, *N64, "--depth", "inf", "--json").out)
    assert json.loads(done.out)["cycles"] == base["cycles"] + 3 + 10
    slow = tilewright("simulate", file, *N64, "--interval", "sum=3", "--depth", "inf", "--json")
    assert json.loads(slow.out)["cycles"] > 3 * 4096


def test_a_deadlock_names_channels_and_depths(refused: Refused, example: Example) -> None:
    message = refused("simulate", example("streams/naive"), *N64, "--depth", "short=2,long=N-2")
    assert message.startswith("error[TW010]: naive is stuck at cycle 66:")
    assert "e waits for room in e->p (all 62 places are taken)" in message
    assert "it ends with --depth 'e->p=63' or more" in message


def test_pictures_and_traces(tilewright: Command, example: Example, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, trace = tmp_path / "a.svg", tmp_path / "a.json"
    done = tilewright(
        "simulate",
        example("streams/naive"),
        "-s",
        "N=16",
        "--plot",
        str(plot),
        "--trace",
        str(trace),
    )
    assert done.code == 0, done
    assert "<svg" in plot.read_text(encoding="utf-8")
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]


def test_a_program_from_the_tensor_level(tilewright: Command, example: Example) -> None:
    passes = "decompose,precision,canonicalise,to_stream"
    streams = tilewright("opt", example("log_sum_exp"), "--passes", passes).out
    done = tilewright("simulate", "-", "--size", "N=6,M=20", stdin=streams)
    assert done.code == 0 and "results as the reference" in done.out, done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "e->q=3"], "there is no such channel; did you mean 'e->p'?"),
        (["--size", "N=64", "--size", "Q=1"], "the program has no size Q"),
        (["--latency", "x"], "--latency 'x': write cycles, or a node and cycles"),
        (["--latency", "z=2"], "there is no node 'z'; nodes: divisor, e, out"),
        (["--interval", "0"], "interval is 0 cycles; it has to be 1"),
        (["--send", "0"], "send is 0 cycles"),
        (["--plot", "x.pdf"], "a picture is a file that ends in .png or .svg"),
        (["--trace", "/no/such/folder/x.json"], "--trace /no/such/folder/x.json: No such file"),
        (["--size", "N=1000000", "--no-check"], "times: choose smaller sizes"),
    ],
)
def test_refused_options(
    refused: Refused, example: Example, options: list[str], message: str
) -> None:
    assert message in refused("simulate", example("streams/naive"), *options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph f<N>(%x: tensor<N x f32>) { return %x }", "takes a stream-level program"),
        (
            'stream f<N>(%x: tensor<N x f32>) { %a = stream.source %x {dims = [["n"]], '
            "type = stream<n=N; f32>} return %a }",
            "%a is stream<n=N; f32>; inputs and results are tensors",
        ),
        (
            'stream f<N>(%x: tensor<N x f32>) { %a = stream.source %x {dims = [["n"]], '
            'type = stream<n=N; f32>} %b = stream.reduce %a {kind = "sum", axis = "m"} return %x }',
            "'m' must be the innermost loop",
        ),
        ("stream f( {", "expected"),
    ],
)
def test_programs_that_are_none(refused: Refused, text: str, message: str) -> None:
    assert message in refused("simulate", "-", stdin=text)
