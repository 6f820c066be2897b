"""PyTorch's own products with quantised weights: 4 bits in groups, activations in bf16."""

from __future__ import annotations

from functools import partial

from tilewright.bench.lowbit_peers import torch_int4
from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits != 4:
        raise NotOffered(f"has no product with {case.bits}-bit weights in groups")
    if case.outputs % 16:
        raise NotOffered("needs a multiple of 16 outputs")

    def make(tiles: int) -> Call:
        product = torch_int4(inputs.codes, inputs.scales, tiles)
        return partial(product, inputs.x.bfloat16())

    if case.device == "cpu":
        return [Form("int4pack, bf16", partial(make, 0))]
    return [Form(f"int4pack, {tiles} tiles", partial(make, tiles)) for tiles in (2, 4, 8)]


OFFERS = {"torch-int": {"lowbit": lowbit}}
