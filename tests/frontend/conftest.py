"""Every test here starts with an empty Dynamo cache and the interpreter as the program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.frontend.standin import StandInProgram
from tilewright.frontend import programs
from tilewright.frontend.attention.plans import forget_plans


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandInProgram]]:
    monkeypatch.setattr(programs, "make_program", StandInProgram)
    programs.forget_programs()
    forget_plans()
    torch._dynamo.reset()
    torch.manual_seed(0)
    StandInProgram.made = 0
    yield StandInProgram
    programs.forget_programs()
    forget_plans()
