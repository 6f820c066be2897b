"""The figures of routing, as a command: ``python -m tilewright.bench.routing``.

From scores to sorted choices with adapters' experts, beside the same in separate torch operations;
and what looking up adapters' experts costs inside a layer of experts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import typer

from tilewright.bench.command import add_command, begin, note
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.routing_cases import Routing, Tensors
from tilewright.bench.timing import Effort, interleaved
from tilewright.experts import ExpertsForm, Product, Rerouting, experts_forward

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PEER = "separate torch operations"
GOALS = ((1, Goal(2, 4)), (16, Goal()), (256, Goal(3, 8)), (4096, Goal(8, 20)))
INSIDE = Goal(1.01, 1.0)


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    routing = Routing(8, 32, 16, 2, 3, 2) if quick else Routing()
    with torch.inference_mode():
        rows = tuple(_rows(routing, effort, only, quick))
        inside = tuple(_inside(routing, effort, only, quick))
    record = Record("routing", date, here, rows, inside, {"routing": vars(routing)})
    return record.without_goals() if quick else record


def _rows(routing: Routing, effort: Effort, only: str, quick: bool) -> Iterator[Comparison]:
    for product in (False, True):
        program, theirs = routing.program(product), routing.torch_side(product)
        for tokens, goal in GOALS[: 2 if quick else None]:
            kind = f"with the gate's product of {routing.hidden}" if product else "from scores"
            name = f"routing, {routing.name}, {kind}, {tokens} tokens"
            if only not in name:
                continue
            note(name)
            given = routing.inputs(tokens, product)
            ours = (*given[:-2], given[-2].int(), given[-1].int())
            _check(program(*ours), theirs(*given), name)
            times = interleaved(lambda: program(*ours), lambda: theirs(*given), effort)  # noqa: B023
            yield Comparison(name, PEER, *times, Goal() if product else goal)


def _check(ours: Tensors, theirs: Tensors, name: str) -> None:
    """Places, counts and experts are equal, weights close; choices may differ where scores that
    were computed in another order are nearly equal."""
    same = (ours[1] == theirs[1]).all(1)
    if float(same.float().mean()) < 0.99 or not torch.allclose(ours[0][same], theirs[0][same]):
        raise AssertionError(f"{name}: the results differ")


def _inside(routing: Routing, effort: Effort, only: str, quick: bool) -> Iterator[Quantity]:
    """A layer of experts with adapters whose maps lead to the same experts, over one without."""
    r, random = routing, torch.Generator().manual_seed(0)
    first = torch.randn(r.experts, 2 * r.inter, r.hidden, generator=random).mul_(0.03)
    down = torch.randn(r.experts, r.hidden, r.inter, generator=random).mul_(0.03)
    form = ExpertsForm((Product(first),), Product(down))
    table = torch.arange(r.experts, dtype=torch.int32).repeat(r.adapters, 1)
    for tokens, _ in GOALS[: 2 if quick else None]:
        name = f"rerouting inside a layer, {r.name}, {tokens} tokens"
        if only not in name:
            continue
        note(name)
        x = torch.randn(tokens, r.hidden, generator=random)
        ids = torch.rand(tokens, r.experts, generator=random).topk(r.top).indices
        weights = torch.rand(tokens, r.top, generator=random)
        adapter = torch.randint(-1, r.adapters, (tokens,), generator=random).int()
        given, rerouting = (form, x, ids, weights), Rerouting(adapter, table)
        with_, without = interleaved(
            lambda: experts_forward(*given, rerouting),  # noqa: B023
            lambda: experts_forward(*given),  # noqa: B023
            effort,
        )
        times = {"with": with_.median, "without": without.median}
        yield Quantity(name, with_.median / without.median, "times without", INSIDE, times)


add_command(
    app,
    run,
    "Measures routing with adapters against separate torch operations, and inside a layer.",
    6.0,
)

if __name__ == "__main__":
    app()
