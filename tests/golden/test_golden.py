"""Each pass before and after: ``<pass>/<case>.tw`` is input, ``// ----``, output.

``pytest tests/golden --update-golden`` writes what the passes now give; read the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.ir.core import Module
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.decompose import decompose
from tilewright.passes.expand_math import expand_math
from tilewright.passes.partition import partition
from tilewright.passes.precision import precision
from tilewright.passes.reorder import reorder
from tilewright.passes.to_stream import to_stream
from tilewright.passes.to_tile import to_tile

HERE = Path(__file__).parent
BORDER = "\n// ----\n"

PASSES: dict[str, Callable[[Module, str], Module]] = {
    "canonicalise": lambda module, _: canonicalise(module),
    "decompose": lambda module, _: decompose(module),
    "expand_math": lambda module, _: expand_math(module),
    "partition": lambda module, _: partition(module),
    "precision": lambda module, _: precision(module),
    "reorder": lambda module, _: reorder(module),
    "to_stream": lambda module, _: to_stream(module),
    "to_tile": lambda module, case: to_tile(module, named_target(case.split("_on_")[1])),
}
CASES = sorted(HERE.glob("*/*.tw"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path: Path, update_golden: bool) -> None:
    before, _, after = path.read_text().partition(BORDER)
    got = str(PASSES[path.parent.name](parse(before, str(path)), path.stem))
    if update_golden:
        path.write_text(before + BORDER + got)
        return
    assert got == after, "if that is meant: pytest tests/golden --update-golden"


def test_every_pass_has_a_case() -> None:
    assert {p.parent.name for p in CASES} == set(PASSES)


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_output_parses(path: Path) -> None:
    """Golden outputs are programs."""
    _, border, after = path.read_text().partition(BORDER)
    assert border, "no border: write '// ----' after the input"
    parse(after, str(path))
