"""The figures of routing, as a command: ``python -m tilewright.bench.routing``.

From scores to sorted choices with adapters' experts, beside the same in separate torch operations;
and what looking up adapters' experts costs inside a layer of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import typer

import tilewright
from tilewright.bench.command import add_command, begin
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Effort, interleaved
from tilewright.experts import ExpertsForm, Product, Rerouting, experts_forward

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PEER = "separate torch operations"
GOALS = ((1, Goal(2, 4)), (16, Goal()), (256, Goal(3, 8)), (4096, Goal(8, 20)))
INSIDE = Goal(1.01, 1.0)
Tensors = tuple[torch.Tensor, ...]
Side = Callable[..., Tensors]


@dataclass(frozen=True)
class Routing:
    """A router of E experts and its adapters, each with ``own`` experts of its own."""

    experts: int = 64
    hidden: int = 1024
    inter: int = 768
    top: int = 6
    adapters: int = 20
    own: int = 8

    @property
    def slots(self) -> int:
        """Experts of the base and of all adapters."""
        return self.experts + self.adapters * self.own

    @property
    def name(self) -> str:
        return f"E{self.experts} top-{self.top}, {self.adapters} adapters"

    def program(self, product: bool) -> tilewright.Program:
        """From scores, or with ``product`` from hidden states, to places: softmax, choice,
        renormalised weights, adapters' experts, counts, offsets, permutation."""
        e, h = self.experts, self.hidden
        given = f"%x: tensor<T x {h} x f32>, %gate: tensor<{e} x {h} x f32>"
        first = '%logits = tensor.contract %x, %gate {equation = "th,eh->te"}'
        if not product:
            given, first = f"%logits: tensor<T x {e} x f32>", ""
        text = f"""
            graph routing<T, A>({given}, %adapter: tensor<T x i32>, %map: tensor<A x {e} x i32>) {{
              {first}
              %p = tensor.softmax %logits {{axis = 1}}
              %best, %chosen = tensor.top_k %p {{k = {self.top}, ties = "torch"}}
              %total = tensor.reduce %best {{axis = 1, kind = "sum", keep = true}}
              %weights = math.div %best, %total
              %own = tensor.reshape %adapter {{shape = [size(T), 1]}}
              %mapped = tensor.gather %map, %own, %chosen
              %none = math.const {{value = 0, type = tensor<i32>}}
              %base = math.compare %own, %none {{relation = "lt"}}
              %experts = math.select %base, %chosen, %mapped
              %counts = tensor.segment_count %experts {{segments = size({self.slots})}}
              %offsets = tensor.prefix_sum %counts {{axis = 0, exclusive = true}}
              %places = tensor.segment_rank %experts, %offsets
              return %weights, %experts, %counts, %places
            }}"""
        return tilewright.Program(tilewright.parse(text))

    def torch_side(self, product: bool) -> Side:
        """The same in torch; its look-up takes i64."""

        def route(x: torch.Tensor, *rest: torch.Tensor) -> Tensors:
            *gate, adapter, table = rest
            logits = torch.nn.functional.linear(x, gate[0]) if product else x
            best, chosen = torch.topk(torch.softmax(logits, -1), self.top)
            weights = best / best.sum(-1, keepdim=True)
            own = adapter[:, None]
            experts = torch.where(own < 0, chosen, table[own, chosen])
            flat = experts.view(-1)
            counts = torch.bincount(flat, minlength=self.slots)
            order = torch.argsort(flat, stable=True)
            places = torch.empty_like(order)
            places[order] = torch.arange(len(order))
            return weights, experts, counts, places.view(experts.shape)

        return route

    def inputs(self, tokens: int, product: bool) -> Tensors:
        random = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, self.hidden if product else self.experts, generator=random)
        gate = torch.randn(self.experts, self.hidden, generator=random) / self.hidden**0.5
        adapter = torch.randint(-1, self.adapters, (tokens,), generator=random)
        table = torch.arange(self.experts).repeat(self.adapters, 1)
        for row in range(self.adapters):
            own = torch.randperm(self.experts, generator=random)[: self.own]
            table[row, own] = self.experts + row * self.own + torch.arange(self.own)
        return (x, *((gate,) if product else ()), adapter, table)


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
            typer.secho(name, err=True, dim=True)
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
        typer.secho(name, err=True, dim=True)
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
