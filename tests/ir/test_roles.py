"""Roles, their barriers and bulk copies in the interpreter: what is refused, and what passes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ir.thread_examples import ROLES
from tilewright.ir.errors import EvaluationError, VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse

X = np.arange(128.0).reshape(16, 8)


def run(text: str, lanes: bool = True, x: np.ndarray = X) -> np.ndarray:
    (got,) = evaluate(parse(text), x, precision="f64", lanes=lanes)
    return np.asarray(got)


@pytest.mark.parametrize("lanes", [False, True])
def test_two_turns_through_one_slot(lanes: bool) -> None:
    np.testing.assert_array_equal(run(ROLES, lanes), X)


def test_boxes_reach_over_the_ends() -> None:
    """A box that begins before a buffer and one that ends behind it: zeros there."""
    moved = ROLES.replace("%s, %c0, %c0, %c0 {dims = [0, 1]}", "%s, %c0, %m, %c0 {dims = [0, 1]}")
    moved = moved.replace("%s, %c0, %c8, %c0 {dims", "%s, %c0, %n, %m {dims").replace(
        "%c8 = math",
        "%m = math.const {value = -3, type = index}\n%n = math.const {value = 12, "
        "type = index}\n%c8 = math",
    )
    got, padded = run(moved), np.pad(X, 8)
    np.testing.assert_array_equal(got[:8], padded[5:13, 8:16])
    np.testing.assert_array_equal(got[8:], padded[20:28, 5:13])


CASES = {
    "full is not awaited": ("  tile.await %full, %c0, %c0\n", "", "reads"),
    "empty is not awaited": ("  tile.await %empty, %c0, %c0\n", "", "1 arrivals at full"),
    "no arrival": (
        "  tile.arrive %empty, %c0\n",
        "",
        r"nobody can go on \(empty\[0\] lacks 1 of 1",
    ),
    "bytes that do not come": ("{bytes = 512}", "{bytes = 528}", "lacks 0 of 1 arrivals, 16 bytes"),
    "no such barrier": ("tile.await %full, %c0, %c1", "tile.await %full, %c1, %c1", "1 barriers"),
    "no such slot": ("%x, %s, %c0, %c8", "%x, %s, %c1, %c8", r"slot outside 0\.\.0"),
    "an arrival outside of roles": ("tile.roles", "tile.arrive %empty, %c0\ntile.roles", "outside"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused(name: str) -> None:
    old, new, words = CASES[name]
    assert old in ROLES
    with pytest.raises(EvaluationError, match=words):
        run(ROLES.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{warps = [1, 1]}", "{warps = [1]}", "an entry for each region"),
        ("{warps = [1, 1]}", "{warps = [1, 0]}", "every role has a warp"),
        ("{warps = [1, 1]}", "{warps = [1, 1], registers = [20, 40]}", "multiples of 8"),
        ("{warps = [1, 1]}", "{warps = [1, 1], idle = [3]}", "idle has an entry"),
        ("arrivals = 1", "arrivals = 0", "are positive"),
        ("{bytes = 512}", "{bytes = 0}", "bytes is positive"),
        ("{dims = [0, 1]}\n  tile.await", "{dims = [1, 0]}\n  tile.await", "unit dimension"),
        ("shared<1 x 8 x 8 x f64>", "shared<1 x 8 x 8 x f32>", "dtypes must agree"),
        ("shared<1 x 8 x 8 x f64>", "shared<1 x 8 x 300 x f64>", "up to 256 each"),
        ("shared<1 x 8 x 8 x f64>", "shared<1 x 8 x 8 x f64, swizzle 2>", "all of their pieces"),
        ("tile.await %full, %c0, %c0", "tile.await %s, %c0, %c0", "needs barriers"),
    ],
)
def test_rules(old: str, new: str, words: str) -> None:
    assert old in ROLES
    with pytest.raises(VerifyError, match=words):
        parse(ROLES.replace(old, new))


def test_errors_of_a_role_end_the_others() -> None:
    """The first error is raised, whoever waits for the role that made it."""
    wrong = ROLES.replace("tile.expect", "%z = tile.read %i, %c8\n  tile.expect", 1).replace(
        "%x: buffer<16 x 8 x f64, unit 1>,",
        "%x: buffer<16 x 8 x f64, unit 1>, %i: buffer<4 x i64, unit 0>,",
    )
    with pytest.raises(EvaluationError, match=r"index 8 outside 0\.\.3"):
        evaluate(parse(wrong), X, np.zeros(4, np.int64), precision="f64", lanes=True)
