"""What a rule is: a name, and a rewrite of a stream graph whose docstring is its algebra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.core import Graph


@dataclass(frozen=True)
class Rule:
    """A named rewrite of a stream graph with its algebra (the docstring of ``apply``)."""

    name: str
    apply: Callable[[Graph], Graph]
