"""``tilewright explain FILE``."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import Command
from tilewright.cli import explanation
from tilewright.ir.errors import UnsupportedError

Example = Callable[[str], str]
Refused = Callable[..., str]
Write = Callable[[str, str], str]

V3 = ("--target", "x86-64-v3")


def test_two_rules_make_attention_one_kernel(tilewright: Command, example: Example) -> None:
    done = tilewright("explain", example("attention"), *V3)
    assert done.code == 0, done
    assert "attention: 1 kernel" in done.out
    assert "as written, 2 channels would have to hold a whole row or more" in done.out
    assert "deep channels 2 -> 1" in done.out and "deep channels 1 -> 0" in done.out
    assert "rows on lanes" in done.out and "rows in registers" in done.out


def test_a_causal_mask_is_an_interval(tilewright: Command, example: Example) -> None:
    assert "mask    m <= n" in tilewright("explain", example("causal_attention"), *V3).out
    assert "mask" not in tilewright("explain", example("attention"), *V3).out


def test_another_mask_is_tested_block_by_block(tilewright: Command, write: Write) -> None:
    path = write(
        "documents.tw",
        """graph documents<N, M, T>(%q: tensor<N x 8 x f32>, %k: tensor<M x 8 x f32>,
            %document: tensor<T x i64>) {
          %s = tensor.contract %q, %k {equation = "nd,md->nm"}
          %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
          %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
          %of_query = tensor.gather %document, %n
          %of_key = tensor.gather %document, %m
          %same = math.compare %of_query, %of_key {relation = "eq"}
          %never = math.const {value = -inf, type = tensor<f32>}
          %t = math.select %same, %s, %never
          %top = tensor.reduce %t {kind = "max", axis = 1}
          return %top
        }""",
    )
    assert "mask    %same   (its interval" in tilewright("explain", path, *V3).out


def test_softmax_in_columns_stays_several_kernels(tilewright: Command, write: Write) -> None:
    path = write(
        "softmax.tw",
        """graph softmax<N, M>(%x: tensor<N x M x f32>) {
          %half = math.const {value = 0.5, type = tensor<f32>}
          %y = math.mul %x, %half
          %p = tensor.softmax %y {axis = 1}
          %o = tensor.transpose %p {permutation = [1, 0]}
          return %o
        }""",
    )
    done = tilewright("explain", path, *V3)
    assert done.out.count("\nkernel softmax_") > 1 and "does not apply" in done.out


def test_products_and_normalisations(tilewright: Command) -> None:
    product = """graph f<N, M>(%x: tensor<N x 8 x f32>, %w: tensor<M x 8 x f32>) {
      %y = tensor.contract %x, %w {equation = "nd,md->nm"}
      return %y
    }"""
    done = tilewright("explain", "-", *V3, stdin=product)
    assert "stream  m=M   (shared out in parts, walked in blocks)" in done.out, done
    rows = """graph f<N>(%x: tensor<N x 8 x f32>) {
      %e = math.exp %x
      %sum = tensor.reduce %e {kind = "sum", axis = 1, keep = true}
      %y = math.div %e, %sum
      return %y
    }"""
    done = tilewright("explain", "-", *V3, stdin=rows)
    assert "rows    i=N   (each by itself)" in done.out and "stream  " not in done.out, done


def test_the_same_as_data(tilewright: Command, example: Example) -> None:
    data = json.loads(tilewright("explain", example("causal_attention"), *V3, "--json").out)
    assert data["program"] == "causal_attention" and data["target"] == "x86-64-v3"
    assert len(data["deep_channels"]) == 2 and all(c["deep"] for c in data["deep_channels"])
    assert [r["name"] for r in data["rules"] if r["applied"]] == ["factor", "running"]
    (kernel,) = data["kernels"]
    assert kernel["intervals"] == ["m <= n"] and not kernel["problem"]
    assert not any(c["deep"] for c in kernel["channels"])
    assert kernel["layouts"][-1]["up_to_rows"] == 0


def test_what_is_not_compiled_says_why(
    tilewright: Command, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise UnsupportedError("a reason")

    monkeypatch.setattr(explanation, "kernel_to_tile", refuse)
    done = tilewright("explain", example("attention"), *V3)
    assert done.code == 0 and "  not compiled: a reason\n" in done.out, done
    assert "%v -> math.mul[1]" in done.out and "rows on lanes" not in done.out


def test_mistakes(refused: Refused, example: Example) -> None:
    assert "unknown target 'z80'" in refused("explain", example("attention"), "--target", "z80")
    assert "--input: a file is" in refused("explain", example("attention"), "-i", "3")
    assert "no size Q" in refused("explain", example("attention"), "-s", "Q=3")
