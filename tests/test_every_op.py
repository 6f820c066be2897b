"""Every operation of the registry: in the table of examples, and true to its declaration there."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright.ir.parser  # noqa: F401  (fills the registry)
from tests.ir import examples
from tests.ir.cache_examples import CACHE_EXAMPLES
from tests.ir.examples import Example
from tests.ir.line_examples import LINE_EXAMPLES
from tests.ir.lowbit_examples import LOWBIT_EXAMPLES
from tests.ir.routing_examples import ROUTING_EXAMPLES
from tests.ir.thread_examples import THREAD_EXAMPLES
from tilewright.ir.core import REGISTRY, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_roles import ROLE_OPS
from tilewright.ir.parser import parse
from tilewright.ir.types import (
    INDEX,
    Axis,
    BufferType,
    RegisterType,
    ScratchType,
    Size,
    StreamType,
    TensorType,
    Type,
)

EXAMPLES = [
    *examples.EXAMPLES,
    *LOWBIT_EXAMPLES,
    *CACHE_EXAMPLES,
    *ROUTING_EXAMPLES,
    *THREAD_EXAMPLES,
    *LINE_EXAMPLES,
]


def test_no_operation_is_missing_from_the_table() -> None:
    assert sorted(e.op for e in EXAMPLES) == sorted(REGISTRY)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_text_parses_back(example: Example) -> None:
    module = example.module
    assert parse(str(module)) == module


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_declaration(example: Example) -> None:
    """Each op has a sentence about itself, and only ops that do something are not pure."""
    cls = REGISTRY[example.op]
    assert cls.__doc__ and cls.name == example.op
    effects = {"tile.load", "tile.store", "tile.gather", "tile.read", "tile.prefetch", "tile.alloc"}
    effects |= {"tile.scatter", "tile.load_rows", "tile.last_of"}
    effects |= {"tile.load_lines", "tile.copy_lines", "tile.store_lines"}
    if not {"pure"} & cls.traits:
        blocks = {"tile.copy_async", "tile.commit", "tile.wait", "tile.barrier", "tile.fence"}
        effects |= {"tile.group_product", "tile.group_begin", "tile.group_wait"}
        effects |= {cls.name for cls in ROLE_OPS}
        assert example.op in effects | blocks | {"tile.for", "tile.if", "tile.while"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.want is not None], ids=str)
def test_meaning(example: Example) -> None:
    (got,) = evaluate(example.module, *example.inputs, precision="f64")
    assert got.shape == example.want.shape
    np.testing.assert_allclose(got, example.want, rtol=1e-13, atol=1e-13)


# ---- rules


N, M = Size.of("N"), Size.of("M")
KINDS: dict[str, Type] = {
    "tensor": TensorType((N, M), F32),
    "stream": StreamType((Axis("n", N),), (Axis("q", Size.of(5)),), F32),
    "buffer": BufferType((N, M), F32, 1),
    "scratch": ScratchType((4, 8), F32),
    "register": RegisterType(F32, Layout(2).local(5, 1).spatial(1, 7)),
    "index": INDEX,
}


def _alike(a: Type, b: Type) -> bool:
    """Of one level; a buffer and scratch are both memory."""
    memory = isinstance(a, BufferType | ScratchType) and isinstance(b, BufferType | ScratchType)
    return memory or type(a) is type(b)


def _with(op: Op, operands: list[Value]) -> Op:
    return type(op)(*operands, regions=op.regions, **op.attrs)


def _takes(op: Op, kind: str) -> bool:
    """Pointwise functions of one number take any level if the number is of their dtypes."""
    memory = kind in ("buffer", "scratch")
    dtype = "int" if kind == "index" else "float"
    fits = dtype in getattr(op, "kinds", (dtype,))
    return "pointwise" in op.traits and len(op.operands) == 1 and fits and not memory


WRONG_KIND = [
    pytest.param(example, at, kind, id=f"{example.op}-{at}-{kind}")
    for example in EXAMPLES
    for at, operand in enumerate(example.operation().operands)
    for kind, type_ in KINDS.items()
    if not _alike(type_, operand.type)
]


@pytest.mark.parametrize(("example", "at", "kind"), WRONG_KIND)
def test_an_operand_of_another_level_is_refused(example: Example, at: int, kind: str) -> None:
    op = example.operation()
    operands = list(op.operands)
    operands[at] = Value(KINDS[kind], "wrong")
    if _takes(op, kind):
        assert _with(op, operands).results
        return
    with pytest.raises(VerifyError) as caught:
        _with(op, operands)
    message = caught.value.message
    assert message.startswith(f"{example.op}(") and str(KINDS[kind]) in message
    assert message.split("): ", 1)[1].strip(), "no rule"


WITH_OPERANDS = [e for e in EXAMPLES if e.operation().operands]


@pytest.mark.parametrize("example", WITH_OPERANDS, ids=str)
def test_a_missing_operand_is_refused(example: Example) -> None:
    op = example.operation()
    with pytest.raises(VerifyError, match=f"^{op.name}\\("):
        type(op)(regions=op.regions, **op.attrs)
    if op.rest_name is None:
        with pytest.raises(
            VerifyError, match=f"^{op.name}.*takes {len(op.operand_names)} operands"
        ):
            type(op)(*op.operands, op.operands[0], regions=op.regions, **op.attrs)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_attributes_are_checked_by_name(example: Example) -> None:
    op = example.operation()
    with pytest.raises(VerifyError, match=f"^{op.name}.*has no attribute 'colour'"):
        type(op)(*op.operands, regions=op.regions, **op.attrs, colour=3)
    for name, spec in op.attribute_specs.items():
        if spec.required:
            left = {k: v for k, v in op.attrs.items() if k != name}
            with pytest.raises(VerifyError, match=f"^{op.name}.*needs the attribute '{name}'"):
                type(op)(*op.operands, regions=op.regions, **left)
