"""``tilewright opt --passes``."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cli.conftest import Command
from tilewright.ir.parser import parse
from tilewright.passes.pipeline import named_passes

Example = Callable[[str], str]
Refused = Callable[..., str]

V3 = ("--target", "x86-64-v3")


def without_names(text: str) -> str:
    """Values take new numbers each time that a text is read in."""
    return re.sub(r"%\w+", "%", text)


def test_each_pass_is_shown_before_and_after(tilewright: Command, example: Example) -> None:
    names = ["decompose", "precision", "canonicalise"]
    done = tilewright("opt", example("attention"), "--passes", ",".join(names), "--print-after-all")
    assert done.code == 0, done
    marks = [line for line in done.out.splitlines() if line.startswith("// ----")]
    assert marks[0] == "// ---- before" and marks[1] == "// ---- after decompose"
    assert marks[2] == "// ---- after precision (nothing changed)"
    assert len(parse(done.out).graphs) == len(names) + 1
    before, after = done.out.split("// ---- after decompose\n")
    assert "tensor.softmax" in before and "tensor.softmax" not in after


def test_without_passes_the_whole_way_is_gone(tilewright: Command, example: Example) -> None:
    done = tilewright("opt", example("log_sum_exp"), *V3)
    tile = tilewright("compile", example("log_sum_exp"), "--emit", "tile", *V3)
    assert done.out == tile.out


def test_each_pass_runs_alone_on_what_came_before(tilewright: Command, example: Example) -> None:
    with open(example("causal_attention"), encoding="utf-8") as file:
        text = file.read()
    for name in ("decompose", "precision", "canonicalise", "to_stream", "reorder", "partition"):
        done = tilewright("opt", "-", "--passes", name, stdin=text)
        assert done.code == 0, done
        text = done.out
    streams = tilewright("compile", example("causal_attention"), "--emit", "stream")
    assert without_names(text) == without_names(streams.out)
    tile = tilewright("opt", "-", "--passes", "to_tile, expand_math", *V3, stdin=text)
    assert parse(tile.out).main.level == "tile", tile


@pytest.mark.parametrize("name", named_passes())
def test_any_pass_takes_a_program_at_any_level(
    tilewright: Command, example: Example, name: str
) -> None:
    for stage in ("tensor", "stream", "tile"):
        text = tilewright("compile", example("log_sum_exp"), "--emit", stage, *V3).out
        done = tilewright("opt", "-", "--passes", name, *V3, stdin=text)
        assert done.code == 0, done


def test_no_pass_at_all_prints_the_program(tilewright: Command, example: Example) -> None:
    done = tilewright("opt", example("log_sum_exp"), "--passes", "")
    assert done.out == tilewright("compile", example("log_sum_exp"), "--emit", "tensor").out


def test_unknown_passes_and_targets(refused: Refused, example: Example) -> None:
    message = refused("opt", example("attention"), "--passes", "decompose,reoder")
    assert "unknown pass 'reoder'; did you mean 'reorder'?; known passes: decompose" in message
    message = refused("opt", example("attention"), "--passes", "to_tile", "--target", "z80")
    assert "unknown target 'z80'; known targets: host" in message
