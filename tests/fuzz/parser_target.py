"""The parser and the verifier as a target: what parses has to print and parse again as it was."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz.campaign import Target
from tests.fuzz.texts import Texts
from tilewright.ir.parser import parse


def _inputs(source: random.Random) -> Callable[[], str]:
    return Texts(source)


def take_text(text: str) -> str:
    """Parses; every text in eight that is a program is printed and parsed again."""
    module = parse(text)
    if len(text) % 8:
        return "program"
    printed = str(module)
    assert str(parse(printed)) == printed, "it prints as something else"
    return "program, printed and parsed"


PARSER = Target("parser", _inputs, take_text)
