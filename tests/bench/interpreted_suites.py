"""Suites for GPUs, our kernels in Triton's interpreter; ``test_gpu_suites.py`` runs this file in a
process of its own, with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from tilewright.bench import contender
from tilewright.bench.contender import prepare
from tilewright.bench.devices import Rehearsal
from tilewright.bench.providers.catalogue import OURS, provider
from tilewright.bench.suites import catalogue as suites

PLACE = Rehearsal()


@pytest.mark.parametrize("name", suites.SUITES)
@torch.inference_mode()
def test_ours_and_torchs_are_right(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On the least problem of each section."""
    monkeypatch.setattr(contender, "TRIALS", 1)
    suite = suites.suite(name, PLACE)
    sections = dict.fromkeys(problem.section for problem in suite.problems(True))
    for section in sections:
        problem = suite.smallest(section)
        inputs = problem.make()
        exact = problem.exact(inputs)
        for who in (OURS, "torch-eager"):
            with PLACE.kernels():
                offer = provider(who).offers()[name]
                found = prepare(problem, inputs, exact, who, offer, PLACE)
            if who == OURS or section != "layers":
                assert found.status == "ok", f"{section}, {who}: {found.reason}"
