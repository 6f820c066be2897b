"""Bugs planted in the compiler are found within few cases, made small, and found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.runtime.verification.here import INTERPRETED, Here, run
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import VerifyError
from tilewright.ir.parser import parse
from tilewright.passes import pipeline, reorder
from tilewright.passes.reorder.rule import Rule
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph
from tilewright.runtime.verification.campaign import Campaign, Failure, Plan
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.certificate import SCHEMA, certificate
from tilewright.runtime.verification.check import Outcome, check_case
from tilewright.runtime.verification.ledger import Entry, read_ledger


def replacing(old: type[Op], new: type[Op]) -> Callable[[Graph], Graph]:
    """A rewrite that takes one operation for another."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        return b(new, *op.operands, hint=op.result.hint) if type(op) is old else None

    return lambda graph: rewrite_graph(graph, rule)


def wrong_pass(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Graph], Graph]
) -> None:
    """A pass of the pipeline that makes ``change`` after its own work."""

    def after(step: pipeline.Pass) -> pipeline.Pass:
        return replace(step, run=lambda module: for_each_graph(step.run(module), change))

    steps = tuple(after(s) if s.name == name else s for s in pipeline.TO_KERNELS)
    monkeypatch.setattr(pipeline, "TO_KERNELS", steps)


def wrong_rule(monkeypatch: pytest.MonkeyPatch, change: Callable[[Graph], Graph]) -> None:
    """One more rule of ``reorder``."""
    monkeypatch.setattr(reorder, "RULES", (*reorder.RULES, Rule("planted", change)))


def smallest_of(found: Any) -> Failure:
    assert len(found.failures) >= 1, found
    return found.failures[0]  # type: ignore[no-any-return]


BUGS: dict[str, tuple[str, type[Op], type[Op], int, int]] = {
    # where, what is taken for what, how many operations the smallest program may have, and a seed
    # that finds it soon: the tests' time is short
    "decompose: a maximum for a sum": ("decompose", m.Max, m.Add, 1, 2),
    "canonicalise: a difference for a sum": ("canonicalise", m.Sub, m.Add, 1, 7),
    "precision: tanh for exp": ("precision", m.Exp, m.Tanh, 1, 1),
    "to_stream: a product for a quotient": ("to_stream", m.Div, m.Mul, 1, 9),
    "partition: less for more": ("partition", m.Max, m.Min, 2, 2),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_wrong_pass_is_found_and_made_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, old, new, most, seed = BUGS[name]
    wrong_pass(monkeypatch, where, replacing(old, new))
    tally = run("graphs", 60, seed)
    failure = smallest_of(tally)
    assert failure.outcome.status == "wrong" and len(failure.case.calls) == 1
    ops = parse(failure.case.text).main.body.ops
    assert len(ops) <= most and set(failure.case.calls[0].sizes.values()) <= {1, 2}, failure.case
    assert any(type(op) in (old, t.Softmax, m.Sigmoid) for op in ops)
    again = check_case(failure.case)
    assert again.comparison == failure.outcome.comparison


def test_a_pass_that_raises_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph) -> Graph:
        assert not any(isinstance(op, m.Neg) for op in graph.body.ops), "no negatives today"
        return graph

    wrong_pass(monkeypatch, "canonicalise", broken)
    failure = smallest_of(run("graphs", 60, seed=3))
    assert failure.outcome.status == "error"
    assert "AssertionError: no negatives today" in failure.outcome.message
    assert len(parse(failure.case.text).main.body.ops) == 1


def test_counts_add_up_and_a_seed_draws_the_same_again() -> None:
    first, second = run("rows", 3, seed=5), run("rows", 3, seed=5)
    assert first.cases == second.cases == 3 and not first.failures
    assert first.calls == second.calls >= 3 and first.elements == second.elements > 0
    assert first.worst == second.worst and 0 < max(first.worst.values()) <= 1
    assert sum(c.total() for c in first.by_place.values()) == 3
    assert run("rows", 3, seed=6).elements != first.elements


def test_a_budget_of_time_ends_it() -> None:
    plan = Plan((INTERPRETED,), ("rows",), 0, seconds=0.0)
    assert Campaign(plan, Here()).run().cases == 0  # type: ignore[arg-type]


def test_a_known_failure_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_pass(monkeypatch, "canonicalise", replacing(m.Exp, m.Tanh))
    words, where = ("graph program",), ("interpreter",)
    entry = Entry("planted", "by this test", where, "wrong", words, "", any_case())
    plan = Plan((INTERPRETED,), ("graphs",), 1, cases=20)
    tally = Campaign(plan, Here(), [entry]).run()  # type: ignore[arg-type]
    assert not tally.failures and tally.explained["planted"] > 0
    assert sum(c["explained"] for c in tally.by_place.values()) == tally.explained["planted"]


def test_a_mistake_in_drawing_ends_a_batch_and_not_the_campaign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Campaign._strategy

    def strategy(self: Campaign) -> SearchStrategy[Case]:
        if not self.tally.undrawn:
            return st.builds(refused)
        return plain(self)

    def refused() -> Case:
        raise VerifyError("planted")

    monkeypatch.setattr(Campaign, "_strategy", strategy)
    plan = Plan((INTERPRETED,), ("rows",), 1, cases=3)
    tally = Campaign(plan, Here()).run()  # type: ignore[arg-type]
    assert tally.undrawn == {"planted": 1} and tally.cases == 3
    data = certificate(plan, tally, "0", {})
    jsonschema.validate(data, SCHEMA)
    assert data["undrawn"] == {"planted": 1}


def any_case() -> Case:
    return Case("graphs", "graph f() { return }", "interpreter", None, ())


@pytest.mark.parametrize("entry", read_ledger(), ids=lambda entry: entry.name)
def test_the_ledger_still_fails(entry: Entry) -> None:
    """An entry whose program is right by now has to leave ``known.json``."""
    outcome = check_case(entry.case)
    assert outcome.failed and entry.matches(entry.case, outcome), outcome


def test_cases_travel_as_json() -> None:
    tally_cases: list[Case] = []

    class Remember(Here):
        def check(self, case: Case) -> Outcome:
            tally_cases.append(case)
            return Outcome("ok")

    plan = Plan((INTERPRETED,), ("attention", "lowbit", "routing"), 1, cases=30)
    Campaign(plan, Remember()).run()  # type: ignore[arg-type]
    assert len(tally_cases) == 30
    for case in tally_cases:
        assert Case.from_json(case.to_json()) == case
        assert str(parse(case.text)) == case.text
