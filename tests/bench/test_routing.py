"""The benchmark of routing runs on a small router; both sides do the same work."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tilewright.bench import routing

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("product", [False, True])
def test_both_sides_route_alike(product: bool) -> None:
    small = routing.Routing(16, 24, 8, 4, 3, 2)
    program, theirs = small.program(product), small.torch_side(product)
    for tokens in (1, 5, 40, 300):
        *rest, adapter, table = small.inputs(tokens, product)
        found = program(*rest, adapter.int(), table.int())
        wanted = theirs(*rest, adapter, table)
        for ours, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), other.double(), rtol=1e-5, atol=1e-6)
        with pytest.raises(AssertionError, match="results differ"):
            routing._check((found[0], found[1] + 1), (wanted[0], wanted[1]), "here")


def test_the_command_writes_its_figures() -> None:
    done = CliRunner().invoke(routing.app, ["--quick", "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert len(record["comparisons"]) == 4 and len(record["quantities"]) == 2
    assert all(row["unit"] == "times without" for row in record["quantities"])
