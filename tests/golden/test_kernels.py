"""The tile programs of whole kernels as text: one file of ``kernels/`` for each of ``kernels.py``.

``pytest tests/golden --update-golden`` writes what the lowerings now give; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.kernels import KERNELS
from tilewright.ir.parser import parse

HERE = Path(__file__).parent / "kernels"


@pytest.mark.parametrize("name", KERNELS)
def test_programs(name: str, update_golden: bool) -> None:
    """They are as they were, and what is printed is a program."""
    path, got = HERE / f"{name}.tw", KERNELS[name].texts()
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(got, encoding="utf-8")
    assert got == path.read_text(encoding="utf-8"), "if that is meant: pytest --update-golden"
    parse(got, str(path))


def test_no_file_is_left_over() -> None:
    assert {str(p.relative_to(HERE).with_suffix("")) for p in HERE.glob("*/*.tw")} == set(KERNELS)
