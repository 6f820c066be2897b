"""Large, malformed and deeply nested texts: an error within seconds, never a hang or a crash."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import Program, tensor_programs
from tilewright.ir.core import Module
from tilewright.ir.errors import TilewrightError
from tilewright.ir.parser import parse

LIMIT = 20.0  # seconds; three for the slowest on an idle machine
MEGABYTE = 1_000_000


class StillRunning(BaseException):
    """Raised by the alarm; no Exception, so that nothing on the way catches it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fails instead of hanging."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise StillRunning

    before = signal.signal(signal.SIGALRM, stop)
    # again and again: an exception inside a callback of the collector is dropped
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(text: str, limit: float = LIMIT) -> Module | TilewrightError:
    """The module or the error; fails for any other exception and for taking long."""
    try:
        with at_most(limit):
            return parse(text)
    except TilewrightError as error:
        return error
    except StillRunning:
        pass
    except RecursionError:
        pytest.fail("RecursionError")
    pytest.fail(f"still running after {limit} seconds")


def refused(text: str, limit: float = LIMIT) -> TilewrightError:
    """The error; fails if the text is accepted."""
    error = outcome(text, limit)
    assert isinstance(error, TilewrightError), "accepted"
    assert len(str(error)) < 2000
    return error


def body(text: str) -> str:
    return f"graph f<N, M>(%x: tensor<N x M x f32>) {{\n  {text}\n  return %y\n}}"


MALFORMED: dict[str, Callable[[], str]] = {
    "open parentheses": lambda: "(" * MEGABYTE,
    "open brackets": lambda: body("%y = tensor.softmax %x {axis = " + "[" * MEGABYTE),
    "open regions": lambda: "tile f(%i: index) { " + "tile.if %i, %i () { " * (MEGABYTE // 20),
    "nothing but zeros": lambda: "\0" * MEGABYTE,
    "nothing but spaces": lambda: " " * MEGABYTE,
    "nothing but newlines": lambda: "\n" * MEGABYTE,
    "one long comment": lambda: "//" * (MEGABYTE // 2),
    "one long name": lambda: body("%" + "a" * MEGABYTE),
    "one long number": lambda: f"graph f(%x: tensor<{'9' * MEGABYTE} x f32>) {{ return }}",
    "one long string": lambda: body(
        '%y = tensor.reduce %x {kind = "' + "a" * MEGABYTE + '", axis = 0}'
    ),
    "string without end": lambda: body('%y = tensor.reduce %x {kind = "' + '\\"' * (MEGABYTE // 2)),
    "many values, last one unknown": lambda: body(
        "\n".join(f"%v{i} = math.exp %x" for i in range(20_000)) + "\n%y = math.exp %z"
    ),
    "many sizes, then a typo": lambda: (
        f"graph f<{', '.join(f'N{i}' for i in range(150_000))}>(%x tensor)"
    ),
    "a chain of attributes": lambda: body("%y = math.exp %x {" + "a = 1, " * 40_000 + "}"),
    "long product": lambda: (
        f"graph f(%x: tensor<({'*'.join(['N'] * 200_000)}) x f32>) {{ return }}"
    ),
    "long layout": lambda: (
        f"tile f(%x: reg<2 x f32, {'.'.join(['local(2)'] * 30_000)}>) {{ return }}"
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_megabyte_of_nonsense_is_an_error(name: str) -> None:
    refused(MALFORMED[name]())


def test_deep_regions_that_close() -> None:
    depth = 25_000
    text = "tile f(%i: index) { " + "tile.if %i, %i () { " * depth + "yield }" * depth + " return }"
    assert "nested more than" in str(refused(text))


HANGS: dict[str, Callable[[], str]] = {
    "sum of 100,000 names": lambda: (
        f"graph f(%x: tensor<({'+'.join(f'a{i}' for i in range(100_000))}) x q9>) {{ return }}"
    ),
    "sum of 400,000 times one name": lambda: (
        f"graph f(%x: tensor<({'+'.join(['a'] * 400_000)}) x q9>) {{ return }}"
    ),
    "product of 30 sums": lambda: (
        f"graph f(%x: tensor<{' x '.join(f'(a{i} + b{i})' for i in range(30))} x f32>) "
        "{ %y = tensor.reshape %x {shape = [1]} return %y }"
    ),
    "product of 60,000 numbers": lambda: (
        f"graph f(%x: tensor<{' x '.join(['999999999999999999'] * 60_000)} x f32>) "
        "{ %y = tensor.reshape %x {shape = [1]} return %y }"
    ),
    "two layouts of 10^12 registers": lambda: (
        "tile f(%a: reg<1000000 x 1000000 x f32, local(1000000, 1000000)>, "
        "%b: reg<1000000 x 1000000 x f32, local(1000, 1000000).local(1000, 1)>) "
        "{ %c = math.add %a, %b return %z }"
    ),
}


@pytest.mark.parametrize("name", HANGS)
def test_large_sizes_do_not_hang(name: str) -> None:
    refused(HANGS[name](), limit=1.5)


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("op", ["tensor.softmax %x {axis =", "math.const {type = index, value ="])
def test_nested_lists_are_refused_or_print(op: str, depth: int) -> None:
    found = outcome(body(f"%y = {op} {'[' * depth}{']' * depth}}}"))
    try:
        str(found)
    except RecursionError:
        pytest.fail("RecursionError while printing")


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid text with a few characters or lines removed, doubled, swapped or replaced."""
    program: Program = draw(tensor_programs(most=4))
    text = str(program.module)
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    for _ in range(draw(st.integers(1, 4))):
        at = rng.randrange(len(text))
        length = rng.choice([1, 1, 2, 10])
        piece = rng.choice(
            ["", text[at : at + 20], rng.choice('{}()<>[]%,:;="x*+-0123456789.\n\\é'), "\0"]
        )
        text = text[:at] + piece + text[at + length :]
    return text


@given(damaged())
@settings(max_examples=150)
def test_damaged_programs_parse_or_are_refused(text: str) -> None:
    assert str(outcome(text))


@pytest.mark.parametrize(
    "text",
    [
        "{axis = 1.5}",
        "{axis = f32}",
        "{axis = size(N)}",
        '{axis = "1"}',
        "{axis = [0]}",
        "{axis = tensor<4 x f32>}",
        "{axis = local(2, 3)}",
        "{axis = axis(m, M)}",
        "{axis = -inf}",
        "{axis = 0, axis = 0, keep = 3, kind = sum}",
        "{axis = 1000000000000000000}",
    ],
)
@pytest.mark.parametrize(
    "op", ["tensor.softmax", "tensor.reduce", "tensor.transpose", "tensor.reshape"]
)
def test_attributes_of_a_wrong_kind_are_refused(op: str, text: str) -> None:
    names = {"tensor.softmax": "axis", "tensor.reduce": "axis"}
    key = names.get(op, "permutation" if op == "tensor.transpose" else "shape")
    refused(body(f"%y = {op} %x {text.replace('axis =', key + ' =')}"))


def test_many_small_graphs_take_linear_work() -> None:
    def calls(count: int) -> int:
        """Function calls while ``count`` graphs are parsed: unlike seconds, the same every time."""
        made = 0

        def count_call(frame: FrameType, event: str, argument: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        text = "graph f(%x: tensor<4 x f32>) { return %x }\n" * count
        sys.setprofile(count_call)
        try:
            parse(text)
        finally:
            sys.setprofile(None)
        return made

    calls(1)  # what is loaded or kept once
    assert calls(400) < 11 * calls(40)
