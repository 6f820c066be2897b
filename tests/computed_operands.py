"""Attention of queries, keys and values that are computed first, by functions that are no number
at 0: what lies past an end, where loads give zeros, must not reach a sum."""

from __future__ import annotations

import torch

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse

OPERATIONS = {
    "q": "%q = math.log %a",
    "k": "%k = math.div %one, %b",
    "v": "%w = math.log2 %c",
}


def text(made: str, head: int, value_head: int) -> str:
    """Attention over %a, %b and %c; the letters in ``made`` are computed."""
    q, k, w = ("%q" if "q" in made else "%a", "%k" if "k" in made else "%b", "%w")
    lines = "\n  ".join(OPERATIONS[letter] for letter in made)
    return f"""graph g<N, M>(%a: tensor<N x {head} x f32>, %b: tensor<M x {head} x f32>,
    %c: tensor<M x {value_head} x f32>) {{
  %one = math.const {{value = 1.0, type = tensor<f32>}}
  {lines}
  %s = tensor.contract {q}, {k} {{equation = "nd,md->nm"}}
  %p = tensor.softmax %s {{axis = 1}}
  %y = tensor.contract %p, {w if "v" in made else "%c"} {{equation = "nm,me->ne"}}
  return %y
}}"""


def inputs(rows: int, keys: int, head: int, value_head: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(rows + keys)
    shapes = (rows, head), (keys, head), (keys, value_head)
    return tuple(torch.rand(shape, generator=random) + 0.5 for shape in shapes)


def expected(program: str, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (out,) = evaluate(parse(program), *(x.numpy() for x in given), precision="f64")
    return torch.from_numpy(out)
