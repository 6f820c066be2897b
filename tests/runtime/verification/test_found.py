"""What ``tilewright verify`` found in the compiler, as it made it small. Each failed once."""

from __future__ import annotations

import pytest
from hypothesis import find

from tests.runtime.verification.here import INTERPRETED
from tilewright.ir.parser import parse
from tilewright.runtime.verification.case import Call, Case
from tilewright.runtime.verification.check import check_case
from tilewright.runtime.verification.grammar.cases import cases_of
from tilewright.runtime.verification.values import InputSpec

FOUND: dict[str, tuple[str, str, Call]] = {
    "a size that only an unread input has": (
        "interpreter",
        "graph f<N>(%x: tensor<N x f32>) { %i = tensor.iota {axis = 0, type = tensor<N x i64>} "
        "%y = math.cast %i {dtype = f32} %p = tensor.softmax %y {axis = 0} return %p }",
        Call({"N": 3}),
    ),
    "an empty axis in the first of two kernels": (
        "interpreter",
        "graph f<N, M>(%x: tensor<N x M x f32>, %v: tensor<M x 3 x f32>) { "
        "%p = tensor.softmax %x {axis = 1} "
        '%o = tensor.contract %p, %v {equation = "nm,me->ne"} return %o, %p }',
        Call({"N": 3, "M": 0}),
    ),
    "bool results with a tail": (
        "mlir",
        "graph f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>) { "
        '%z = math.compare %x, %y {relation = "le"} return %z }',
        Call({"N": 3, "M": 37}, 1, {"x": InputSpec("whole"), "y": InputSpec("whole")}),
    ),
    "bytes compared, and of 128 and more": (
        "mlir",
        "graph f<M>(%x: tensor<M x u8>, %y: tensor<M x u8>) { "
        '%c = math.compare %x, %y {relation = "lt"} %m = math.max %x, %y '
        "%z = math.select %c, %m, %x return %z }",
        Call({"M": 37}, 1, {"x": InputSpec("below:256"), "y": InputSpec("between:100:200")}),
    ),
    "bf16 compared": (
        "mlir",
        "graph f<M>(%x: tensor<M x bf16>, %y: tensor<M x bf16>) { "
        '%c = math.compare %x, %y {relation = "ne"} %z = math.select %c, %x, %y return %z }',
        Call({"M": 37}, 1, {"x": InputSpec("whole"), "y": InputSpec("whole")}),
    ),
    "bf16 reduced": (
        "mlir",
        "graph f<N, M>(%x: tensor<N x M x bf16>) { "
        '%a = tensor.reduce %x {kind = "sum", axis = 0} '
        '%b = tensor.reduce %x {kind = "max", axis = 0} return %a, %b }',
        Call({"N": 9, "M": 37}, 1),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_it_is_right_now(name: str) -> None:
    backend, text, call = FOUND[name]
    outcome = check_case(Case("found", text, backend, None, (call,)))
    assert outcome.status == "ok", outcome


def test_given_programs_get_bytes_with_their_highest_bit() -> None:
    module = parse("graph f<N>(%x: tensor<N x u8>) { %y = math.neg %x return %y }")
    find(cases_of(module, [INTERPRETED]), lambda case: "below:256" in str(case))
