"""Default schedules and spaces of schedules, a file for each target: what changes is seen.

``pytest tests/golden --update-golden`` writes what there is now; read the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.schedules import CPUS, GPUS, table

HERE = Path(__file__).parent / "schedules"


@pytest.mark.parametrize("target", CPUS + GPUS)
def test_schedules(target: str, update_golden: bool) -> None:
    path, got = HERE / f"{target}.txt", table(target)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(got, encoding="utf-8")
    assert got == path.read_text(encoding="utf-8"), "if that is meant: pytest --update-golden"
