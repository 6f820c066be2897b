"""Triton's interpreter does here what its result depends on, and no more."""

from __future__ import annotations

import pytest

from tests.backends.interpreted import spare_the_interpreter


@pytest.fixture(scope="session", autouse=True)
def spared_interpreter() -> None:
    spare_the_interpreter()
