"""``tilewright layout``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_layouts_and_packings(tilewright: Command, tmp_path: Path) -> None:
    shown = tilewright("layout", "local(2,1).spatial(2,2)", "--dtype", "u8", "--lane", "3")
    assert shown.code == 0 and "4 x 2 elements on 4 lanes, 2 registers each" in shown.out
    assert "bits 8-15      register 1     element [3, 1]" in shown.out
    path = tmp_path / "packing.svg"
    shown = tilewright("layout", "--packing", "quads(4) lanes 8 group 20", "--svg", str(path))
    assert shown.code == 0 and "of a group are padding" in shown.out
    assert "<svg" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one thing to draw"),
        (("local(2)", "--packing", "quads(4) lanes 8 group 20"), "name one thing to draw"),
        (("--packing", "quads(4) lanes 8 group 20", "--dtype", "u8"), "name one thing to draw"),
        (("local(2",), "the text ends here"),
        (("local(2)", "--dtype", "u99"), "unknown dtype u99"),
        (("local(2)", "--dtype", "u8", "--lane", "1"), "no lane 1"),
        (
            ("local(2)", "--svg", "/nowhere/at/all"),
            "--svg: cannot write '/nowhere/at/all': No such file or directory; name a file in",
        ),
        (("--packing", "quads(3) lanes 8 group 20"), "is no packing"),
        (("--packing", "quad"), "no packing: 'quad'"),
    ],
)
def test_mistakes(tilewright: Command, arguments: tuple[str, ...], message: str) -> None:
    done = tilewright("layout", *arguments)
    assert done.code == 2 and message in done.err, done
