"""Triton's interpreter does here what its result depends on, and no more."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def without_checks_that_nobody_reads() -> None:
    """The interpreter computes all integer sums and products a second time, in 64 bits, for an
    assertion that its own options leave out (``debug`` is false): a seventh of its time."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    assert not options.debug, "then the assertions count: leave sanitize_overflow on"
    interpreter.interpreter_builder.options = type(options)(sanitize_overflow=False)
