"""A pytest plugin for ``cover``: coverage.py learns which test runs, Hypothesis's drawn ones too.

Its own dynamic contexts look for the innermost function named ``test_…``, and Hypothesis's engine
has a ``test_function`` of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from coverage import Coverage

from tests.mutation.covering import function_of


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fixtures and all count as their test's."""
    measured = Coverage.current()
    if measured is not None:
        measured.switch_context(function_of(item.nodeid))
    return (yield)
