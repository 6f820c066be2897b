"""A bug planted in any pass, rule or back end is named, and no other."""

from __future__ import annotations

from functools import partial

import pytest

from tests.runtime.verification.test_campaign import replacing, wrong_pass, wrong_rule
from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Op
from tilewright.ir.parser import parse
from tilewright.ir.target import Target
from tilewright.passes.to_tile import lower
from tilewright.runtime import backends
from tilewright.runtime.family import Call as Call_
from tilewright.runtime.family import Variant
from tilewright.runtime.report import VariantReport
from tilewright.runtime.verification.bisect import Bisection, bisect
from tilewright.runtime.verification.case import Call

MODULE = parse(
    "graph attention<N, M>("
    "%q: tensor<N x 8 x f32>, %k: tensor<M x 8 x f32>, %v: tensor<M x 4 x f32>) {"
    '%s = tensor.contract %q, %k {equation = "nd,md->nm"} %p = tensor.softmax %s {axis = 1}'
    '%o = tensor.contract %p, %v {equation = "nm,me->ne"} return %o }'
)
CALL = Call({"N": 3, "M": 5}, seed=1)
INTERPRETER = ("interpreter",)


def names(found: Bisection) -> list[str]:
    return [stage.name for stage in found.stages]


def test_all_stages_of_a_right_program_are_within() -> None:
    found = bisect(MODULE, CALL, backends=INTERPRETER)
    assert found.culprit is None and found.difference() == ""
    expected = ["as written", "decompose", "extremes", "join_halves", "raise_counts", "precision"]
    assert names(found)[:8] == [*expected, "canonicalise", "to_stream"]
    assert {"reorder: running", "reorder", "partition"} < set(names(found))
    assert names(found)[-1].startswith("to_tile for ")
    unchanged = {stage.name for stage in found.stages if not stage.changed}
    assert "join_halves" in unchanged and "decompose" not in unchanged


BUGS: dict[str, tuple[type[Op], type[Op]]] = {
    "decompose": (m.Exp, m.Exp2),
    "precision": (m.Exp, m.Tanh),
    "canonicalise": (m.Div, m.Mul),
    "to_stream": (m.Exp, m.Exp2),
    "partition": (m.Div, m.Mul),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_wrong_pass_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_pass(monkeypatch, name, replacing(*BUGS[name]))
    found = bisect(MODULE, CALL, backends=INTERPRETER)
    assert found.culprit is not None and found.culprit.name == name
    old, new = BUGS[name]
    assert f"= {new.name} " in found.difference()
    if name not in ("decompose", "to_stream"):  # whose own work is in the difference, too
        assert any(
            line.startswith("-") and old.name in line for line in found.difference().split("\n")
        )


def test_a_wrong_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_rule(monkeypatch, replacing(m.Div, m.Mul))
    found = bisect(MODULE, CALL, backends=INTERPRETER)
    assert found.culprit is not None and found.culprit.name == "reorder: planted"


def test_wrong_lowering_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    true = lower.expand_math_graph
    change = replacing(m.Sub, m.Add)
    monkeypatch.setattr(lower, "expand_math_graph", lambda graph: change(true(graph)))
    found = bisect(MODULE, CALL, backends=INTERPRETER)
    assert found.culprit is not None and found.culprit.name.startswith("to_tile for ")


def test_a_wrong_back_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's maker is replaced by one that has the interpreter run a wrong tile program."""
    change = replacing(m.Div, m.Mul)

    def make(variant: Variant, target: Target) -> tuple[Call_, VariantReport]:
        program = change(backends.lower_variant(variant, target))
        types = [v.type for v in variant.graph.results]
        report = backends.make_interpreter(variant, target)[1]
        return partial(backends.interpreted, program, types), report

    monkeypatch.setitem(backends.MAKERS, "numba", make)
    found = bisect(MODULE, CALL, backends=("numba",))
    assert found.culprit is not None and found.culprit.name == "numba for scalar"
    assert names(found)[-2:] == ["to_tile for scalar", "numba for scalar"]
    assert found.difference() == ""


def test_a_pass_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph) -> Graph:
        raise ValueError("no")

    wrong_pass(monkeypatch, "raise_counts", broken)
    found = bisect(MODULE, CALL, backends=INTERPRETER)
    assert found.culprit is not None and found.culprit.name == "raise_counts"
    assert found.culprit.problem == "ValueError: no" and names(found)[-1] == "raise_counts"


def test_several_kernels_are_run_one_after_the_other() -> None:
    module = parse(
        "graph softmax<N, M>(%x: tensor<N x M x f32>) {"
        "%o = tensor.softmax %x {axis = 1} return %o }"
    )
    found = bisect(module, CALL, backends=INTERPRETER)
    assert found.culprit is None, found.culprit
