"""Functions of single numbers that torch computes, so that their bits depend on the number alone.

torch gives an element to its vector loop or to the scalar one behind it, which have different
implementations of ``cos`` or ``gelu``, by how many elements there are and how many threads share
them out. Here all elements take the vector loop: blocks of whole vectors, one after another, each
no larger than what torch gives one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from tilewright.frontend.op_map.kept import operation_name
from tilewright.frontend.translate import fake_of, operand_nodes
from tilewright.ir.errors import DeterminismError

BLOCK = 2048  # elements: at::parallel_for's grain for functions, a multiple of every vector
_NAMES = """
    cos sin tan cosh sinh tanh acos asin atan exp exp2 expm1 log log2 log10 log1p erf erfc sigmoid
    rsqrt reciprocal gelu silu mish elu selu celu softplus softsign logsigmoid hardswish hardsigmoid
    leaky_relu pow
"""
_FUNCTIONS = frozenset(_NAMES.split())


def is_function_of_one_number(node: Node) -> bool:
    """Whether a node is one of these functions, of one tensor of floats, into a new one."""
    if operation_name(node) not in _FUNCTIONS or node.op not in ("call_function", "call_method"):
        return False
    given, made = operand_nodes(node), node.meta.get("example_value")
    if len(given) != 1 or node.args[:1] != (given[0],):
        return False
    others = (*node.args[1:], *node.kwargs.values())  # pow(x, x) has a node, inplace is a truth
    if any(isinstance(other, Node) or other is True for other in others):
        return False
    before = fake_of(given[0])
    return (
        isinstance(before, torch.Tensor)
        and isinstance(made, torch.Tensor)
        and "out" not in node.kwargs
        and before.is_floating_point()
        and (before.shape, before.dtype) == (made.shape, made.dtype)
    )


def take_full_vectors(node: Node) -> None:
    """Rewrites such a node."""
    target = node.target
    function = getattr(torch.Tensor, target) if isinstance(target, str) else target
    node.op, node.target = "call_function", _in_full_vectors(function)


@cache
def _in_full_vectors(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise DeterminismError(
                f"{run.__name__.partition('_in_')[0]} of a tensor that requires gradients keeps no "
                "level of determinism: call it under torch.no_grad()"
            )
        count = x.numel()
        padded = x.new_zeros(-(-count // BLOCK), BLOCK)
        padded.view(-1)[:count] = x.reshape(-1)
        for row in padded:
            row.copy_(function(row, *args, **kwargs))
        return torch.empty_like(x).copy_(padded.view(-1)[:count].view(x.shape))

    run.__name__ = f"{getattr(function, '__name__', 'function')}_in_full_vectors"
    return run
